"""Which attention kernel is used: the choice with kernels and a clock of the test's own, and on the MODEL."""

import contextlib
import logging
import sys
import threading
import time
import types

import pytest
import tiny_model
import torch
from torch.nn import functional

SHAPE = (2, 3, 40, 16)  # B, H, L, D/H


@pytest.fixture
def attention(pack, comfyui, monkeypatch):
    """The module, on a ComfyUI that uses torch's attention, as on NVIDIA GPUs."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "pytorch_attention_enabled", lambda: True)
    return pack("nodes.adapters.network.attention")


def tensors(shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(3)]


def plain(q, k, v, mask=None):
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Bench:
    """Kernels that take the seconds that they are given, on a clock that only they move."""

    def __init__(self, attention, own=1e-3, **costs):
        self.attention, self.own, self.costs = attention, own, costs
        self.now = 0.0
        self.ran = []  # names in order
        self.measured = 0
        self.override = attention.AttentionOverride(
            lambda own, q, k, v: attention.fastest(own, q, k, v, self.candidates, self.seconds_of)
        )

    def run(self, name, cost, q, k, v):
        self.ran.append(name)
        self.now += cost
        return plain(q, k, v)

    def comfyui(self, q, k, v, heads, mask=None, **_):
        assert heads == q.shape[1]
        self.ran.append("comfyui")
        self.now += self.own
        return plain(q, k, v, mask)

    def candidates(self, q, k, v):
        return {name: self.kernel(name, cost) for name, cost in self.costs.items()}

    def kernel(self, name, cost):
        if callable(cost):
            return cost
        return lambda q, k, v: self.run(name, cost, q, k, v)

    def seconds_of(self, calls, device):
        self.measured += 1
        seconds = []
        for call in calls:
            before = self.now
            call()
            seconds.append(self.now - before)
        return seconds

    def __call__(self, q, k, v, **kwargs):
        """One call as ComfyUI makes it -> the names of what ran, after checking the result."""
        self.ran.clear()
        asked = {"skip_reshape": True, "mask": None, "transformer_options": {}, "_inside_attn_wrapper": True}
        with torch.inference_mode():
            out = self.override(self.comfyui, q, k, v, q.shape[1], **asked | kwargs)
            assert torch.allclose(out, plain(q, k, v, kwargs.get("mask")), atol=1e-6)
        return self.ran[:]


def test_the_fastest_is_measured_once_and_used(attention, caplog):
    bench = Bench(attention, own=2e-3, cudnn=1e-3, flash=3e-3)
    with caplog.at_level(logging.INFO):
        ran = bench(*tensors())
    assert set(ran) == {"comfyui", "cudnn", "flash"}
    assert ran[-1] == "cudnn"
    assert bench(*tensors(seed=1)) == ["cudnn"]
    (line,) = [record.message for record in caplog.records]
    assert "cudnn is chosen (comfyui 2.000 ms, cudnn 1.000 ms, flash 3.000 ms)" in line
    assert "cpu, torch.float32, 6 heads, up to 256 tokens, head size 16" in line


@pytest.mark.parametrize(
    ("own", "costs", "chosen"),
    [
        (1e-3, {"cudnn": 0.97e-3}, "comfyui"),  # not worth another rounding
        (1e-3, {"cudnn": 1.1e-3, "flash": 1.0e-3}, "comfyui"),
        (1e-3, {"cudnn": 0.8e-3, "flash": 0.79e-3}, "cudnn"),
        (1e-3, {"cudnn": 0.8e-3, "flash": 0.5e-3, "efficient": 0.9e-3}, "flash"),
    ],
)
def test_a_kernel_must_be_worth_it(attention, own, costs, chosen):
    bench = Bench(attention, own, **costs)
    bench(*tensors())
    assert bench(*tensors()) == [chosen]


def test_slow_runs_do_not_decide(attention):
    bench = Bench(attention, own=1e-3, cudnn=0.5e-3)
    run, delays = bench.run, [0.1, 2e-3, 0.0, 1.0]  # of the warm-up, the first and the third measured run

    def delayed(name, cost, *qkv):
        return run(name, cost + (delays.pop(0) if delays else 0.0), *qkv)

    bench.run = delayed
    bench(*tensors())
    assert delays == []
    assert bench(*tensors()) == ["cudnn"]


@pytest.mark.parametrize(("cost", "rounds"), [(1.0, 1), (1e-3, 6), (1e-9, 9)])
def test_a_measurement_keeps_to_its_budget(attention, cost, rounds):
    bench = Bench(attention, own=cost, flash=2 * cost)
    ran = bench(*tensors())
    assert ran.count("flash") == 1 + rounds  # the first to warm up
    assert ran.count("comfyui") == 1 + rounds + 1  # the last is the answer


def test_shapes_are_measured_apart_and_near_lengths_together(attention):
    bench = Bench(attention, cudnn=0.5e-3)
    for shape in [(2, 3, 40, 16), (1, 6, 250, 16)]:  # the same number of heads, and up to 256 tokens
        assert bench(*tensors(shape))[-1] == "cudnn"
    once = bench.measured
    for shape in [(1, 3, 40, 16), (2, 3, 257, 16), (2, 3, 40, 32)]:
        before = bench.measured
        assert len(bench(*tensors(shape))) > 1
        assert bench.measured - before == once
    assert len(bench([*map(torch.Tensor.half, tensors())][0].float(), *tensors()[1:])) == 1
    assert len(bench(*map(torch.Tensor.double, tensors()))) > 1


def test_what_is_kept_is_bounded(attention, pack, monkeypatch):
    monkeypatch.setattr(pack("nodes.adapters.network.measuring"), "MAX_CHOICES", 2)
    bench = Bench(attention, cudnn=0.5e-3)
    for heads in (1, 2, 3):
        bench(*tensors((1, heads, 8, 16)))
    assert bench(*tensors((1, 2, 8, 16))) == bench(*tensors((1, 3, 8, 16))) == ["cudnn"]
    assert len(bench(*tensors((1, 1, 8, 16)))) > 1


def refuse(error):
    def kernel(q, k, v):
        raise error

    return kernel


@pytest.mark.parametrize(
    "broken",
    [
        refuse(RuntimeError("No available kernel")),
        refuse(torch.cuda.OutOfMemoryError("too large")),
        refuse(AssertionError("head size")),
        lambda q, k, v: plain(q, k, v) * 1.05,
        lambda q, k, v: plain(q, k, v) * float("nan"),
    ],
    ids=["refuses", "too_large", "asserts", "wrong", "nan"],
)
def test_a_broken_candidate_is_out(attention, broken, caplog):
    bench = Bench(attention, own=2e-3, cudnn=broken, flash=1e-3)
    with caplog.at_level(logging.INFO):
        assert bench(*tensors())[-1] == "flash"
    assert "cudnn fails" in caplog.text
    alone = Bench(attention, cudnn=broken)
    assert alone(*tensors())[-1] == "comfyui"
    assert alone.measured == 0
    assert alone(*tensors()) == ["comfyui"]


def test_a_kernel_that_fails_later_is_given_up(attention, caplog):
    bench = Bench(attention, cudnn=0.5e-3)
    bench(*tensors())
    run, bench.run = bench.run, lambda name, cost, q, k, v: refuse(RuntimeError("no plan"))(q, k, v)
    assert bench(*tensors()) == ["comfyui"]
    assert "no plan" in caplog.text
    bench.run = run
    assert bench(*tensors()) == ["comfyui"]


def test_too_little_memory_is_for_comfyui_to_see(attention):
    bench = Bench(attention, cudnn=0.5e-3)
    bench(*tensors())
    run, bench.run = bench.run, lambda *_: refuse(torch.cuda.OutOfMemoryError())(*_[2:])
    with pytest.raises(torch.cuda.OutOfMemoryError):
        bench(*tensors())
    bench.run = run
    assert bench(*tensors()) == ["cudnn"]


@pytest.mark.parametrize(
    "asked",
    [
        {"mask": torch.randn(40, 40, generator=torch.Generator().manual_seed(5))},
        {"skip_output_reshape": True},
        {"scale": 0.5},
    ],
    ids=["mask", "skip_output_reshape", "scale"],
)
def test_what_kernels_do_not_do_is_comfyuis(attention, asked):
    bench = Bench(attention, cudnn=0.5e-3)
    assert bench(*tensors(), **asked) == ["comfyui"]
    assert bench.measured == 0


def test_other_lengths_of_k_and_v_are_comfyuis(attention):
    bench = Bench(attention, cudnn=0.5e-3)
    q, k, v = tensors()
    assert bench(q, torch.cat((k, k), dim=2), torch.cat((v, v), dim=2)) == ["comfyui"]


def test_where_gradients_are_wanted_it_is_comfyuis(attention):
    bench = Bench(attention, cudnn=0.5e-3)
    q, k, v = tensors()
    bench.override(bench.comfyui, q.requires_grad_(), k, v, 3, skip_reshape=True).sum().backward()
    assert q.grad is not None
    assert bench.ran == ["comfyui"]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("sage_attention_enabled", True),
        ("flash_attention_enabled", True),
        ("pytorch_attention_enabled", False),  # by the command line, or on a device that it crashes on
    ],
)
def test_a_kernel_of_the_command_line_stays(attention, monkeypatch, question, answer):
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, question, lambda: answer)
    bench = Bench(attention, cudnn=0.5e-3)
    assert bench(*tensors()) == ["comfyui"]


def test_deterministic_runs_measure_nothing(attention):
    bench = Bench(attention, cudnn=0.5e-3)
    torch.use_deterministic_algorithms(True)
    try:
        assert bench(*tensors()) == ["comfyui"]
    finally:
        torch.use_deterministic_algorithms(False)


def test_threads_measure_once(attention):
    q, k, v = tensors()
    together, asked, used = threading.Barrier(4), [], []

    def choose(own, *qkv):
        asked.append(own)
        time.sleep(0.1)  # for the other threads to come
        return lambda *qkv: used.append(qkv)

    override = attention.AttentionOverride(choose)

    def work():
        together.wait()
        with torch.inference_mode():
            override(plain, q, k, v, 3, skip_reshape=True)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(asked), len(used)) == (1, 4)


def test_no_candidates_on_a_cpu(attention):
    with torch.inference_mode():
        assert attention.torch_kernels(*tensors()) == {}
        bench = Bench(attention)
        assert bench(*tensors()) == ["comfyui"]
    assert bench.measured == 0


@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient"])
def test_torchs_kernels_are_plain_attention(attention, name):
    """Whatever the device makes of the wish; afterwards torch's settings are as they were."""

    def settings():
        flags = [getattr(torch.backends.cuda, f"{kind}_sdp_enabled")() for kind in ("flash", "cudnn", "math")]
        return flags, torch._C._get_sdp_priority_order()

    before = settings()
    q, k, v = tensors((2, 3, 300, 64))
    out = attention.torch_attention(name, q, k, v)
    assert out.shape == (2, 300, 192)
    assert (out - plain(q, k, v)).norm() / out.norm() <= 1e-6
    assert settings() == before


