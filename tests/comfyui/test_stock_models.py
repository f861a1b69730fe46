"""Stock nodes on our MODEL and around our sampling: patches, guiders, samplers, merges, files."""

import shutil
from pathlib import Path

import pytest
import tiny_model
import torch
from safetensors.torch import load_file, save_file

from ovis_core.autoencoder import Autoencoder, AutoencoderConfig
from ovis_core.files import export
from ovis_core.files.parts import AUTOENCODER

stock = tiny_model.import_by_path("stock_table", Path(__file__).with_name("test_stock_table.py"))
add, distance, outcome, with_model_node = stock.add, stock.distance, stock.outcome, stock.with_model_node

SECOND = "second.safetensors"


@pytest.fixture(scope="module")
def states(server, tmp_path_factory) -> tuple[dict, dict]:
    """Weights of our model and of a second one, which the loaders list as SECOND."""
    other = tmp_path_factory.mktemp("second")
    models = server.base / "models" / "diffusion_models"
    name = tiny_model.write("comfyui", other, seed=1)["model_name"]
    shutil.copy(other / "diffusion_models" / name, models / SECOND)
    return load_file(models / stock.NATIVE), load_file(models / SECOND)


def latent_of(server, model_name):
    workflow = with_model_node(server)
    workflow["1"]["inputs"]["model_name"] = model_name
    return server.latent(workflow, "5")


def latent_of_weights(server, state, name):
    """What weights give that were merged by hand."""
    save_file(state, server.base / "models" / "diffusion_models" / name)
    return latent_of(server, name)


SKIPPED_LAYERS = {"double_layers": "1", "single_layers": "0", "start_percent": 0.0, "end_percent": 1.0}
CACHE = {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False}
PATCHES = {
    "ModelSamplingFlux": {"max_shift": 2.0, "base_shift": 0.5, "width": 1024, "height": 1024},
    "ModelSamplingSD3": {"shift": 3.0},
    "ModelSamplingAuraFlow": {"shift": 1.73},
    "RescaleCFG": {"multiplier": 0.7},
    "CFGZeroStar": {},
    "CFGNorm": {"strength": 1.0},
    "PerpNeg": {"empty_conditioning": ["other", 0], "neg_scale": 0.7},
    "SkipLayerGuidanceDiT": {**SKIPPED_LAYERS, "scale": 3.0, "rescaling_scale": 0.0},
    "EasyCache": CACHE,
    "LazyCache": CACHE,
}


@pytest.mark.parametrize("class_type", PATCHES)
def test_a_model_node_does_what_it_does_on_comfyuis_model(server, outcome, class_type):
    steps = 10 if class_type.endswith("Cache") else 4
    ours, native = (
        server.latent(with_model_node(server, class_type, PATCHES[class_type], n, steps=steps), "5")
        for n in (False, True)
    )
    plain = server.latent(with_model_node(server, steps=steps), "5")
    outcome.equals(class_type, stock.ON_NATIVE, ours, native, 1e-4, unlike=plain)


def test_a_compiled_model(server, outcome):
    # Without a C++ compiler the other backend remains, which traces the same graphs and compiles none.
    backend = "inductor" if shutil.which("c++") else "cudagraphs"
    plain = server.latent(with_model_node(server, steps=1, cfg=1.0), "5")
    workflow = with_model_node(server, "TorchCompileModel", {"backend": backend}, steps=1, cfg=1.0)
    compiled = server.latent(workflow, "5")
    assert backend == "cudagraphs" or not torch.equal(compiled, plain)
    outcome.equals("TorchCompileModel", "the model not compiled", compiled, plain, 1e-4)


def with_parts(server, guider, inputs, native=False, **sampler):
    """SamplerCustomAdvanced in our sampler's place, fed by our scheduler and a guider."""
    workflow = with_model_node(server, native=native, **sampler)
    ours = workflow.pop("5")["inputs"]
    model = ours["model"]
    schedule = {"model": model, "latent_image": ["4", 0], "steps": ours["steps"], "denoise": ours["denoise"]}
    parts = {
        "noise": add(workflow, "noise", "RandomNoise", noise_seed=ours["seed"]),
        "sampler": add(workflow, "sampler", "KSamplerSelect", sampler_name=ours["sampler_name"]),
        "sigmas": add(workflow, "sigmas", "OvisImageScheduler", **schedule),
        "guider": add(workflow, "guider", guider, model=model, **inputs),
    }
    add(workflow, "5", "SamplerCustomAdvanced", **parts, latent_image=["4", 0])
    return workflow


PAIR = {"positive": ["2", 0], "negative": ["3", 0]}
DUAL = {"cond1": ["2", 0], "cond2": ["3", 0], "negative": ["3", 0]}
GUIDERS = {
    "BasicGuider": {"conditioning": ["2", 0]},
    "DualCFGGuider": {**DUAL, "cfg_conds": 3.0, "cfg_cond2_negative": 2.0, "style": "regular"},
    "PerpNegGuider": {**PAIR, "empty_conditioning": ["other", 0], "cfg": 4.0, "neg_scale": 1.0},
}


