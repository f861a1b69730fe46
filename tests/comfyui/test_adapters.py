"""Our MODEL, CLIP and VAE beside ComfyUI's own on the same weights, in this process."""

import pytest
import tiny_model
import torch

SIZES = [(16, 16), (24, 42), (16, 64), (64, 16), (7, 9)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return folder, tiny_model.write("comfyui", folder)


@pytest.fixture(scope="module")
def model(pack, models):
    folder, names = models
    path = folder / "diffusion_models" / names["model_name"]
    return pack("nodes.adapters.loading.diffusion_model").load_diffusion_model(path)


@pytest.fixture(scope="module")
def native(comfyui, models):
    import comfy.sd

    folder, names = models
    return comfy.sd.load_diffusion_model(str(folder / "diffusion_models" / names["model_name"]))


@pytest.fixture(scope="module")
def clip(pack, models):
    folder, names = models
    return pack("nodes.adapters.loading.text_encoder").load_text_encoder(
        folder / "text_encoders" / names["text_encoder_name"]
    )


@pytest.fixture(scope="module")
def vae(pack, models):
    folder, names = models
    return pack("nodes.adapters.loading.autoencoder").load_autoencoder(folder / "vae" / names["vae_name"])


def inputs(batch, height, width):
    generator = torch.Generator().manual_seed(height * 100 + width + batch)
    x = torch.randn(batch, 16, height, width, generator=generator)
    context = torch.randn(batch, 256, 32, generator=generator)
    context[:, 40:] = 0
    return x, torch.linspace(0.97, 0.06, batch), context


def distance(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.mark.parametrize(("size", "batch"), [*zip(SIZES, (1, 3, 1, 3, 3), strict=True)])
def test_velocity_equals_comfyuis_flux(model, native, size, batch):
    x, sigma, context = inputs(batch, *size)
    with torch.no_grad():
        ours = model.model.diffusion_model(x, sigma, context)
        theirs = native.model.diffusion_model(x.clone(), sigma, context)
    assert theirs.std() > 0.1
    assert distance(ours, theirs) <= 1e-5


@pytest.mark.parametrize(("size", "batch"), [*zip(SIZES[:4], (3, 1, 3, 1), strict=True)])
def test_bfloat16_is_no_further_from_float32_than_comfyuis_flux(pack, comfyui, models, model, size, batch):
    import comfy.sd

    folder, names = models
    path = folder / "diffusion_models" / names["model_name"]
    ours = pack("nodes.adapters.loading.diffusion_model").load_diffusion_model(path, torch.bfloat16)
    theirs = comfy.sd.load_diffusion_model(str(path), {"dtype": torch.bfloat16})
    x, sigma, context = inputs(batch, *size)
    with torch.no_grad():
        exact = model.model.diffusion_model(x, sigma, context)
        args = x.bfloat16(), sigma, context.bfloat16()
        our_error, their_error = (
            distance(m.model.diffusion_model(args[0].clone(), *args[1:]), exact) for m in (ours, theirs)
        )
    assert our_error <= 1.2 * their_error


def test_the_model_is_comfyuis_in_every_respect(model, native):
    import comfy.model_base
    import comfy.model_patcher

    assert isinstance(model, comfy.model_patcher.ModelPatcher)
    assert isinstance(model.model, comfy.model_base.BaseModel)
    assert type(model.model.latent_format) is type(native.model.latent_format)
    assert model.model_dtype() == native.model_dtype()
    sizes = [comfy.model_management.module_size(m.model.diffusion_model) for m in (model, native)]
    assert sizes[0] == sizes[1] > 10**7
    layers = [m for m in model.model.diffusion_model.modules() if isinstance(m, torch.nn.Linear)]
    assert layers
    assert all(hasattr(layer, "comfy_cast_weights") for layer in layers)


def test_own_sampling_object_is_the_reference_grid_at_1024(model, pack):
    sampling = model.get_model_object("model_sampling")
    flow_sigmas = pack("ovis_core.sampling").flow_sigmas
    import comfy.samplers

    for steps in (1, 4, 8, 20, 50):
        theirs = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
        assert torch.equal(flow_sigmas(steps, 64 * 64), theirs), steps


def test_scheduler_follows_size_and_gives_way_to_model_sampling_nodes(model, pack):
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    adapter = pack("nodes.adapters.sampling.sampler")
    flow_sigmas = pack("ovis_core.sampling").flow_sigmas
    samples = torch.zeros(1, 16, 32, 64)
    assert torch.equal(adapter.schedule(model, samples, 8, 0.5), flow_sigmas(8, 16 * 32, 0.5))
    (patched,) = ModelSamplingFlux().patch(model, 1.15, 0.5, 512, 256)
    assert torch.allclose(adapter.schedule(patched, samples, 8, 1.0), flow_sigmas(8, 16 * 32), atol=1e-6)
    (patched,) = ModelSamplingFlux().patch(model, 3.0, 0.5, 512, 256)
    assert adapter.schedule(patched, samples, 8, 1.0)[4] > flow_sigmas(8, 16 * 32)[4] + 0.01
    assert len(adapter.schedule(patched, samples, 8, 0.0)) == 0


def test_clip_gives_the_cores_states(clip, parts, tokenizer):
    """Compared with core on the same weights; core is compared with diffusers in tests/core."""
    for prompt in ("", 'Poster "A"', "word " * 400):
        states, extra = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))[0]
        assert torch.allclose(states, parts[1]([tokenizer(prompt).ids]), atol=1e-5)
        assert extra["pooled_output"] is None


