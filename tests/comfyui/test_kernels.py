"""comfy_kitchen's joined operations: the same velocities, and used where they are worth it.

Its kernels for GPUs run on none of these machines; its torch backend has the same functions.
"""

import pytest
import torch

BATCH, HEIGHT, WIDTH = 2, 8, 12  # in latent pixels: 280 tokens a picture with the text


@pytest.fixture
def fused(pack):
    return pack("nodes.adapters.network.kernels")


@pytest.fixture
def joined(model, fused, monkeypatch):
    """The small network with the kernels, and a list of the sizes (B, L) that each was called with."""
    calls = {"adaln": [], "rms_rope": []}
    monkeypatch.setattr(fused, "has_kernel", lambda name: True)
    for operation in (fused.ADALN, fused.RMS_ROPE):
        monkeypatch.setattr(operation, "_measure", lambda tensors: True)
        monkeypatch.setattr(operation, "_choices", type(operation._choices)(operation.name))
        monkeypatch.setattr(operation, "kernel", counting(operation.kernel, calls[operation.name]))
    network = model.model.diffusion_model
    before = {module: vars(module).pop("kernel", None) for module in network.modules()}
    fused.join_operations(network)
    yield network, calls
    for module, kernel in before.items():
        vars(module).pop("kernel", None)
        if kernel is not None:
            module.kernel = kernel


def counting(kernel, calls):
    def run(*tensors):
        calls.append((tensors[0].shape[0], tensors[0].shape[-2]))
        return kernel(*tensors)

    return run


def arguments(network, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 16, HEIGHT, WIDTH, generator=generator).to(dtype)
    context = torch.randn(BATCH, 256, network.config.context_dim, generator=generator).to(dtype)
    return x, torch.tensor([0.9, 0.3]), context


def without(network, *args, **kwargs):
    """The velocity by the plain operations, which gradients need: the kernels stand aside there."""
    with torch.enable_grad():
        return network(*args, **kwargs).detach()


def run(network, *args, **kwargs):
    with torch.no_grad():
        return network(*args, **kwargs)


@pytest.mark.parametrize("part_tokens", [2048, 160])
def test_velocities_are_the_same_with_the_kernels(joined, pack, monkeypatch, part_tokens):
    monkeypatch.setattr(pack("ovis_core.layers"), "PART_TOKENS", part_tokens)
    network, calls = joined
    args = arguments(network)
    expected = without(network, *args)
    assert not any(calls.values())
    torch.testing.assert_close(run(network, *args), expected, rtol=1e-5, atol=1e-5)
    parts = [(BATCH, 280)] if part_tokens == 2048 else [(BATCH, 94), (BATCH, 94), (BATCH, 92)]
    streams = [(BATCH, 24), (BATCH, 256)]  # image, text
    config = network.config
    singles = parts * config.depth_single_blocks
    assert calls["rms_rope"] == streams * config.depth + singles
    norms = [(BATCH, 24), (BATCH, 256), (BATCH, 24), (BATCH, 256)] * config.depth + singles
    assert calls["adaln"] == norms + [(BATCH, 24)]


def test_bfloat16_is_no_further_from_float32(joined, model):
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


@pytest.mark.parametrize("is_watched", [False, True])
def test_compiled_blocks_have_q_and_k_normed_and_rotated_at_once(joined, pack, is_watched):
    """By one code, whether other nodes want to see q and k that are not rotated or not."""
    network, calls = joined
    graphs = []

    def backend(graph, inputs, **_):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    transformer = pack("nodes.adapters.network.transformer")
    runner = pack("nodes.adapters.network.compilation").BlockRunner(network.config, backend)
    watching = {"patches": {"attn1_patch": [lambda q, k, v, **_: {}]}}
    args = arguments(network)
    for options in (watching, {}) if is_watched else ({}, watching):
        expected = without(network, *args, transformer_options=options)
        calls["rms_rope"].clear()
        with torch.inference_mode():  # as ComfyUI runs; else torch tells views from other tensors
            given = network(*args, transformer_options={**options, transformer.BLOCK_RUNNER: runner})
        torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
        config = network.config
        joined_calls = 2 * config.depth + config.depth_single_blocks
        assert len(calls["rms_rope"]) == (0 if options else joined_calls)
    assert len(graphs) == 2
    torch._dynamo.reset()


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


