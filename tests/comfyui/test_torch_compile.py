"""OvisImageCompile: the same numbers as without, and how often torch compiles, counted by the backend."""

import dataclasses
import importlib.util
import re
import shutil

import pytest
import tiny_model
import torch

from ovis_core.sampling import flow_sigmas


@pytest.fixture
def counter():
    """A backend that compiles like inductor up to the kernels, and lists the graphs that it was given."""
    torch._dynamo.reset()
    from torch._dynamo.backends.registry import lookup_backend

    class Counter:
        def __init__(self):
            self.graphs = 0

        def __call__(self, graph, inputs, **_):
            self.graphs += 1
            return lookup_backend("eager")(graph, inputs)

    yield Counter()
    torch._dynamo.reset()


@pytest.fixture
def compiled(pack, counter):
    """`compiled(model)` -> a clone that runs compiled by `counter`."""
    make = pack("nodes.adapters.network.compilation").compiled_model
    return lambda model: make(model, counter)


def options_of(model):
    return model.model_options["transformer_options"]


def forward(model, batch=2, height=8, width=12, length=256, options=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 16, height, width, generator=generator)
    context = torch.randn(batch, length, 32, generator=generator)
    sigma = torch.rand(batch, generator=generator)
    with torch.inference_mode():
        return model.model.diffusion_model(
            x, sigma, context, transformer_options={**options_of(model), **(options or {})}
        )


def sample(model):
    import comfy.samplers

    generator = torch.Generator().manual_seed(0)
    noise, positive, negative = (
        torch.randn(shape, generator=generator) for shape in ((1, 16, 8, 12), (1, 40, 32), (1, 40, 32))
    )
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds([[positive, {}]], [[negative, {}]])
    guider.set_cfg(5.0)
    with torch.inference_mode():
        euler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros_like(noise), euler, flow_sigmas(3, 24))


def distance(one, other):
    return ((one - other).norm() / other.norm()).item()


SIZES = [(2, 8, 12, 256), (2, 16, 12, 256), (3, 7, 9, 77), (4, 8, 8, 100), (2, 8, 32, 256), (1, 8, 12, 256)]


def test_one_code_of_each_kind_for_all_blocks_sizes_batches_and_prompts(model, compiled, counter):
    """256 text tokens are as many as the hidden size, and must not be taken for it."""
    clone = compiled(model)
    for size in SIZES:
        assert distance(forward(clone, *size), forward(model, *size)) <= 1e-6
    assert counter.graphs == 2


@pytest.mark.parametrize("batch", [1, 2])
def test_sizes_of_one_are_sizes_like_any_other(model, compiled, counter, batch):
    clone = compiled(model)
    for size in ((batch, 8, 8, 256), (3 - batch, 10, 12, 40), (2, 2, 2, 3), (1, 4, 4, 1)):
        assert distance(forward(clone, *size), forward(model, *size)) <= 1e-6
    assert counter.graphs == 2


def test_models_of_many_sizes_in_one_process(pack, model, compiled, counter):
    """Each has codes of its own, more than torch allows by itself."""
    network = model.model.diffusion_model
    runner = options_of(compiled(model))[pack("nodes.adapters.network.transformer").BLOCK_RUNNER]
    for dtype in (torch.float16, torch.float32, torch.bfloat16):
        for mlp_size in (16, 24, 32, 48):
            config = dataclasses.replace(network.config, mlp_size=mlp_size)
            block = pack("ovis_core.blocks").SingleStreamBlock(
                config.hidden_size, config.num_heads, mlp_size, torch.nn, dtype=dtype
            )
            pe = network.pe_embedder(torch.zeros(8, 3), torch.device("cpu"))
            pack("nodes.adapters.network.compilation").BlockRunner(config, runner.backend)(
                "single",
                0,
                block,
                torch.randn(2, 8, config.hidden_size, dtype=dtype),
                torch.randn(2, config.hidden_size, dtype=dtype),
                pe,
                pack("nodes.adapters.network.attention").PatchedAttention({}, None, None, pe),
            )
    assert counter.graphs == 12


def test_another_clone_uses_the_same_code(model, compiled, counter):
    forward(compiled(model))
    forward(compiled(model))
    assert counter.graphs == 2


def test_sampling_and_the_uncompiled_model_beside_it(model, compiled, counter):
    expected = sample(model)
    assert distance(sample(compiled(model)), expected) <= 1e-5
    graphs = counter.graphs
    assert graphs == 2
    assert torch.equal(sample(model), expected)
    assert counter.graphs == graphs


def lora(model, strength):
    clone = model.clone()
    generator = torch.Generator().manual_seed(3)
    state = model.model.state_dict()
    for name in (
        *("double_blocks.1.img_attn.qkv", "single_blocks.0.linear1"),
        "double_blocks.0.txt_attn.norm.key_norm",
    ):
        key = f"diffusion_model.{name}.weight"
        change = torch.randn(state[key].shape, generator=generator) * 0.05
        clone.add_patches({key: ("diff", (change,))}, strength)
    return clone


def test_loras_need_no_other_code(model, compiled, counter):
    plain = sample(model)
    for strength in (1.0, -0.5):
        patched = lora(model, strength)
        expected = sample(patched)
        assert distance(expected, plain) > 1e-3
        assert distance(sample(compiled(patched)), expected) <= 1e-5
    assert counter.graphs == 2