def test_the_wished_kernel_goes_first_and_none_is_forbidden(attention):
    from torch.nn.attention import SDPBackend

    with attention._preferring("cudnn"):
        assert torch._C._get_sdp_priority_order()[0] == int(SDPBackend.CUDNN_ATTENTION)
        assert all(
            getattr(torch.backends.cuda, f"{kind}_sdp_enabled")()
            for kind in ("cudnn", "flash", "mem_efficient", "math")
        )


def test_a_gpu_is_asked_which_kernels_take_the_tensors(attention, monkeypatch):
    """With torch's answers for a GPU without cuDNN attention."""
    asked = []

    def answer(name, is_usable):
        def can_use(params):
            first = getattr(SDPBackend, f"{name.upper()}_ATTENTION")
            assert torch._C._get_sdp_priority_order()[0] == int(first)
            asked.append((name, params))
            return is_usable

        monkeypatch.setattr(torch.backends.cuda, f"can_use_{name}_attention", can_use)

    from torch.nn.attention import SDPBackend

    for name, is_usable in (("cudnn", False), ("flash", True), ("efficient", True)):
        answer(name, is_usable)
    monkeypatch.setattr(torch.backends.cuda, "SDPAParams", lambda *params: params)
    q, k, v = (types.SimpleNamespace(device=torch.device("cuda", 1)) for _ in range(3))
    assert list(attention.torch_kernels(q, k, v)) == ["flash", "efficient"]
    assert [name for name, _ in asked] == ["cudnn", "flash", "efficient"]
    assert all(params == (q, k, v, None, 0.0, False, False) for _, params in asked)


