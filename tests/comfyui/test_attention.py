"""Which attention kernel computes: the rule, the user's choices before it, and the kernels themselves."""

import sys
import types

import pytest
import tiny_model
import torch
from torch.nn import functional

SHAPE = (2, 3, 40, 16)  # B, H, L, D/H
BLOCKS = 4  # of the small model
FORWARDS = 3  # both branches of guidance in one


@pytest.fixture
def attention(pack, comfyui, monkeypatch):
    """The module, on a ComfyUI that uses torch's attention, as on NVIDIA GPUs."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "pytorch_attention_enabled", lambda: True)
    return pack("nodes.adapters.network.attention")


@pytest.fixture
def new_gpu(attention, monkeypatch):
    """As on a GPU that the rule gives cuDNN's kernel; the names of torch's kernels that ran."""
    monkeypatch.setattr(attention, "has_new_kernels", lambda device: True)
    attention.attention_override.cache_clear()
    ran, compute = [], attention.torch_attention
    monkeypatch.setattr(
        attention, "torch_attention", lambda name, *qkv: ran.append(name) or compute(name, *qkv)
    )
    yield ran
    attention.attention_override.cache_clear()


def tensors(shape=SHAPE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(3)]


def plain(q, k, v, mask=None):
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def distance(one, other):
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize(
    ("kind", "capability", "hip", "is_new"),
    [
        ("cuda", (9, 0), None, True),
        ("cuda", (12, 0), None, True),
        ("cuda", (8, 9), None, False),
        ("cuda", (9, 4), "6.4", False),  # AMD counts otherwise
        ("cpu", None, None, False),
        ("mps", None, None, False),
    ],
)
def test_the_rule_is_the_compute_capability(pack, monkeypatch, kind, capability, hip, is_new):
    kernels = pack("nodes.adapters.network.kernels")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert kernels.has_new_kernels.__wrapped__(torch.device(kind)) == is_new


def test_automatic_is_cudnn_on_new_gpus_and_comfyuis_elsewhere(attention, new_gpu, monkeypatch):
    device = torch.device("cuda")
    assert attention.automatic_kernel(device) == "cudnn"
    monkeypatch.setattr(attention, "has_new_kernels", lambda device: False)
    assert attention.automatic_kernel(device) == "comfyui"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("sage_attention_enabled", True),
        ("flash_attention_enabled", True),
        ("comfy_kitchen_attention_enabled", True),  # of newer versions
        ("pytorch_attention_enabled", False),  # by the command line, or on a device that it crashes on
    ],
)
def test_a_kernel_of_the_command_line_goes_first(attention, new_gpu, monkeypatch, question, answer):
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, question, lambda: answer, raising=False)
    assert attention.automatic_kernel(torch.device("cuda")) == "comfyui"


class Asked:
    """Calls the override as ComfyUI does -> whether ComfyUI's own kernel computed; checks the result."""

    def __init__(self, attention):
        self.override = attention.attention_override("flash")

    def comfyui(self, q, k, v, heads, mask=None, **_):
        self.is_own = True
        assert heads == q.shape[1]
        return plain(q, k, v, mask)

    def __call__(self, q, k, v, **kwargs):
        self.is_own = False
        asked = {"skip_reshape": True, "mask": None, "transformer_options": {}, "_inside_attn_wrapper": True}
        out = self.override(self.comfyui, q, k, v, q.shape[1], **asked | kwargs)
        torch.testing.assert_close(out, plain(q, k, v, kwargs.get("mask")))
        return self.is_own


@torch.inference_mode()
def test_what_kernels_do_not_do_is_comfyuis(attention):
    asked, (q, k, v) = Asked(attention), tensors()
    assert not asked(q, k, v)
    mask = torch.randn(40, 40, generator=torch.Generator().manual_seed(5))
    for kwargs in ({"mask": mask}, {"skip_output_reshape": True}, {"scale": 0.5}):
        assert asked(q, k, v, **kwargs), kwargs
    assert asked(q, torch.cat((k, k), dim=2), torch.cat((v, v), dim=2))


def test_where_gradients_are_wanted_it_is_comfyuis(attention):
    q, k, v = tensors()
    assert Asked(attention)(q.requires_grad_(), k, v)