@pytest.mark.parametrize("class_type", GUIDERS)
def test_stock_guiders(server, outcome, class_type):
    ours, native = (
        server.latent(with_parts(server, class_type, GUIDERS[class_type], n), "5") for n in (False, True)
    )
    plain = server.latent(with_model_node(server), "5")
    outcome.equals(class_type, stock.ON_NATIVE, ours, native, 1e-4, unlike=plain)


def test_the_stock_sampler_is_ours_to_the_bit(server, outcome):
    expected = server.latent(with_model_node(server, cfg=4.0), "5")
    ours, native = (
        server.latent(with_parts(server, "CFGGuider", {**PAIR, "cfg": 4.0}, n), "5") for n in (False, True)
    )
    assert distance(native, ours) <= 1e-4
    names = "CFGGuider, SamplerCustomAdvanced, KSamplerSelect, RandomNoise"
    outcome.equals(names, "Ovis-Image Sampler", ours, expected, 0)


def test_comfyuis_own_model_in_our_sampler_scheduler_and_guider(server, outcome):
    ours, native = (server.latent(with_model_node(server, native=n), "5") for n in (False, True))
    corrections = {"cfg_start": 0.98, "cfg_end": 0.2, "cfg_rescale": 0.5, "cfg_zero_star": True}
    inputs = {**PAIR, "cfg": 4.0, **corrections, "zero_init_steps": 1}
    guided = [server.latent(with_parts(server, "OvisImageGuider", inputs, n), "5") for n in (False, True)]
    assert distance(*guided) <= 1e-4
    assert distance(guided[0], ours) > 1e-3
    text, peer = "works in our sampler, scheduler and guider", "our loader's MODEL"
    outcome.equals("UNETLoader", peer, native, ours, 1e-4, text)


def ksampler(workflow, name, class_type="KSampler", **inputs):
    """A stock sampler with the settings of ours, on ComfyUI's schedule."""
    ours = dict(workflow["5"]["inputs"])
    shared = {key: ours[key] for key in ("model", "steps", "cfg", "sampler_name", "positive", "negative")}
    return add(workflow, name, class_type, **shared, scheduler="simple", **inputs)


def test_stock_samplers_are_ours(server, outcome):
    """At a fixed shift, since a KSampler has the schedule of 1024x1024 only; also stopped in the middle."""
    workflow = stock.with_fixed_shift(server)
    whole = server.latent(workflow, "5")
    seed = workflow["5"]["inputs"]["seed"]
    single = ksampler(workflow, "whole", latent_image=["4", 0], seed=seed, denoise=1.0)
    first = {"add_noise": "enable", "start_at_step": 0, "end_at_step": 2}
    second = {"add_noise": "disable", "start_at_step": 2, "end_at_step": 10000}
    link = ["4", 0]
    for name, part, leftover in (("first", first, "enable"), ("second", second, "disable")):
        part |= {"noise_seed": seed, "return_with_leftover_noise": leftover, "latent_image": link}
        link = ksampler(workflow, name, "KSamplerAdvanced", **part)
    outcome.equals("KSampler", "Ovis-Image Sampler", server.latent(workflow, single[0]), whole, 1e-5)
    text, peer = "works, also stopped with left-over noise", "Ovis-Image Sampler in one run"
    outcome.equals("KSamplerAdvanced", peer, server.latent(workflow, link[0]), whole, 1e-5, text)


def test_our_schedule_in_two_halves_is_the_whole(server, outcome):
    workflow = with_parts(server, "CFGGuider", {**PAIR, "cfg": 5.0})
    whole = server.latent(workflow, "5")
    sampler = workflow["5"]["inputs"]
    add(workflow, "split", "SplitSigmas", sigmas=["sigmas", 0], step=2)
    add(workflow, "first", "SamplerCustomAdvanced", **{**sampler, "sigmas": ["split", 0]})
    second = {"noise": add(workflow, "none", "DisableNoise"), "sigmas": ["split", 1]}
    add(workflow, "second", "SamplerCustomAdvanced", **{**sampler, **second, "latent_image": ["first", 0]})
    halves = server.latent(workflow, "second")
    outcome.equals("SplitSigmas, DisableNoise", "our scheduler in one run", halves, whole, 1e-5)
    assert distance(server.latent(workflow, "first"), whole) > 1e-3


def merged(server, class_type, **ratios):
    workflow = with_model_node(server)
    second = {**workflow["1"]["inputs"], "model_name": SECOND}
    add(workflow, "second", "OvisImageLoader", **second)
    models = {"model1": ["1", 0], "model2": ["second", 0]}
    workflow["5"]["inputs"]["model"] = add(workflow, "merge", class_type, **models, **ratios)
    return server.latent(workflow, "5")


