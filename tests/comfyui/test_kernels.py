"""comfy_kitchen's joined operations: the same velocities, where the rule has them.

Its kernels for GPUs run on none of these machines; its torch backend has the same functions.
"""

import pytest
import torch

BATCH, HEIGHT, WIDTH = 2, 8, 12  # in latent pixels: 64 tokens a picture with the text


@pytest.fixture
def kernels(pack):
    return pack("nodes.adapters.network.kernels")


@pytest.fixture
def joined(model, kernels, monkeypatch):
    """The small network as on a GPU with the kernels, and the sizes (B, L) that each was called with."""
    import comfy.quant_ops

    calls = {"adaln": [], "rms_rope": []}
    monkeypatch.setattr(kernels, "has_new_kernels", lambda device: True)
    monkeypatch.setattr(kernels, "has_joined", lambda name: True)
    for name, sizes in calls.items():
        monkeypatch.setattr(comfy.quant_ops.ck, name, counting(getattr(comfy.quant_ops.ck, name), sizes))
    return model.model.diffusion_model, calls


def counting(kernel, sizes):
    def run(*tensors):
        sizes.append((tensors[0].shape[0], tensors[0].shape[-2]))
        return kernel(*tensors)

    return run


def arguments(network, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 16, HEIGHT, WIDTH, generator=generator).to(dtype)
    context = torch.randn(BATCH, 40, network.config.context_dim, generator=generator).to(dtype)
    return x, torch.tensor([0.9, 0.3]), context


def without(network, *args, **kwargs):
    """The velocity by the textbook's operations, which gradients need: the kernels stand aside there."""
    with torch.enable_grad():
        return network(*args, **kwargs).detach()


def run(network, *args, **kwargs):
    with torch.no_grad():
        return network(*args, **kwargs)


@pytest.mark.parametrize("num_parts", [1, 3])
def test_velocities_are_the_same_with_the_kernels(joined, monkeypatch, num_parts):
    network, calls = joined
    monkeypatch.setattr(network, "num_parts", lambda *_: num_parts)
    args = arguments(network)
    expected = without(network, *args)
    assert not any(calls.values())
    torch.testing.assert_close(run(network, *args), expected, rtol=1e-5, atol=1e-5)
    parts = [(BATCH, 64)] if num_parts == 1 else [(BATCH, 22), (BATCH, 22), (BATCH, 20)]
    config = network.config
    singles = parts * config.depth_single_blocks
    assert calls["rms_rope"] == [(BATCH, 24), (BATCH, 40)] * config.depth + singles  # image, text
    norms = [(BATCH, 24), (BATCH, 40), (BATCH, 24), (BATCH, 40)] * config.depth + singles
    assert calls["adaln"] == norms + [(BATCH, 24)]


def test_bfloat16_is_no_further_from_float32(joined):
    network, _ = joined
    exact = without(network, *arguments(network))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    dtype = next(network.parameters()).dtype
    network.to(torch.bfloat16)
    try:
        args = arguments(network, torch.bfloat16)
        plain, given = (call(network, *args).float() for call in (without, run))
    finally:
        network.to(dtype).load_state_dict(before)
    assert (given - exact).norm() <= 1.2 * (plain - exact).norm()


def test_other_nodes_see_q_and_k_that_are_not_rotated(joined):
    network, calls = joined
    seen = {"with": [], "without": []}

    def options(name):
        def patch(q, k, v, pe, attn_mask, extra_options):
            assert pe is not None
            seen[name].append((q.clone(), k.clone()))
            return {}

        return {"patches": {"attn1_patch": [patch]}}

    args = arguments(network)
    expected = without(network, *args, transformer_options=options("without"))
    given = run(network, *args, transformer_options=options("with"))
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
    assert calls["adaln"]
    assert not calls["rms_rope"]
    for pair, other in zip(seen["with"], seen["without"], strict=True):
        torch.testing.assert_close(pair, other, rtol=1e-5, atol=1e-5)


def test_functions_on_the_norms_weights_take_part(joined):
    """A LoRA on a weight that lies in RAM comes as such a function."""
    network, calls = joined
    norms = [network.double_blocks[0].txt_attn.norm.key_norm, network.single_blocks[0].norm.query_norm]
    for norm in norms:
        norm.weight_function = [lambda weight: weight * 3]
    try:
        args = arguments(network)
        changed, given = without(network, *args), run(network, *args)
    finally:
        for norm in norms:
            del norm.weight_function
    torch.testing.assert_close(given, changed, rtol=1e-5, atol=1e-5)
    assert (changed - without(network, *args)).abs().max() > 1e-3
    assert calls["rms_rope"]


def test_norms_that_another_node_hooks_run_as_they_are(joined):
    network, calls = joined
    norm = network.single_blocks[0].norm.query_norm
    args = arguments(network)
    handle = norm.register_forward_hook(lambda module, given, out: 2 * out)
    try:
        expected, given = without(network, *args), run(network, *args)
    finally:
        handle.remove()
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
    assert (given - run(network, *args)).abs().max() > 1e-3
    assert calls["rms_rope"]


def test_no_kernel_without_a_backend_that_joins(kernels, monkeypatch):
    import comfy.quant_ops

    def has(name):
        return kernels.has_joined.__wrapped__(name)

    backends = {
        "eager": {"available": True, "disabled": False, "capabilities": ["adaln"]},
        "cuda": {"available": True, "disabled": False, "capabilities": ["adaln"]},
    }
    monkeypatch.setattr(comfy.quant_ops.ck, "list_backends", lambda: backends)
    assert has("adaln")
    assert not has("rms_rope")
    backends["cuda"]["disabled"] = True  # as ComfyUI does with torch for CUDA 12
    assert not has("adaln")
    backends["cuda"].update(disabled=False, available=False)
    assert not has("adaln")
