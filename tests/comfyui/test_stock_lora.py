"""ComfyUI's own LoRA nodes on our MODEL: the same weights as our loader's, in every dialect and mode."""

import itertools

import pytest
import torch
from safetensors.torch import save_file
from tiny_lora import ALPHA, DIALECTS, RANK, linears, lora_file, method, random_pairs, weights_of

from ovis_core.lora.read import read_lora

STRENGTH = 0.8
NAMES = ("diffusers", "flux", "authors")


@pytest.fixture(scope="module")
def networks(model, diffusers_pipeline):
    return {"diffusers": diffusers_pipeline.transformer, "flux": model.model.diffusion_model}


def pairs_of(networks, names):
    if names == "authors":
        pairs = random_pairs(networks["flux"])
        return {name.replace("txt_in", "semantic_txt_in"): pair for name, pair in pairs.items()}
    return random_pairs(networks[names])


def stock(model, tensors, strength=STRENGTH, metadata=None):
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, tensors, strength, 0, metadata)[0]


def ours(pack, model, tensors, strength=STRENGTH):
    """As OvisImageLoraLoader does it, from tensors instead of a file."""
    lora = read_lora(tensors, model.model.diffusion_model.config, "test")
    clone = model.clone()
    clone.add_patches(pack("nodes.adapters.lora.patches").patches_of(lora.changes), strength)
    return clone


def assert_same_weights(first, second, atol=1e-6):
    first, second = weights_of(first), weights_of(second)
    assert first.keys() == second.keys()
    for key, value in second.items():
        assert torch.allclose(first[key], value, atol=atol), key


def assert_all_changed(model, patched, changed):
    before = model.model.diffusion_model.state_dict()
    after = weights_of(patched)
    assert sum(not torch.equal(after[key], before[key]) for key in before) >= changed


@pytest.mark.parametrize(("dialect", "names"), [*zip(DIALECTS, itertools.cycle(NAMES))])
def test_every_dialect_gives_our_loaders_weights(pack, model, networks, names, dialect):
    tensors, _ = lora_file(pairs_of(networks, names), dialect)
    patched = stock(model, tensors)
    assert_all_changed(model, patched, len(linears(networks["flux"])))
    assert_same_weights(patched, ours(pack, model, tensors))


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        ("diff", "transformer."),
        ("loha", "diffusion_model."),
        ("lokr", "base_model.model."),
        ("dora", "transformer."),
        ("bias", "diffusion_model."),
    ],
)
def test_every_method_gives_our_loaders_weights(pack, model, networks, kind, prefix):
    network = networks["diffusers"]
    tensors = {}
    for name, (down, up) in random_pairs(network).items():
        weight = network.get_submodule(name).weight
        if kind == "dora":
            parts = {"lora_A.weight": down, "lora_B.weight": up}
            parts["dora_scale"] = 1.1 * weight.norm(dim=1, keepdim=True)
        elif kind == "bias":
            parts = {"diff_b": torch.randn(len(weight))}
        else:
            parts, _ = method(kind, *weight.shape)
        tensors |= {f"{prefix}{name}.{ending}": tensor for ending, tensor in parts.items()}
    patched = stock(model, tensors)
    assert_all_changed(model, patched, len(linears(networks["flux"])))
    assert_same_weights(patched, ours(pack, model, tensors))


def test_dora_under_our_own_names(pack, model, networks):
    tensors = {}
    for name, (down, up) in random_pairs(networks["flux"]).items():
        scale = 1.2 * networks["flux"].get_submodule(name).weight.norm(dim=1, keepdim=True)
        parts = {"lora_A.weight": down, "lora_B.weight": up, "dora_scale": scale}
        tensors |= {f"diffusion_model.{name}.{ending}": tensor for ending, tensor in parts.items()}
    assert_same_weights(stock(model, tensors), ours(pack, model, tensors))


def test_alpha_in_the_metadata_counts(pack, model, networks):
    pairs = pairs_of(networks, "diffusers")
    entries = f'{{"transformer.lora_alpha": {ALPHA}, "transformer.r": {RANK}}}'
    metadata = {"lora_adapter_metadata": entries}
    patched = stock(model, lora_file(pairs, "transformer.")[0], metadata=metadata)
    assert_same_weights(patched, ours(pack, model, lora_file(pairs, "lora_down")[0]))