def test_a_gpus_clock_is_read_when_all_is_done(attention, monkeypatch):
    """With events of the test's own, which know their time only after the GPU has caught up."""
    clock = {"now": 0.0, "is_done": False, "device": None}

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            assert clock["device"] == torch.device("cuda", 1)
            self.milliseconds = clock["now"]

        def elapsed_time(self, end):
            assert clock["is_done"]
            return end.milliseconds - self.milliseconds

    @contextlib.contextmanager
    def device(which):
        clock["device"] = which
        yield
        clock["device"] = None

    def sleep(cycles):
        assert clock["device"] == torch.device("cuda", 1)
        assert clock["now"] == 0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", sleep)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: clock.update(is_done=True))
    calls = [lambda ms=ms: clock.update(now=clock["now"] + ms) for ms in (2.0, 0.5, 2.0)]
    assert attention.cuda_seconds(calls, torch.device("cuda", 1)) == [0.002, 0.0005, 0.002]


@pytest.fixture
def sage(monkeypatch):
    """A package sageattention that lists how it is called."""
    calls = []

    def sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False, **kwargs):
        calls.append({"tensor_layout": tensor_layout, "is_causal": is_causal, "sm_scale": sm_scale, **kwargs})
        return functional.scaled_dot_product_attention(q, k, v)

    monkeypatch.setitem(sys.modules, "sageattention", types.SimpleNamespace(sageattn=sageattn))
    return calls