@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient"])
def test_torchs_kernels_are_plain_attention(attention, monkeypatch, name):
    """Whatever the device makes of the wish; afterwards torch's settings are as they were."""
    from torch.nn.attention import SDPBackend

    def settings():
        kinds = ("flash", "cudnn", "mem_efficient", "math")
        flags = {kind: getattr(torch.backends.cuda, f"{kind}_sdp_enabled")() for kind in kinds}
        return flags, torch._C._get_sdp_priority_order()

    before, seen, compute = settings(), [], functional.scaled_dot_product_attention
    q, k, v = tensors((2, 3, 300, 64))
    with monkeypatch.context() as patch:
        patch.setattr(
            functional, "scaled_dot_product_attention", lambda *qkv: seen.append(settings()) or compute(*qkv)
        )
        out = attention.torch_attention(name, q, k, v)
    ((flags, order),) = seen
    assert order[0] == int(getattr(SDPBackend, f"{name.upper()}_ATTENTION"))
    assert all(flags.values())
    assert settings() == before
    assert out.shape == (2, 300, 192)
    assert distance(out, plain(q, k, v)) <= 1e-6


@pytest.mark.parametrize("is_usable", [True, False])
def test_a_gpu_is_asked_for_a_kernel_that_is_named(attention, monkeypatch, is_usable):
    from torch.nn.attention import SDPBackend

    def can_use(params):
        assert torch._C._get_sdp_priority_order()[0] == int(SDPBackend.FLASH_ATTENTION)
        asked.append(params)
        return is_usable

    asked = []
    empty, gpu = torch.empty, types.SimpleNamespace(type="cuda")
    monkeypatch.setattr(
        torch, "empty", lambda *shape, device, dtype: [types.SimpleNamespace(device=device, dtype=dtype)] * 3
    )
    monkeypatch.setattr(torch.backends.cuda, "can_use_flash_attention", can_use)
    monkeypatch.setattr(torch.backends.cuda, "SDPAParams", lambda *params: params)
    missing = attention.missing_kernel("flash", gpu, torch.bfloat16, 128)
    monkeypatch.setattr(torch, "empty", empty)
    assert (missing is None) == is_usable
    ((q, *_, mask, dropout, causal, gqa),) = asked
    assert (q.device, q.dtype) == (gpu, torch.bfloat16)
    assert (mask, dropout, causal, gqa) == (None, 0.0, False, False)


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


def sample(comfyui, model):
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(1, 40, 32, generator=generator) for _ in range(2))
    latent = {"samples": torch.zeros(1, 16, 8, 12)}
    conds = [[positive, {}]], [[negative, {}]]
    with torch.inference_mode():
        (out,) = comfyui.common_ksampler(model, 0, 3, 5.0, "euler", "simple", *conds, latent)
    return out["samples"]


@pytest.fixture
def choose(pack):
    return pack("nodes.adapters.network.transformer").model_with_attention


@pytest.fixture
def plain_latent(comfyui, model, choose):
    return sample(comfyui, choose(model, "comfyui"))


@pytest.mark.parametrize("name", ["automatic", "measured"])
def test_a_model_without_a_choice_follows_the_rule(comfyui, model, choose, new_gpu, plain_latent, name):
    assert new_gpu == []
    for patcher in (model, choose(model, name)):
        new_gpu.clear()
        assert distance(sample(comfyui, patcher), plain_latent) <= 1e-5
        assert new_gpu == ["cudnn"] * FORWARDS * BLOCKS


def test_on_a_cpu_the_model_is_as_comfyui_has_it(comfyui, model, attention, plain_latent):
    assert torch.equal(sample(comfyui, model), plain_latent)


def test_another_nodes_override_goes_first(comfyui, model, choose, new_gpu, plain_latent):
    def theirs(function, *args, **kwargs):
        seen.append(kwargs["transformer_options"]["optimized_attention_override"] is theirs)
        return function(*args, **kwargs)

    seen = []
    for kernel in ("automatic", "comfyui"):
        clone = choose(model, kernel)
        clone.model_options["transformer_options"]["optimized_attention_override"] = theirs
        assert torch.equal(sample(comfyui, clone), plain_latent)
    assert seen == [True] * 2 * FORWARDS * BLOCKS
    assert new_gpu == []