def test_loras_stack_at_any_strength_and_go_away(pack, model, networks):
    first = lora_file(pairs_of(networks, "diffusers"), "lora_transformer_")[0]
    second = lora_file(pairs_of(networks, "flux"), "bare")[0]
    expected = ours(pack, ours(pack, model, first, -1.5), second, 40.0)
    assert_same_weights(stock(stock(model, first, -1.5), second, 40.0), expected, atol=1e-4)
    before = {key: value.clone() for key, value in model.model.diffusion_model.state_dict().items()}
    weights_of(stock(model, first))
    assert all(torch.equal(model.model.diffusion_model.state_dict()[key], v) for key, v in before.items())


PAIR = {"lora_A.weight": torch.ones(4, 32), "lora_B.weight": torch.ones(256, 4)}


def test_what_does_not_fit_is_refused(model):
    wrong = {"transformer.txt_in.lora_A.weight": torch.ones(4, 32)}
    wrong["transformer.txt_in.lora_B.weight"] = torch.ones(7, 4)
    with pytest.raises(ValueError, match=r"this LoRA has .* for txt_in, which does not fit its shape"):
        stock(model, wrong)
    twice = {f"{prefix}txt_in.{end}": t for end, t in PAIR.items() for prefix in ("unet.", "transformer.")}
    with pytest.raises(ValueError, match="changes diffusion_model.txt_in.weight twice"):
        stock(model, twice)
    oft = {"transformer.transformer_blocks.0.attn.to_q.oft_blocks": torch.zeros(4, 64, 64)}
    with pytest.raises(ValueError, match="by oft, which cannot be placed on a part of"):
        stock(model, oft)


@pytest.fixture
def velocity(model):
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 16, 8, 12, generator=generator), torch.randn(2, 40, 32, generator=generator)
    sigma = torch.tensor([0.9, 0.3])

    def run(patched):
        patched.patch_model()
        patched.inject_model()
        with torch.no_grad():
            out = model.model.diffusion_model(x, sigma, context)
        patched.eject_model()
        patched.unpatch_model()
        return out

    return run


def bypass(model, tensors, strength=STRENGTH):
    import comfy.sd

    return comfy.sd.load_bypass_lora_for_models(model, None, tensors, strength, 0)[0]


@pytest.mark.parametrize(("dialect", "names"), [*zip(DIALECTS, itertools.cycle(NAMES))])
def test_bypass_mode_gives_the_same_velocity(pack, model, networks, velocity, names, dialect):
    tensors, _ = lora_file(pairs_of(networks, names), dialect)
    plain, expected = velocity(model), velocity(ours(pack, model, tensors))
    got = velocity(bypass(model, tensors))
    assert (got - expected).norm() / expected.norm() <= 1e-5
    assert (got - plain).norm() / plain.norm() > 0.05
    assert torch.equal(velocity(model), plain)


@pytest.mark.parametrize("names", NAMES)
def test_bypass_mode_stacks_and_mixes(pack, model, networks, velocity, names):
    tensors = lora_file(pairs_of(networks, names), "bare")[0]
    other = lora_file(pairs_of(networks, "flux"), "diffusion_model.")[0]
    plain = velocity(model)
    expected = velocity(ours(pack, ours(pack, ours(pack, model, tensors, 0.5), other, 0.4), tensors, -0.2))
    got = velocity(stock(bypass(bypass(model, tensors, 0.5), other, 0.4), tensors, -0.2))
    assert (got - expected).norm() / expected.norm() <= 1e-5
    assert torch.equal(velocity(model), plain)


@pytest.mark.parametrize("kind", ["diff", "loha", "lokr"])
def test_bypass_mode_takes_other_methods(pack, model, networks, velocity, kind):
    tensors = {}
    for name, layer in linears(networks["diffusers"]).items():
        parts, _ = method(kind, *layer.weight.shape)
        tensors |= {f"transformer.{name}.{ending}": tensor for ending, tensor in parts.items()}
    expected = velocity(ours(pack, model, tensors))
    assert (velocity(bypass(model, tensors)) - expected).norm() / expected.norm() <= 1e-5