def test_clip_tokens_are_comfyuis_on_prompts_within_the_budget(clip, comfyui):
    import comfy.text_encoders.ovis

    native = comfy.text_encoders.ovis.OvisTokenizer()
    for prompt in ("", "a cat", 'A “双11” poster: "SALE $9.99"', "海报 // x", "line\nbreak"):
        theirs = [pair[0] for pair in native.tokenize_with_weights(prompt)["qwen3_2b"][0]]
        ours = [pair[0] for pair in clip.tokenize(prompt)["qwen3_2b"][0]]
        assert ours == theirs[: len(ours)], prompt
        assert set(theirs[len(ours) :]) <= {151643}


def test_clip_conveniences(clip, caplog):
    tokens = clip.tokenize("hello", return_word_ids=True)["qwen3_2b"][0]
    assert all(word_id > 0 for *_, word_id in tokens)
    assert "hello" in clip.decode([token for token, *_ in tokens])
    assert clip.tokenizer.untokenize(clip.tokenize("hello")["qwen3_2b"][0])[0][1] == "<|im_start|>"
    clip.tokenize("word " * 400)
    assert "284 of 284 tokens; 155 more were cut off" in caplog.text
    assert clip.tokenizer.report("") == "39 of 284 tokens"
    copy = clip.clone()
    copy.clip_layer(-1)
    copy.encode_from_tokens(copy.tokenize("x"))
    copy.clip_layer(-2)
    with pytest.raises(ValueError, match="remove the CLIP Set Last Layer node"):
        copy.encode_from_tokens(copy.tokenize("x"))


def test_vae_has_everything_that_comfyuis_has(vae, comfyui, tmp_path):
    """Our constructor stands in for ComfyUI's, so a ComfyUI that sets more must be noticed here."""
    import comfy.sd

    config = pytest.importorskip("ovis_core.autoencoder").AutoencoderConfig()
    from ovis_core.autoencoder import Autoencoder

    full_size = Autoencoder(config, dtype=torch.bfloat16).state_dict()
    stock = comfy.sd.VAE(sd=full_size)
    for name, value in vars(stock).items():
        ours = getattr(vae, name)
        if isinstance(value, bool | int | str | torch.dtype | torch.device | tuple | list | type(None)):
            assert ours == value or name == "size", name
    image = torch.rand(1, 64, 64, 3)
    assert vae.encode(image).shape == stock.encode(image).shape == (1, 16, 8, 8)