def test_attention_patches_stay(comfyui, model, new_gpu, choose):
    def patch(q, k, v, pe, attn_mask, extra_options):
        return {"q": q * 1.5}

    def masked(q, k, v, pe, attn_mask, extra_options):
        mask = torch.zeros(q.shape[2], q.shape[2])
        mask[:, :20] = float("-inf")
        return {"attn_mask": mask}

    for before, runs in ((patch, FORWARDS * BLOCKS), (masked, 0)):
        latents = []
        for kernel in ("automatic", "comfyui"):
            clone = choose(model, kernel)
            clone.set_model_patch(before, "attn1_patch")
            latents.append(sample(comfyui, clone))
        assert distance(*latents) <= 1e-5
        assert len(new_gpu) == runs
        new_gpu.clear()


def test_compiled_blocks_have_the_kernel_too(pack, comfyui, model, new_gpu, plain_latent):
    torch._dynamo.reset()
    compiled = pack("nodes.adapters.network.compilation").compiled_model(model, "eager")
    assert distance(sample(comfyui, compiled), plain_latent) <= 1e-5
    assert new_gpu == ["cudnn"] * FORWARDS * BLOCKS
    torch._dynamo.reset()


def test_attention_that_is_compiled_with_its_model_is_comfyuis(attention, new_gpu, monkeypatch):
    """As by TorchCompileModel: no break in the graph."""
    import comfy.ldm.modules.attention

    kernel = comfy.ldm.modules.attention.attention_pytorch  # a GPU's, which can be compiled
    monkeypatch.setattr("comfy.ldm.flux.math.optimized_attention", kernel)
    torch._dynamo.reset()
    patched = attention.PatchedAttention({}, None, None, None)
    q, k, v = tensors()
    compiled = torch.compile(lambda q, k, v: patched(q, k, v, None), backend="eager", fullgraph=True)
    with torch.inference_mode():
        assert distance(compiled(q, k, v), plain(q, k, v)) <= 1e-5
        assert new_gpu == []
        patched(q, k, v, None)
    assert new_gpu
    torch._dynamo.reset()


def test_sage_on_request(pack, comfyui, model, choose, sage, monkeypatch, plain_latent):
    transformer = pack("nodes.adapters.network.transformer")
    monkeypatch.setattr(transformer, "missing_kernel", lambda *_: None)
    smooth = choose(model, "sage")
    assert distance(sample(comfyui, smooth), plain_latent) <= 1e-5
    assert sage == [SMOOTH] * FORWARDS * BLOCKS
    assert torch.equal(sample(comfyui, choose(smooth, "comfyui")), plain_latent)  # the last node decides
    assert torch.equal(sample(comfyui, model), plain_latent)


def test_without_sageattention_the_node_says_so(model, choose, monkeypatch):
    monkeypatch.setitem(sys.modules, "sageattention", None)
    with pytest.raises(ValueError, match=r"^sage needs .* install sageattention, or choose automatic$"):
        choose(model, "sage")


@pytest.mark.parametrize("kernel", ["cudnn", "flash", "efficient", "sage"])
def test_a_kernel_that_the_device_lacks(model, choose, sage, kernel):
    with pytest.raises(ValueError, match=rf"{kernel} .*this model runs on cpu in float32; choose automatic$"):
        choose(model, kernel)


def test_a_kernel_that_the_device_has(pack, model, choose, monkeypatch):
    asked = []
    transformer = pack("nodes.adapters.network.transformer")
    monkeypatch.setattr(transformer, "missing_kernel", lambda *given: asked.append(given))
    clone = choose(model, "flash")
    assert asked == [("flash", model.load_device, torch.float32, 128)]
    assert clone.model_options["transformer_options"]["ovis_attention"] == "flash"
    assert "ovis_attention" not in model.model_options["transformer_options"]


def test_another_model_is_refused(comfyui, choose, tmp_path):
    import comfy.sd

    path = tmp_path / "diffusion_models" / tiny_model.write("comfyui", tmp_path)["model_name"]
    with pytest.raises(ValueError, match="connect the Ovis-Image Loader, or use ComfyUI's --use-sage"):
        choose(comfy.sd.load_diffusion_model(str(path)), "automatic")