def test_what_is_saved_merged_and_counted_has_no_other_names(model):
    names = set(model.model_state_dict())
    assert names == {f"diffusion_model.{key}" for key in model.model.diffusion_model.state_dict()} | {
        key for key in names if not key.startswith("diffusion_model.")
    }
    assert set(model.get_key_patches("diffusion_model.")) == {k for k in names if k.startswith("diffusion_")}
    assert set(model.state_dict_for_saving()) >= {"model.diffusion_model.txt_in.weight"}
    assert not any("transformer" in key for key in model.state_dict_for_saving())
    network = model.model.diffusion_model
    kept_off = [tensor for layer in network.modulation.layers.values() for tensor in layer.parameters()]
    size = sum(tensor.nbytes for tensor in network.parameters()) - sum(tensor.nbytes for tensor in kept_off)
    assert size <= model.model_size() < 1.01 * size


def test_dynamic_vram_and_what_nodes_make_of_it_know_the_names(pack, model, networks, monkeypatch):
    """The classes alone: dynamic VRAM itself needs a GPU. TorchCompileModel asks for such a clone."""
    monkeypatch.setattr("comfy_aimdo.host_buffer.HostBuffer", lambda *sizes: None)
    patcher = pack("nodes.adapters.weights.patchers")
    dynamic = patcher.DynamicOvisImagePatcher(model.model, torch.device("cuda:0"), torch.device("cpu"))
    dynamic.cached_patcher_init = model.cached_patcher_init
    tensors = lora_file(pairs_of(networks, "diffusers"), "transformer.")[0]
    assert stock(dynamic, tensors).patches.keys() == ours(pack, model, tensors).patches.keys()
    static = dynamic.clone(disable_dynamic=True)
    assert not static.is_dynamic()
    assert_same_weights(stock(static, tensors), ours(pack, model, tensors))


def stock_nodes(server, kind, inputs):
    """The small graph with stock LoRA nodes of one kind between our loader and our sampler."""
    workflow = server.graph("comfyui", steps=3)
    if kind == "hooks":
        workflow["hook"] = {"class_type": "CreateHookLoraModelOnly", "inputs": inputs}
        for cond in ("2", "3"):
            workflow["set" + cond] = {
                "class_type": "ConditioningSetProperties",
                "inputs": {"cond_NEW": [cond, 0], "strength": 1.0, "set_cond_area": "default"},
            }
            workflow["set" + cond]["inputs"]["hooks"] = ["hook", 0]
        workflow["5"]["inputs"].update(positive=["set2", 0], negative=["set3", 0])
        return workflow
    source = {"model": ["1", 0], **inputs}
    if kind == "LoraLoader":
        source |= {"clip": ["1", 1], "strength_clip": 0.0}
    workflow["lora"] = {"class_type": kind, "inputs": source}
    workflow["5"]["inputs"]["model"] = ["lora", 0]
    return workflow


@pytest.fixture(scope="module")
def lora_name(server, networks):
    folder = server.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    for dialect in ("transformer.", "lora_transformer_"):
        tensors = lora_file(pairs_of(networks, "diffusers"), dialect)[0]
        save_file(tensors, folder / f"stock_{dialect}.safetensors")
    return lambda dialect: f"stock_{dialect}.safetensors"


@pytest.mark.parametrize(
    ("kind", "dialect"),
    [
        ("LoraLoader", "transformer."),
        ("LoraLoaderModelOnly", "lora_transformer_"),
        ("LoraLoaderBypassModelOnly", "transformer."),
        ("LoraLoaderBypassModelOnly", "lora_transformer_"),
        ("hooks", "transformer."),
    ],
)
def test_stock_nodes_on_the_server(server, lora_name, kind, dialect):
    inputs = {"lora_name": lora_name(dialect), "strength_model": 0.6}
    expected = server.latent(stock_nodes(server, "OvisImageLoraLoader", inputs), "5")
    got = server.latent(stock_nodes(server, kind, inputs), "5")
    assert (got - expected).norm() / expected.norm() <= 1e-4
    plain = server.latent(server.graph("comfyui", steps=3), "5")
    assert (got - plain).norm() / plain.norm() > 0.02