def test_vae_equals_the_core(vae, parts):
    image = torch.rand(2, 64, 96, 3)
    pixels = image.movedim(-1, 1) * 2 - 1
    latents = vae.encode(image)
    assert torch.allclose(latents, parts[2].encode(pixels), atol=1e-5)
    decoded = vae.decode(latents).movedim(-1, 1)
    assert torch.allclose(decoded, (parts[2].decode(latents) / 2 + 0.5).clamp(0, 1), atol=1e-5)


@torch.inference_mode()  # as ComfyUI's executor runs nodes
def test_tiles_are_close_to_the_whole(vae, pack):
    adapter = pack("nodes.adapters.loading.autoencoder")
    latents = torch.randn(1, 16, 64, 48)
    whole, tiled = adapter.decode(vae, latents, 0), adapter.decode(vae, latents, 256)
    assert whole.shape == tiled.shape == (1, 512, 384, 3)
    # The random network's middle attention sees all of the picture, a tile's only the tile.
    assert (whole - tiled).abs().mean() < 0.1
    assert adapter.decode(vae, latents[..., :8, :8], 1).shape == (1, 64, 64, 3)  # the least is 64
    image = torch.rand(1, 256, 256, 3)
    assert adapter.encode(vae, image, 128).shape == adapter.encode(vae, image, 0).shape == (1, 16, 32, 32)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(None, torch.float32), (torch.bfloat16,) * 2, (torch.float16,) * 2, (torch.float8_e4m3fn,) * 2],
    ids=str,
)
def test_weight_dtypes(pack, models, model, dtype, expected):
    folder, names = models
    path = folder / "diffusion_models" / names["model_name"]
    other = pack("nodes.adapters.loading.diffusion_model").load_diffusion_model(path, dtype)
    assert other.model.diffusion_model.img_in.weight.dtype == expected
    assert other.model.get_dtype_inference() == torch.float32  # what ComfyUI computes in on a CPU
    x, sigma, context = inputs(1, 16, 16)
    with torch.no_grad():
        error = distance(
            other.model.diffusion_model(x, sigma, context), model.model.diffusion_model(x, sigma, context)
        )
    bound = {torch.float32: 0, torch.bfloat16: 0.02, torch.float16: 0.003, torch.float8_e4m3fn: 0.3}[expected]
    assert error <= bound


def scaled_fp8_file(path, state, mark, input_scale):
    """A file as ComfyUI's fp8 conversions have them -> its weights multiplied out."""
    from safetensors.torch import save_file

    scaled, plain = {"scaled_fp8": torch.zeros(mark, dtype=torch.float8_e4m3fn)}, {}
    for key, tensor in state.items():
        scaled[key] = plain[key] = tensor
        if tensor.ndim == 2 and "blocks" in key:
            scale = tensor.abs().max() / 448
            scaled[key] = (tensor / scale).to(torch.float8_e4m3fn)
            scaled[f"{key.removesuffix('weight')}scale_weight"] = scale
            scaled[f"{key.removesuffix('weight')}scale_input"] = torch.tensor(input_scale)
            plain[key] = scaled[key].float() * scale
    save_file(scaled, path)
    return plain


@pytest.mark.parametrize(
    ("mark", "input_scale", "weight_dtype"),
    [(2, 1.0, None), (0, 0.5, None), (0, 1.0, None), (0, 0.5, torch.float8_e4m3fn)],
)
def test_scaled_fp8_stays_fp8_as_in_comfyui(pack, comfyui, models, tmp_path, mark, input_scale, weight_dtype):
    import comfy.sd
    from safetensors.torch import load_file, save_file

    folder, names = models
    state = load_file(folder / "diffusion_models" / names["model_name"])
    plain = scaled_fp8_file(tmp_path / "scaled.safetensors", state, mark, input_scale)
    save_file(plain, tmp_path / "plain.safetensors")
    load = pack("nodes.adapters.loading.diffusion_model").load_diffusion_model
    ours = load(tmp_path / "scaled.safetensors", weight_dtype)
    reference = load(tmp_path / "plain.safetensors")
    stock = comfy.sd.load_diffusion_model(str(tmp_path / "scaled.safetensors"))
    for path in ("double_blocks.0.img_attn.qkv", "single_blocks.1.linear2"):
        layer, peer = (m.model.diffusion_model.get_submodule(path) for m in (ours, stock))
        assert "Quantized" in type(layer.weight.data).__name__
        assert layer._full_precision_mm_config == peer._full_precision_mm_config == (mark == 2)
        scales = [getattr(m, "input_scale", None) for m in (layer, peer)]
        assert (scales[0] is None) == (scales[1] is None) == (input_scale == 1.0)
        assert scales[0] is None or scales[0] == scales[1] == input_scale
        assert torch.equal(layer.weight.dequantize(), peer.weight.dequantize())
    assert ours.model_size() < 0.5 * reference.model_size()
    x, sigma, context = inputs(1, 16, 16)
    with torch.no_grad():
        result = ours.model.diffusion_model(x, sigma, context)
        assert distance(result, reference.model.diffusion_model(x, sigma, context)) < 0.05
        assert distance(result, stock.model.diffusion_model(x.clone(), sigma, context)) <= 1e-5