def test_merging_two_models(server, outcome, states):
    first, second = states
    state = {key: 0.3 * first[key] + 0.7 * second[key] for key in first}
    expected = latent_of_weights(server, state, "simple.safetensors")
    assert distance(expected, latent_of(server, SECOND)) > 1e-3
    result = merged(server, "ModelMergeSimple", ratio=0.3)
    plain = server.latent(with_model_node(server), "5")
    outcome.equals("ModelMergeSimple", "weights merged by hand", result, expected, 1e-5, unlike=plain)


def test_merging_two_models_by_blocks(server, outcome, states):
    """FLUX's node fits: our blocks have its names. What it does not name gets img_in's ratio."""
    first, second = states
    inputs = server.get("/object_info/ModelMergeFlux1")["ModelMergeFlux1"]["input"]["required"]
    ratios = {name: 1.0 for name in inputs if name not in ("model1", "model2")}
    parts = {"txt_in.": 0.5, "double_blocks.1.": 0.0, "single_blocks.0.": 0.25, "final_layer.": 0.6}
    assert parts.keys() < ratios.keys()
    state = {}
    for key in first:
        ratio = next((ratio for part, ratio in parts.items() if key.startswith(part)), 1.0)
        state[key] = ratio * first[key] + (1 - ratio) * second[key]
    expected = latent_of_weights(server, state, "blocks.safetensors")
    result = merged(server, "ModelMergeFlux1", **ratios | parts)
    plain = server.latent(with_model_node(server), "5")
    outcome.equals("ModelMergeFlux1", "blocks merged by hand", result, expected, 1e-5, unlike=plain)


def test_saved_parts_load_again_in_both_loaders(server, outcome):
    workflow = {"1": server.graph("comfyui")["1"]}
    parts = {"model": "diffusion_models", "clip": "text_encoders", "vae": "vae"}
    savers = {"model": "ModelSave", "clip": "CLIPSave", "vae": "VAESave"}
    for i, (field, class_type) in enumerate(savers.items()):
        add(workflow, field, class_type, **{field: ["1", i]}, filename_prefix=f"saved/{field}")
    server.run(workflow)
    for field, folder in parts.items():
        (file,) = (server.base / "output" / "saved").glob(f"{field}_*.safetensors")
        file.rename(server.base / "models" / folder / f"saved_{field}.safetensors")
    again = with_model_node(server)
    names = {"model_name": "saved_model", "text_encoder_name": "saved_clip", "vae_name": "saved_vae"}
    again["1"]["inputs"] |= {key: f"{name}.safetensors" for key, name in names.items()}
    whole = with_model_node(server)
    expected, result = (server.latent(graph, "5") for graph in (whole, again))
    pictures = [server.image(server.run(graph)).tobytes() for graph in (whole, again)]
    assert pictures[0] == pictures[1]
    names = "ModelSave, CLIPSave, VAESave"
    outcome.equals(names, "what was saved", result, expected, 0, "load again in our loader")
    unet = {"unet_name": "saved_model.safetensors", "weight_dtype": "default"}
    again["5"]["inputs"]["model"] = add(again, "unet", "UNETLoader", **unet)
    assert distance(server.latent(again, "5"), expected) <= 1e-4


def test_a_saved_checkpoint(server, outcome):
    """With a VAE of full size, the only one that ComfyUI's loader knows."""
    models = server.base / "models"
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(), dtype=torch.bfloat16)
    export.save(AUTOENCODER, autoencoder, models / "vae" / "full.safetensors", "flux")
    workflow = with_model_node(server)
    workflow["1"]["inputs"]["vae_name"] = "full.safetensors"
    workflow["4"]["inputs"].update(width=64, height=64)
    add(workflow, "encoded", "OvisImageVAEEncode", pixels=["6", 0], vae=["1", 2], tile_size=0)
    expected = server.latent(workflow, "encoded")
    parts = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2]}
    add(workflow, "save", "CheckpointSave", **parts, filename_prefix="saved/whole")
    server.run({name: workflow[name] for name in ("1", "save")})
    (file,) = (server.base / "output" / "saved").glob("whole_*.safetensors")
    (models / "checkpoints").mkdir(exist_ok=True)
    file = file.rename(models / "checkpoints" / "whole.safetensors")

    del workflow["save"]
    model = add(workflow, "load", "CheckpointLoaderSimple", ckpt_name=file.name)
    workflow["5"]["inputs"]["model"] = model
    workflow["6"]["inputs"]["vae"] = ["load", 2]
    result = server.latent(workflow, "encoded")
    # ComfyUI's loader takes the model for FLUX and finds none of its text encoders.
    workflow["2"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["load", 1], "text": "x"}}
    assert "clip input is invalid: None" in server.fail(workflow)["exception_message"]
    file.rename(models / "diffusion_models" / file.name)
    assert torch.equal(latent_of(server, file.name), server.latent(with_model_node(server), "5"))
    text = "MODEL and VAE load again; the text encoder is for CLIPSave"
    outcome.equals("CheckpointSave, CheckpointLoaderSimple", "what was saved", result, expected, 1e-4, text)
