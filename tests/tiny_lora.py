"""Random LoRA files for the small model, in every dialect."""

import torch

RANK, ALPHA = 4, 2.0


def linears(module):
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear)}


def random_pairs(module):
    """{layer: (down, up)} for every linear of a network: attention, MLPs, modulation, inputs, last layer."""
    generator = torch.Generator().manual_seed(7)
    pairs = {}
    for name, layer in linears(module).items():
        down = torch.randn(RANK, layer.in_features, generator=generator) / layer.in_features**0.5
        pairs[name] = down, torch.randn(layer.out_features, RANK, generator=generator) / 4
    return pairs


def weights_of(patched):
    """The network's weights with the patches on."""
    patched.patch_model()
    state = {key: value.clone() for key, value in patched.model.diffusion_model.state_dict().items()}
    patched.unpatch_model()
    return state


def dotted(prefix, ends=("lora_A.weight", "lora_B.weight")):
    return lambda name, end: f"{prefix}{name}.{ends[end]}"


def underscored(prefix):
    return lambda name, end: f"{prefix}{name.replace('.', '_')}.{('lora_down.weight', 'lora_up.weight')[end]}"


DIALECTS = {
    "transformer.": (dotted("transformer."), False),
    "bare": (dotted(""), False),
    "base_model.model.": (dotted("base_model.model."), False),
    "base_model.model.transformer.": (dotted("base_model.model.transformer."), False),
    "default adapter": (dotted("transformer.", ("lora_A.default.weight", "lora_B.default.weight")), False),
    "diffusion_model.": (dotted("diffusion_model."), False),
    "lora_down": (dotted("transformer.", ("lora_down.weight", "lora_up.weight")), True),
    "lora_unet_": (underscored("lora_unet_"), True),
    "lora_transformer_": (underscored("lora_transformer_"), True),
    "lycoris_": (underscored("lycoris_"), True),
}


def lora_file(pairs, dialect):
    write, with_alpha = DIALECTS[dialect]
    tensors = {}
    for name, (down, up) in pairs.items():
        tensors |= {write(name, 0): down, write(name, 1): up}
        if with_alpha:
            tensors[write(name, 0).rsplit(".lora_", 1)[0] + ".alpha"] = torch.tensor(ALPHA)
    scale = ALPHA / RANK if with_alpha else 1.0
    return tensors, scale


def method(name, rows, columns):
    """A random change by another method -> its tensors, and the difference it stands for."""
    g = torch.Generator().manual_seed(rows + columns)
    if name == "diff":
        diff = torch.randn(rows, columns, generator=g) / 10
        return {"diff": diff}, diff
    if name == "loha":
        t = {
            f"hada_w{i}_{ab}": torch.randn(*shape, generator=g) / 3
            for i in (1, 2)
            for ab, shape in (("a", (rows, 4)), ("b", (4, columns)))
        }
        diff = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
        return t | {"alpha": torch.tensor(2.0)}, diff * 2.0 / 4
    t = {"lokr_w1": torch.randn(4, 4, generator=g) / 3}
    t |= {
        "lokr_w2_a": torch.randn(rows // 4, 4, generator=g),
        "lokr_w2_b": torch.randn(4, columns // 4, generator=g) / 9,
    }
    return t | {"alpha": torch.tensor(2.0)}, torch.kron(
        t["lokr_w1"], t["lokr_w2_a"] @ t["lokr_w2_b"]
    ) * 2.0 / 4