def test_a_text_encoder_without_tokenizer_uses_comfyuis(clip):
    assert [pair[0] for pair in clip.tokenize("")["qwen3_2b"][0]][:3] == [151644, 872, 198]


def test_names_cannot_be_paths(pack):
    files = pack("nodes.adapters.loading.files")
    for name in ("../secret.safetensors", "/etc/passwd", "C:\\x", "", "nothing/"):
        with pytest.raises(ValueError, match="is not in ComfyUI's models/diffusion_models folders"):
            files.path_of(pack("ovis_core.files.parts").TRANSFORMER, name)


def test_a_stock_lora_patches_our_weights(model, comfyui):
    import comfy.sd

    names = ("single_blocks.1.linear2", "txt_in", "double_blocks.0.txt_mlp.gate_proj")
    weights = {name: model.model.get_submodule(f"diffusion_model.{name}").weight.clone() for name in names}
    lora = {}
    for name, weight in weights.items():
        lora[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(4, weight.shape[1])
        lora[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(weight.shape[0], 4)
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 0.5, 0)
    assert len(patched.patches) == len(names)
    patched.patch_model()
    try:
        for name, weight in weights.items():
            delta = (
                lora[f"diffusion_model.{name}.lora_B.weight"] @ lora[f"diffusion_model.{name}.lora_A.weight"]
            )
            got = model.model.get_submodule(f"diffusion_model.{name}").weight
            assert torch.allclose(got, weight + 0.5 * delta, atol=1e-5)
    finally:
        patched.unpatch_model()
    for name, weight in weights.items():
        assert torch.equal(model.model.get_submodule(f"diffusion_model.{name}").weight, weight)


def test_what_the_loader_lists(pack, comfyui, monkeypatch, tmp_path):
    import folder_paths

    files = pack("nodes.adapters.loading.files")
    core = pack("ovis_core.files.parts")
    root, pipelines = tmp_path / "diffusion_models", tmp_path / "diffusers"
    for name in (
        *("one.safetensors", "two.ckpt", "sub/a.safetensors", "sub/b.safetensors", "sub/config.json"),
        *("sharded/model-00001-of-00002.safetensors", "sharded/model-00002-of-00002.safetensors"),
        *("own/diffusion_pytorch_model.safetensors", "model.safetensors"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name in ("whole/transformer", "nested/whole/transformer", "other/vae"):
        (pipelines / name).mkdir(parents=True)
    folders = {
        "diffusion_models": ([str(root)], {".safetensors", ".ckpt"}),
        "diffusers": ([str(pipelines)], ["folder"]),
    }
    monkeypatch.setattr(
        folder_paths, "folder_names_and_paths", {**folder_paths.folder_names_and_paths, **folders}
    )
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    expected = ["model.safetensors", "one.safetensors", "sub/a.safetensors", "sub/b.safetensors"]
    assert files.model_names() == [*expected, "nested/whole/", "own/", "sharded/", "whole/"]
    assert files.path_of(core.TRANSFORMER, "nested/whole/") == pipelines / "nested" / "whole"
    assert files.path_of(core.TRANSFORMER, "sub/a.safetensors") == root / "sub" / "a.safetensors"
