"""LoRAs by ComfyUI's hooks, on one branch of guidance alone, whatever the weights are kept in."""

import pytest
import tiny_gguf
import tiny_model
import torch
from tiny_lora import lora_file, random_pairs

CPU = torch.device("cpu")
STRENGTH, CFG, STEPS = 0.8, 4.0, 4


@pytest.fixture(scope="module")
def lora(parts):
    return lora_file(random_pairs(parts[0]), "diffusion_model.")[0]


# Formats beside the modes of hooks that run with them: each mode meets plain, scaled and GGUF weights.
MODES = {
    "fp32": ["MaxSpeed"],
    "bf16": ["MinVram"],
    "fp8_e4m3fn": ["MaxSpeed"],
    "fp8_scaled": ["MinVram"],
    "int8": ["MaxSpeed", "MinVram"],
    "Q8_0": ["MaxSpeed"],
    "Q4_K": ["MinVram"],
}


@pytest.fixture(scope="module", params=MODES)
def format_name(request):
    return request.param


@pytest.fixture(scope="module")
def load(format_name, pack, parts, tmp_path_factory):
    """Loads the small model anew; a Q4_K file has plain matrices beside those of bytes."""
    adapter = pack("nodes.adapters.loading.diffusion_model")
    dtypes = pack("nodes.adapters.weights.formats").WEIGHT_DTYPES
    folder = tmp_path_factory.mktemp("hooked")
    path, weight_dtype = folder / "model.gguf", None
    if format_name in dtypes:
        path = folder / "diffusion_models" / tiny_model.write("comfyui", folder)["model_name"]
        weight_dtype = dtypes[format_name]
    else:
        tiny_gguf.write(path, parts[0].state_dict(), format_name)
    # As ComfyUI runs its nodes.
    return torch.inference_mode()(lambda: adapter.load_diffusion_model(path, weight_dtype))


@pytest.fixture(scope="module")
def conds():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 40, 32, generator=generator) for _ in range(2)]


def sample(model, positive, negative):
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([positive], [negative])
    guider.set_cfg(CFG)
    euler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        return guider.sample(
            noise(), torch.zeros(1, 16, 8, 12), euler, torch.linspace(1, 0, STEPS + 1), seed=1
        )


def noise():
    return torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(0))


def by_hand(load, lora, conds):
    """A model with the LoRA for the positive, one without for the negative."""
    import comfy.sd

    models = [comfy.sd.load_lora_for_models(load(), None, lora, STRENGTH, 0)[0], load()]
    x = noise()
    sigmas = torch.linspace(1, 0, STEPS + 1)
    with torch.inference_mode():
        for model in models:
            model.patch_model(CPU)
        dtype = models[0].model.get_dtype_inference()
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            given = x.to(dtype), sigma[None]
            positive, negative = (
                model.model.diffusion_model(*given, cond.to(dtype)).float()
                for model, cond in zip(models, conds, strict=True)
            )
            x = x + (following - sigma) * (negative + CFG * (positive - negative))
        return models[0].model.process_latent_out(x)


def distance(one, other):
    return ((one - other).norm() / other.norm()).item()


def numbers(model):
    """{name: a copy of what the network multiplies by}; hooks write some in place."""
    return {
        name: (weight.dequantize() if hasattr(weight, "_qdata") else weight).to(torch.float32, copy=True)
        for name, weight in model.model.diffusion_model.named_parameters()
    }


@torch.inference_mode()
def test_hooked_weights_are_the_loaders(load, lora):
    """To the bit: both do the same in the same order, and round at random from the same seeds.

    Also for devices that round activations, where pictures tell no more: see `low_precision`.
    """
    import comfy.hooks
    import comfy.sd

    loaded, hooked = comfy.sd.load_lora_for_models(load(), None, lora, STRENGTH, 0)[0], load()
    before = numbers(hooked)
    hooks = comfy.hooks.create_hook_lora(lora=lora, strength_model=STRENGTH, strength_clip=0)
    target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    hooked.register_all_hook_patches(hooks, target)
    for model in (loaded, hooked):
        model.patch_model(CPU)
    hooked.patch_hooks(hooks)
    expected, changed = numbers(loaded), numbers(hooked)
    assert all(torch.equal(changed[name], weight) for name, weight in expected.items())
    hooked.unpatch_hooks()
    after = numbers(hooked)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert not all(torch.equal(after[name], weight) for name, weight in expected.items())


def test_a_lora_on_one_branch(load, lora, conds, format_name):
    import comfy.hooks

    def hooks():
        return {"hooks": comfy.hooks.create_hook_lora(lora=lora, strength_model=STRENGTH, strength_clip=0)}

    model = load()
    before = sample(model, [conds[0], {}], [conds[1], {}])
    expected = by_hand(load, lora, conds)
    rounding = 1e-3 if model.model.get_dtype_inference() == torch.float32 else 0.02
    for mode in MODES[format_name]:
        clone = model.clone()
        clone.hook_mode = comfy.hooks.EnumHookMode[mode]
        hooked = sample(clone, [conds[0], hooks()], [conds[1], {}])
        assert distance(hooked, expected) <= rounding
        assert distance(hooked, before) > 0.05
    assert torch.equal(sample(model, [conds[0], {}], [conds[1], {}]), before)
    assert not model.model.exchanged_weights


def test_a_lora_on_both_branches_is_the_loaders(load, lora, conds):
    import comfy.hooks
    import comfy.sd

    hooks = {"hooks": comfy.hooks.create_hook_lora(lora=lora, strength_model=STRENGTH, strength_clip=0)}
    loaded = comfy.sd.load_lora_for_models(load(), None, lora, STRENGTH, 0)[0]
    expected = sample(loaded, [conds[0], {}], [conds[1], {}])
    # Without the table of modulation, which hooked runs do without: products of another size, 4e-7 apart.
    # No format rounds activations on a CPU; int8 products would make 3e-3 a forward of it.
    assert distance(sample(load(), [conds[0], hooks], [conds[1], hooks]), expected) <= 1e-5