def test_weights_that_are_cast_at_every_forward(pack, model, compiled, counter, tmp_path):
    """As with lowvram: ComfyUI's layers cast and patch their weights when they run."""
    path = tmp_path / "diffusion_models" / tiny_model.write("comfyui", tmp_path)["model_name"]
    half = pack("nodes.adapters.loading.diffusion_model").load_diffusion_model(path, torch.float16)
    blocks = half.model.diffusion_model.double_blocks
    assert blocks[0].img_attn.qkv.weight.dtype == torch.float16
    plain = forward(half)
    # Lists of their own: a layer that ComfyUI has not loaded yet has the list of all layers of the process.
    blocks[0].img_attn.qkv.weight_function = [lambda weight: weight * 0.5]
    expected = forward(half)
    assert distance(expected, plain) > 1e-3
    clone = compiled(half)
    assert distance(forward(clone), expected) <= 1e-6
    blocks[1].img_attn.qkv.weight_function = [lambda weight: weight * 2.0]
    changed = forward(half)
    assert distance(changed, expected) > 1e-3
    assert distance(forward(clone), changed) <= 1e-6
    assert counter.graphs == 2


def test_patches_of_blocks_and_attention(model, compiled, counter):
    kept = []

    def attn1_patch(q, k, v, pe, attn_mask, extra_options):
        kept.append((v, v.clone(), extra_options["block_type"], extra_options.get("img_slice")))
        return {"q": q * 1.5}

    def halve(args, extra):
        return {"img": extra["original_block"](args)["img"] * 0.5}

    options = {
        "patches": {"attn1_patch": [attn1_patch]},
        "patches_replace": {"dit": {("single_block", 1): halve}},
    }
    clone = compiled(model)
    forward(clone)
    graphs = counter.graphs
    expected = forward(model, options=options)
    native, kept[:] = kept[:], []
    assert distance(forward(clone, options=options), expected) <= 1e-6
    assert counter.graphs == graphs
    assert [call[2:] for call in kept] == [call[2:] for call in native]
    assert all(torch.equal(v, copy) for v, copy, *_ in kept)


def test_an_error_in_a_layer_leaves_nothing_behind(model, compiled):
    clone = compiled(model)
    expected = forward(clone)

    def interrupt(*_):
        raise InterruptedError

    handle = model.model.diffusion_model.single_blocks[0].linear1.register_forward_pre_hook(interrupt)
    with pytest.raises(InterruptedError):
        forward(clone)
    handle.remove()
    assert torch.equal(forward(clone), expected)


def test_with_the_cache(pack, model, compiled, counter):
    told = []
    cached = pack("nodes.adapters.sampling.residual_cache").cached_model
    expected = sample(cached(model, 1e6, 1, 1, 0, told.append))
    assert distance(sample(cached(compiled(model), 1e6, 1, 1, 0, told.append)), expected) <= 1e-5
    assert told == ["4 of 6 forwards computed"] * 2
    assert counter.graphs == 2


@pytest.mark.timeout(900)  # torch compiles C++ headers the first time
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
def test_inductors_kernels_are_close(pack):
    """One small block, on sizes of which some are 1, by one code."""
    compilation, blocks = pack("nodes.adapters.network.compilation"), pack("ovis_core.blocks")
    rope = pack("ovis_core.rope")
    config = pack("ovis_core.transformer").TransformerConfig(
        hidden_size=32, num_heads=2, mlp_size=64, axes_dim=(4, 6, 6)
    )
    torch.manual_seed(0)
    block = blocks.SingleStreamBlock(32, 2, 64)

    class Plain:
        options = {}

        def __init__(self, pe):
            self.pe = pe

        def __call__(self, q, k, v, pe):
            return blocks.sdp_attention(q, k, v, pe)

    runner = compilation.BlockRunner(config, "inductor")
    with torch.inference_mode():
        for batch, length in ((2, 5), (3, 9), (1, 7), (2, 1)):
            x, vec = torch.randn(batch, length, 32), torch.randn(batch, 32)
            pe = rope.EmbedND(config.axes_dim, 1e4)(torch.zeros(length, 3), x.device)
            expected = block(x, vec, pe, Plain(pe))
            assert distance(runner("single", 0, block, x, vec, pe, Plain(pe)), expected) <= 1e-5


@pytest.mark.parametrize(
    ("device", "words"), [("cpu", "C.. compiler for the CPU"), ("cuda", "Triton for this GPU"), ("mps", None)]
)
def test_what_is_missing_is_said(pack, monkeypatch, device, words):
    missing = pack("nodes.adapters.network.compilation").missing_compiler
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = missing(device)
    assert said is None if words is None else re.search(words, said)


def test_without_a_compiler_the_node_says_so(pack, model, monkeypatch):
    compile_ = pack("nodes.adapters.network.compilation").compiled_model
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"cannot compile: .*install g\+\+ or clang.*, or remove this node"):
        compile_(model)


def test_another_model_is_refused(compiled, comfyui, tmp_path):
    import comfy.sd

    path = tmp_path / "diffusion_models" / tiny_model.write("comfyui", tmp_path)["model_name"]
    with pytest.raises(ValueError, match="connect the Ovis-Image Loader, or use ComfyUI's TorchCompileModel"):
        compiled(comfy.sd.load_diffusion_model(str(path)))