SMOOTH = {"tensor_layout": "HND", "is_causal": False, "sm_scale": None, "smooth_k": True}


def test_sage_smooths_k(attention, sage):
    q, k, v = tensors()
    assert torch.equal(attention.sage_attention(q, k, v), plain(q, k, v))
    assert sage == [SMOOTH]


def sample(comfyui, model):
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(1, 256, 32, generator=generator) for _ in range(2))
    latent = {"samples": torch.zeros(1, 16, 8, 12)}
    conds = [[positive, {}]], [[negative, {}]]
    with torch.inference_mode():
        (out,) = comfyui.common_ksampler(model, 0, 3, 5.0, "euler", "simple", *conds, latent)
    return out["samples"]


BLOCKS = 4  # of the small model
FORWARDS = 3  # both branches of guidance in one


def distance(one, other):
    return ((one - other).norm() / other.norm()).item()


@pytest.fixture
def choose(pack):
    return pack("nodes.adapters.network.attention_choice").model_with_attention


@pytest.fixture
def plain_latent(comfyui, model, choose):
    return sample(comfyui, choose(model, "comfyui"))


@pytest.fixture
def cudnn(attention, monkeypatch):
    """The MODEL's measured attention finds a fast kernel, whose calls are listed."""
    bench = Bench(attention, own=1.0, cudnn=0.5)
    # ComfyUI's own kernel moves no clock: the candidates' costs are below nothing.
    bench.seconds_of = lambda calls, device: [call() is None or 1.0 - 0.5 * i for i, call in enumerate(calls)]
    make = attention.attention_override
    monkeypatch.setattr(
        attention, "attention_override", lambda name: bench.override if name == "measured" else make(name)
    )
    return bench


def test_the_loaders_model_measures(comfyui, model, cudnn, plain_latent):
    assert distance(sample(comfyui, model), plain_latent) <= 1e-5
    assert len(cudnn.ran) == FORWARDS * BLOCKS + 2  # the warm-up and a measured call
    cudnn.ran.clear()
    sample(comfyui, model)
    assert cudnn.ran == ["cudnn"] * FORWARDS * BLOCKS


def test_on_a_cpu_the_model_is_as_before(comfyui, model, attention, plain_latent):
    assert torch.equal(sample(comfyui, model), plain_latent)


def test_another_nodes_override_goes_first(comfyui, model, choose, cudnn, sage, plain_latent):
    def theirs(function, *args, **kwargs):
        seen.append(kwargs["transformer_options"]["optimized_attention_override"] is theirs)
        return function(*args, **kwargs)

    seen = []
    for kernel in ("measured", "comfyui"):
        clone = choose(model, kernel)
        clone.model_options["transformer_options"]["optimized_attention_override"] = theirs
        assert torch.equal(sample(comfyui, clone), plain_latent)
    assert seen == [True] * 2 * FORWARDS * BLOCKS
    assert cudnn.ran == []


def test_ours_watches_nothing(pack, comfyui, model, cudnn):
    watched = pack("nodes.adapters.network.transformer").PatchedAttention
    assert not watched(model.model_options["transformer_options"]).is_watched
    seen = []

    def look(args, extra):
        seen.append(watched(args["transformer_options"]).is_watched)
        return extra["original_block"](args)

    clone = model.clone()
    clone.set_model_patch_replace(look, "dit", "single_block", 1)
    sample(comfyui, clone)
    assert seen == [False] * FORWARDS
    assert cudnn.ran


