"""What the MODEL and the VAE say that they need, against what is counted at the full size without data."""

import pytest
import tiny_model
import torch
from torch.nn import functional

Meter = tiny_model.import_by_path("meter", tiny_model.ROOT / "tests" / "bench" / "meter.py").Meter
ROOM = 1.3  # a peak's times that an estimate may be, at most


@pytest.fixture(autouse=True)
def fused_attention(comfyui, monkeypatch):
    """ComfyUI on a GPU with a kernel that writes no table of all pairs of tokens."""
    import comfy.ldm.modules.attention
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "pytorch_attention_flash_attention", lambda: True)
    kernel = comfy.ldm.modules.attention.attention_pytorch
    monkeypatch.setattr("comfy.ldm.flux.math.optimized_attention", kernel)


def peak(run) -> int:
    with torch.no_grad():
        run()  # what is made once is not counted
        with Meter() as meter:
            run()
    return meter.peak_bytes


@pytest.mark.parametrize(
    ("side", "batch"), [(512, 1), (512, 2), (768, 2), (1024, 1), (1280, 1), (1024, 2), (1536, 1)]
)
def test_models_estimate_holds_its_peak(pack, model, monkeypatch, side, batch):
    import comfy.ops

    adapter = pack("nodes.adapters.diffusion_model")
    config = pack("ovis_core.transformer").TransformerConfig()
    factory = {"dtype": torch.bfloat16, "device": "meta"}
    network = adapter.ComfyTransformer(config, comfy.ops.disable_weight_init, **factory)
    monkeypatch.setattr(model.model.diffusion_model, "config", config)
    monkeypatch.setattr(model.model, "get_dtype_inference", lambda: torch.bfloat16)

    x = torch.zeros(batch, 16, side // 8, side // 8, **factory)
    context = torch.zeros(batch, 256, config.context_dim, **factory)
    counted = peak(lambda: network(x, torch.ones(batch, device="meta"), context, transformer_options={}))
    assert counted <= model.model.memory_required([*x.shape]) <= ROOM * counted


def test_without_a_fused_kernel_the_estimate_is_comfyuis(model, monkeypatch):
    import comfy.model_base
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "pytorch_attention_flash_attention", lambda: False)
    monkeypatch.setattr(comfy.model_management, "xformers_enabled", lambda: False)
    shape = (2, 16, 128, 128)
    expected = comfy.model_base.BaseModel.memory_required(model.model, shape)
    assert model.model.memory_required(shape) == expected > 10**9


@pytest.mark.parametrize("side", [512, 1024])
def test_vaes_estimates_hold_their_peaks(pack, side):
    vae = pack("nodes.adapters.autoencoder").OvisImageVAE
    core = pack("ovis_core.autoencoder")

    def attention(q, k, v):
        return functional.scaled_dot_product_attention(q, k, v)[:, 0]

    factory = {"dtype": torch.bfloat16, "device": "meta"}
    network = core.Autoencoder(core.AutoencoderConfig(), torch.nn, attention, **factory)
    latents = torch.zeros(1, 16, side // 8, side // 8, **factory)
    image = torch.zeros(1, 3, side, side, **factory)
    for counted, needed in (
        (peak(lambda: network.decode(latents)), vae.memory_used_decode(None, latents.shape, torch.bfloat16)),
        (peak(lambda: network.encode(image)), vae.memory_used_encode(None, image.shape, torch.bfloat16)),
    ):
        assert 1.2 * counted <= needed <= ROOM * counted