def test_no_kernel_without_a_backend_that_joins(fused, monkeypatch):
    import comfy.quant_ops

    backends = {
        "eager": {"available": True, "disabled": False, "capabilities": ["adaln"]},
        "cuda": {"available": True, "disabled": False, "capabilities": ["adaln"]},
    }
    monkeypatch.setattr(comfy.quant_ops.ck, "list_backends", lambda: backends)
    assert fused.has_kernel("adaln")
    assert not fused.has_kernel("rms_rope")
    backends["cuda"]["disabled"] = True  # as ComfyUI does with torch for CUDA 12
    assert not fused.has_kernel("adaln")
    backends["cuda"].update(disabled=False, available=False)
    assert not fused.has_kernel("adaln")
    monkeypatch.undo()
    monkeypatch.delattr(comfy.quant_ops, "ck")
    assert not fused.has_kernel("adaln")
    layer = fused.AdaLayerNorm()
    fused.join_operations(layer)
    assert layer.kernel is None


class OnGPU:
    """Stands for a tensor there."""

    device, dtype, shape = torch.device("cuda", 0), torch.bfloat16, (2, 64)

    def __init__(self, numel=128, is_contiguous=True):
        self.numel = lambda: numel
        self.is_contiguous = lambda: is_contiguous


class Bench:
    """A kernel and plain operations on a clock that only they move."""

    def __init__(self, fused, monkeypatch, kernel_seconds=1.0, plain_seconds=2.0, error=0.0):
        self.now, self.ran, self.failure, self.error = 0.0, [], None, error
        self.seconds = {"kernel": kernel_seconds, "plain": plain_seconds}
        monkeypatch.setattr(fused, "cuda_seconds", self.seconds_of)
        self.fused = fused.Fused("test", self.way("kernel"), self.way("plain"))

    def way(self, name):
        def compute(tensor):
            if name == "kernel" and self.failure:
                raise self.failure
            self.ran.append(name)
            self.now += self.seconds[name]
            return (torch.ones(8) + (self.error if name == "kernel" else 0),)

        return compute

    def seconds_of(self, calls, device):
        assert device == OnGPU.device
        taken = []
        for call in calls:
            before = self.now
            call()
            taken.append(self.now - before)
        return taken

    def __call__(self, tensor=None):
        self.ran.clear()
        self.fused(OnGPU() if tensor is None else tensor)
        return [*self.ran]


def test_the_faster_way_is_kept_for_a_size(fused, monkeypatch):
    bench = Bench(fused, monkeypatch)
    assert bench() == ["kernel", "plain", "kernel", "plain", "kernel"]
    assert bench() == ["kernel"]
    assert bench(OnGPU(255)) == ["kernel"]
    for other in (OnGPU(256), OnGPU(is_contiguous=False)):
        assert len(bench(other)) > 1  # measured anew

    slow = Bench(fused, monkeypatch, kernel_seconds=1.95)
    slow()
    assert slow() == ["plain"]


def test_a_kernel_that_computes_something_else_is_not_used(fused, monkeypatch):
    wrong = Bench(fused, monkeypatch, error=0.1)
    wrong()
    assert wrong() == ["plain"]


def test_nothing_is_measured_off_the_gpu_or_where_runs_must_be_the_same(fused, monkeypatch):
    bench = Bench(fused, monkeypatch)
    assert bench(torch.ones(8)) == ["plain"]
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert bench() == ["plain"]


def test_a_kernel_that_fails_is_left_for_the_plain_operations(fused, monkeypatch):
    early = Bench(fused, monkeypatch)
    early.failure = TypeError("incompatible function arguments")
    assert early() == ["plain"]
    early.failure = None
    assert early() == ["plain"]

    late = Bench(fused, monkeypatch)
    late()
    late.failure = RuntimeError("launch failed")
    assert late() == ["plain"]
    late.failure = None
    assert late() == ["plain"]


def test_running_out_of_memory_is_left_to_comfyui(fused, monkeypatch):
    full = Bench(fused, monkeypatch)
    for ran in (5, 1):  # in the measurement, and later
        full.failure = torch.OutOfMemoryError("no room")
        with pytest.raises(torch.OutOfMemoryError):
            full()
        full.failure = None
        assert len(full()) == ran
    assert full() == ["kernel"]