def test_attention_patches_stay(comfyui, model, cudnn, choose):
    def patch(q, k, v, pe, attn_mask, extra_options):
        return {"q": q * 1.5}

    def masked(q, k, v, pe, attn_mask, extra_options):
        mask = torch.zeros(q.shape[2], q.shape[2])
        mask[:, :128] = float("-inf")
        return {"attn_mask": mask}

    for before, runs in ((patch, FORWARDS * BLOCKS + 2), (masked, 0)):
        latents = []
        for kernel in ("measured", "comfyui"):
            clone = choose(model, kernel)
            clone.set_model_patch(before, "attn1_patch")
            latents.append(sample(comfyui, clone))
        assert distance(*latents) <= 1e-5
        assert len(cudnn.ran) == runs
        cudnn.ran.clear()


def test_with_the_cache(pack, comfyui, model, cudnn):
    told = []
    cached = pack("nodes.adapters.sampling.residual_cache").cached_model(model, 1e6, 1, 1, 0, told.append)
    sample(comfyui, cached)
    assert told == ["4 of 6 forwards computed"]
    assert len(cudnn.ran) == 2 * BLOCKS + 1 + 2  # a skipped forward runs its first block


def test_compiled_blocks_measure_as_they_run(pack, comfyui, model, cudnn, plain_latent):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs, **_):
        graphs.append(graph)
        return graph

    compiled = pack("nodes.adapters.network.compilation").compiled_model(model, backend)
    assert distance(sample(comfyui, compiled), plain_latent) <= 1e-5
    assert len(cudnn.ran) == FORWARDS * BLOCKS + 2
    assert len(graphs) == 2
    torch._dynamo.reset()


def test_attention_that_is_compiled_with_its_model_is_comfyuis(pack, cudnn, monkeypatch):
    """As by TorchCompileModel: no measurement and no break in the graph."""
    import comfy.ldm.modules.attention

    kernel = comfy.ldm.modules.attention.attention_pytorch  # a GPU's, which can be compiled
    monkeypatch.setattr("comfy.ldm.flux.math.optimized_attention", kernel)
    torch._dynamo.reset()
    patched = pack("nodes.adapters.network.transformer").PatchedAttention({})
    q, k, v = tensors()
    compiled = torch.compile(lambda q, k, v: patched(q, k, v, None), backend="eager", fullgraph=True)
    with torch.inference_mode():
        assert distance(compiled(q, k, v), plain(q, k, v)) <= 1e-5
        assert cudnn.ran == []
        patched(q, k, v, None)
    assert cudnn.ran
    torch._dynamo.reset()


def test_sage_on_request(pack, comfyui, model, choose, sage, monkeypatch, plain_latent):
    monkeypatch.setattr(pack("nodes.adapters.network.attention_choice"), "missing_kernel", lambda *_: None)
    smooth = choose(model, "sage")
    assert distance(sample(comfyui, smooth), plain_latent) <= 1e-5
    assert sage == [SMOOTH] * FORWARDS * BLOCKS
    assert torch.equal(sample(comfyui, choose(smooth, "comfyui")), plain_latent)  # the last node decides
    assert torch.equal(sample(comfyui, model), plain_latent)


def test_without_sageattention_the_node_says_so(model, choose, monkeypatch):
    monkeypatch.setitem(sys.modules, "sageattention", None)
    with pytest.raises(ValueError, match=r"^sage needs .* install sageattention, or choose measured$"):
        choose(model, "sage")


@pytest.mark.parametrize("kernel", ["cudnn", "flash", "efficient", "sage"])
def test_a_kernel_that_the_device_has_not(model, choose, sage, kernel):
    with pytest.raises(ValueError, match=rf"{kernel} .*this model runs on cpu in float32; choose measured$"):
        choose(model, kernel)


def test_a_kernel_that_the_device_has(pack, model, choose, monkeypatch):
    asked = []

    def has(name, q, k, v):
        asked.append((name, q.shape, q.dtype, q.device))
        return True

    monkeypatch.setattr(pack("nodes.adapters.network.attention_choice"), "has_torch_attention", has)
    clone = choose(model, "flash")
    assert asked == [("flash", (1, 1, 64, 128), torch.float32, model.load_device)]
    assert clone.model_options["transformer_options"]["ovis_attention"] == "flash"
    assert "ovis_attention" not in model.model_options["transformer_options"]


def test_another_model_is_refused(comfyui, choose, tmp_path):
    import comfy.sd

    path = tmp_path / "diffusion_models" / tiny_model.write("comfyui", tmp_path)["model_name"]
    with pytest.raises(ValueError, match="connect the Ovis-Image Loader, or use ComfyUI's --use-sage"):
        choose(comfy.sd.load_diffusion_model(str(path)), "measured")
