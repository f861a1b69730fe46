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


@pytest.mark.parametrize(("side", "batch"), [(512, 1), (768, 2), (1024, 1), (1024, 2), (1536, 1)])
def test_models_estimate_holds_its_peak(pack, model, monkeypatch, side, batch):
    run, shape = full_size(pack, model, monkeypatch, side, batch)
    counted = peak(lambda: run({}))
    assert counted <= model.model.memory_required(shape) <= ROOM * counted


@pytest.mark.parametrize(("side", "order"), [(512, 1), (1024, 0), (1536, 1)])
def test_it_holds_what_the_cache_keeps(pack, model, monkeypatch, side, order):
    adapter, core = pack("nodes.adapters.sampling.residual_cache"), pack("ovis_core.residual_cache")
    run, shape = full_size(pack, model, monkeypatch, side, 2)
    cache = adapter.RunCache(core.CacheSettings(1.0, warmup=100, order=order))
    sigmas = iter((0.9, 0.8, 0.7, 0.6))
    options = {pack("nodes.adapters.network.transformer").RESIDUAL_CACHE: cache, "uuids": [0, 1]}

    def evaluate():
        return cache.evaluate(next(sigmas), lambda: run(options))

    with torch.no_grad():
        evaluate()
        with Meter() as meter:
            for _ in range(3):
                evaluate()
    patcher = adapter.cached_model(model, 1.0, 4, 3, order, print)
    monkeypatch.setattr(model.model, "current_patcher", patcher, raising=False)
    assert meter.peak_bytes <= model.model.memory_required(shape) <= ROOM * meter.peak_bytes


def full_size(pack, model, monkeypatch, side, batch):
    """A forward of the full-size network without data, and the latents' shape; the MODEL counts with it."""
    import comfy.ops

    config = pack("ovis_core.transformer").TransformerConfig()
    factory = {"dtype": torch.bfloat16, "device": "meta"}
    transformer = pack("nodes.adapters.network.transformer")
    network = transformer.ComfyTransformer(config, comfy.ops.disable_weight_init, **factory)
    monkeypatch.setattr(model.model.diffusion_model, "config", config)
    monkeypatch.setattr(model.model, "get_dtype_inference", lambda: torch.bfloat16)
    x = torch.zeros(batch, 16, side // 8, side // 8, **factory)
    context = torch.zeros(batch, 256, config.context_dim, **factory)
    sigma = torch.ones(batch, device="meta")
    no_room = {transformer.ROOM: 0}  # for more than is asked for
    return lambda options: network(x, sigma, context, transformer_options=no_room | options), [*x.shape]


@pytest.mark.parametrize(
    ("kind", "batch", "cfg"),
    [("eager", 1, 4.0), ("eager", 3, 1.0), ("compiled", 3, 4.0), ("cached", 1, 1.0), ("cached", 3, 4.0)],
)
def test_a_card_that_streams_weights_has_room_for_guidance_as_one_batch(
    pack, model, monkeypatch, kind, batch, cfg
):
    """As much is free as ComfyUI has left for activations, and then a little less than they take."""
    import comfy.model_management
    import comfy.samplers

    patcher, asked, branches = model.clone(), [], []
    if kind == "compiled":
        runner = pack("nodes.adapters.network.transformer").BLOCK_RUNNER
        options = patcher.model_options["transformer_options"]
        options[runner] = pack("ovis_core.blocks").call_block
    elif kind == "cached":
        patcher = pack("nodes.adapters.sampling.residual_cache").cached_model(model, 1.0, 4, 3, 1, print)
    load = comfy.model_management.load_models_gpu

    def load_models(models, memory_required, minimum_memory_required, **options):
        asked.append((memory_required, minimum_memory_required))
        load(models, memory_required=memory_required, **options)

    def forward(executor, *args, **kwargs):
        branches.append(len(args[-1]["uuids"]))
        return executor(*args, **kwargs)

    def run(free):
        monkeypatch.setattr(type(patcher), "get_free_memory", lambda self, device: free())
        patcher.add_wrapper_with_key("diffusion_model", "test", forward)
        generator = torch.Generator().manual_seed(0)
        conds = [[[torch.randn(1, 40, 32, generator=generator), {}]] for _ in range(2)]
        core = pack("ovis_core.guidance").Guidance(cfg)
        guider = pack("nodes.adapters.sampling.guidance").FlowGuider(patcher, *conds, core)
        noise = torch.randn(batch, 16, 8, 8, generator=generator)
        euler = comfy.samplers.sampler_object("euler")
        with torch.inference_mode():
            guider.sample(noise, torch.zeros_like(noise), euler, torch.linspace(1, 0, 3))
        patcher.remove_wrappers_with_key("diffusion_model", "test")
        given, branches[:] = branches.copy(), []
        return given

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", load_models)
    guided = 1 if cfg == 1.0 else 2
    assert run(lambda: asked[-1][1] + 1) == [guided] * 2
    assert asked[0][0] == asked[0][1]
    kept = pack("nodes.adapters.sampling.memory").FACTOR
    assert set(run(lambda: 0.9 * asked[-1][1] / kept)) == {1}
    assert model.model.asking is None


def test_a_model_of_another_kind_is_joined_as_comfyui_does(pack):
    join = pack("nodes.adapters.sampling.memory")._join
    assert join(lambda *args: args, object(), [], None, None, {})[1:] == ([], None, None, {})


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
    vae = pack("nodes.adapters.loading.autoencoder").OvisImageVAE
    core = pack("ovis_core.autoencoder")

    def attention(q, k, v, pe):
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
