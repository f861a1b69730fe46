"""Stock nodes around ours on the real server: each works, and where ComfyUI's own model is a peer, equals
it.
"""

import copy

import pytest
import torch

NATIVE = "ovis_image_tiny_comfyui.safetensors"  # the file that ComfyUI's own loader takes too


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


def with_model_node(server, class_type, inputs, native=False, **sampler):
    """Our graph with a node between the loader's MODEL and the sampler; `native`: on ComfyUI's own model."""
    workflow = server.graph("comfyui", **{"steps": 4, **sampler})
    source = ["1", 0]
    if native:
        load = {"unet_name": NATIVE, "weight_dtype": "default"}
        workflow["unet"] = {"class_type": "UNETLoader", "inputs": load}
        source = ["unet", 0]
    if class_type:
        workflow["patch"] = {"class_type": class_type, "inputs": {"model": source, **inputs}}
        source = ["patch", 0]
    workflow["5"]["inputs"]["model"] = source
    return workflow


PATCHES = {
    "ModelSamplingFlux": {"max_shift": 2.0, "base_shift": 0.5, "width": 1024, "height": 1024},
    "ModelSamplingSD3": {"shift": 3.0},
    "ModelSamplingAuraFlow": {"shift": 1.73},
    "RescaleCFG": {"multiplier": 0.7},
    "CFGZeroStar": {},
    "CFGNorm": {"strength": 1.0},
    "PerpNeg": {"empty_conditioning": ["3", 0], "neg_scale": 0.7},
    "SkipLayerGuidanceDiT": {
        **{
            "double_layers": "1",
            "single_layers": "0",
            "scale": 3.0,
            "start_percent": 0.0,
            "end_percent": 1.0,
        },
        "rescaling_scale": 0.0,
    },
    "EasyCache": {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False},
    "LazyCache": {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False},
    "DifferentialDiffusion": {},
}
# Idle in this graph: there is no mask to soften, and the negative is the empty prompt already.
IDLE = {"DifferentialDiffusion", "PerpNeg"}


@pytest.mark.parametrize("class_type", PATCHES)
def test_a_model_node_does_what_it_does_on_comfyuis_model(server, class_type):
    steps = 10 if class_type.endswith("Cache") else 4
    inputs = PATCHES[class_type]
    ours = server.latent(with_model_node(server, class_type, inputs, steps=steps), "5")
    native = server.latent(with_model_node(server, class_type, inputs, native=True, steps=steps), "5")
    assert ours.isfinite().all()
    assert distance(ours, native) <= 1e-4
    plain = server.latent(with_model_node(server, None, {}, steps=steps), "5")
    assert (distance(ours, plain) <= 1e-5) == (class_type in IDLE)


def test_comfyuis_own_model_in_our_sampler(server):
    ours, native = (server.latent(with_model_node(server, None, {}, native=n), "5") for n in (False, True))
    assert distance(native, ours) <= 1e-4


GUIDERS = {
    "BasicGuider": {"conditioning": ["2", 0]},
    "DualCFGGuider": {
        **{"cond1": ["2", 0], "cond2": ["3", 0], "negative": ["3", 0], "cfg_conds": 3.0},
        **{"cfg_cond2_negative": 2.0, "style": "regular"},
    },
    "PerpNegGuider": {
        **{
            "positive": ["2", 0],
            "negative": ["3", 0],
            "empty_conditioning": ["3", 0],
            "cfg": 4.0,
            "neg_scale": 1.0,
        }
    },
}


@pytest.mark.parametrize("class_type", GUIDERS)
def test_stock_guiders(server, class_type):
    latents = []
    for native in (False, True):
        workflow = with_model_node(server, None, {}, native)
        ours = workflow.pop("5")["inputs"]
        schedule = {"model": ours["model"], "latent_image": ["4", 0], "steps": 4, "denoise": 1.0}
        nodes = {
            "noise": ("RandomNoise", {"noise_seed": 1}),
            "sampler": ("KSamplerSelect", {"sampler_name": "euler"}),
            "sigmas": ("OvisImageScheduler", schedule),
            "guider": (class_type, {"model": ours["model"], **GUIDERS[class_type]}),
        }
        links = {name: [name, 0] for name in nodes}
        nodes["5"] = ("SamplerCustomAdvanced", {**links, "latent_image": ["4", 0]})
        for name, (node, inputs) in nodes.items():
            workflow[name] = {"class_type": node, "inputs": inputs}
        latents.append(server.latent(workflow, "5"))
    assert distance(*latents) <= 1e-4


CONDITIONING = {
    "ConditioningZeroOut": {"conditioning": ["2", 0]},
    "ConditioningAverage": {
        **{"conditioning_to": ["2", 0], "conditioning_from": ["3", 0], "conditioning_to_strength": 0.5}
    },
    "ConditioningConcat": {"conditioning_to": ["2", 0], "conditioning_from": ["3", 0]},
    "ConditioningCombine": {"conditioning_1": ["2", 0], "conditioning_2": ["3", 0]},
    "ConditioningSetTimestepRange": {"conditioning": ["2", 0], "start": 0.3, "end": 1.0},
    "ConditioningSetArea": {
        "conditioning": ["2", 0],
        "width": 64,
        "height": 64,
        "x": 0,
        "y": 0,
        "strength": 1.0,
    },
    "FluxGuidance": {"conditioning": ["2", 0], "guidance": 3.5},
}


@pytest.mark.parametrize("class_type", CONDITIONING)
def test_conditioning_nodes(server, class_type):
    # The same shift on both, since parts of the schedule are given in per cent: ComfyUI's own model has none.
    patch = "ModelSamplingFlux", {"max_shift": 1.15, "base_shift": 0.5, "width": 1024, "height": 1024}
    latents = []
    for native in (False, True):
        workflow = with_model_node(server, *patch, native)
        workflow["cond"] = {"class_type": class_type, "inputs": CONDITIONING[class_type]}
        workflow["5"]["inputs"]["positive"] = ["cond", 0]
        latents.append(server.latent(workflow, "5"))
    assert latents[0].isfinite().all()
    assert distance(*latents) <= 1e-4
    plain = server.latent(with_model_node(server, *patch), "5")
    assert (distance(latents[0], plain) <= 1e-6) == (class_type == "FluxGuidance")  # harmless: no such input


def picture(workflow):
    """Adds a picture to encode, and a mask over its left half."""
    size = {"width": 128, "height": 192}
    workflow["picture"] = {"class_type": "EmptyImage", "inputs": {**size, "batch_size": 1, "color": 0x3366CC}}
    workflow["half"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 192}}
    workflow["none"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, **size}}
    composite = {"destination": ["none", 0], "source": ["half", 0], "x": 0, "y": 0, "operation": "add"}
    workflow["mask"] = {"class_type": "MaskComposite", "inputs": composite}
    return workflow


@pytest.mark.parametrize("way", ["SetLatentNoiseMask", "VAEEncodeForInpaint", "InpaintModelConditioning"])
def test_inpainting_keeps_what_is_not_masked(server, way):
    workflow = picture(server.graph(steps=4, denoise=0.9))
    encode = {"pixels": ["picture", 0], "vae": ["1", 2]}
    workflow["encode"] = {"class_type": "OvisImageVAEEncode", "inputs": {**encode, "tile_size": 0}}
    inputs = {
        "SetLatentNoiseMask": {"samples": ["encode", 0], "mask": ["mask", 0]},
        "VAEEncodeForInpaint": {**encode, "mask": ["mask", 0], "grow_mask_by": 0},
        "InpaintModelConditioning": {
            **{**encode, "positive": ["2", 0], "negative": ["3", 0], "mask": ["mask", 0], "noise_mask": True}
        },
    }[way]
    workflow["in"] = {"class_type": way, "inputs": inputs}
    if way == "InpaintModelConditioning":
        workflow["5"]["inputs"].update(positive=["in", 0], negative=["in", 1], latent_image=["in", 2])
        start = {
            "class_type": "LatentFromBatch",
            "inputs": {"samples": ["in", 2], "batch_index": 0, "length": 1},
        }
    else:
        workflow["5"]["inputs"]["latent_image"] = ["in", 0]
        start = {
            "class_type": "LatentFromBatch",
            "inputs": {"samples": ["in", 0], "batch_index": 0, "length": 1},
        }
    workflow["start"] = start
    before, after = server.latent(workflow, "start"), server.latent(workflow, "5")
    assert torch.allclose(after[..., 8:], before[..., 8:], atol=1e-4)
    assert (after[..., :8] - before[..., :8]).abs().mean() > 0.1


def test_tiles_upscaling_and_latent_files(server):
    workflow = picture(server.graph(denoise=0.5))
    tiles = {"tile_size": 64, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}
    encode = {"pixels": ["picture", 0], "vae": ["1", 2], **tiles}
    workflow["encode"] = {"class_type": "VAEEncodeTiled", "inputs": encode}
    upscale = {
        "samples": ["encode", 0],
        "upscale_method": "bislerp",
        "width": 192,
        "height": 256,
        "crop": "disabled",
    }
    workflow["up"] = {"class_type": "LatentUpscale", "inputs": upscale}
    workflow["5"]["inputs"]["latent_image"] = ["up", 0]
    workflow["6"] = {
        "class_type": "VAEDecodeTiled",
        "inputs": {"samples": ["5", 0], "vae": ["1", 2], **tiles},
    }
    assert server.image(server.run(workflow)).size == (192, 256)


def test_a_schedule_in_two_halves_is_the_whole(server):
    """KSamplerAdvanced with left-over noise, at the size whose schedule it has; small by a fixed shift."""
    patch = "ModelSamplingFlux", {"max_shift": 1.15, "base_shift": 0.5, "width": 1024, "height": 1024}
    whole = with_model_node(server, *patch, steps=4)
    ours = whole["5"]["inputs"]
    halves = copy.deepcopy(whole)
    shared = {key: ours[key] for key in ("model", "cfg", "sampler_name", "positive", "negative")}
    shared |= {"noise_seed": ours["seed"], "steps": 4, "scheduler": "simple"}
    first = {"add_noise": "enable", "latent_image": ["4", 0], "start_at_step": 0, "end_at_step": 2}
    second = {"add_noise": "disable", "latent_image": ["first", 0], "start_at_step": 2, "end_at_step": 10000}
    for name, part, leftover in (("first", first, "enable"), ("5", second, "disable")):
        inputs = {**shared, **part, "return_with_leftover_noise": leftover}
        halves[name] = {"class_type": "KSamplerAdvanced", "inputs": inputs}
    assert distance(server.latent(halves, "5"), server.latent(whole, "5")) <= 1e-5


def test_saved_models_load_again_in_both_loaders(server):
    """ModelSave, CLIPSave and VAESave, then our loader and ComfyUI's on what they wrote."""
    workflow = {"1": server.graph("authors")["1"]}
    for name, class_type, link in (("m", "ModelSave", 0), ("c", "CLIPSave", 1), ("v", "VAESave", 2)):
        field = {"m": "model", "c": "clip", "v": "vae"}[name]
        workflow[name] = {
            "class_type": class_type,
            "inputs": {field: ["1", link], "filename_prefix": f"saved/{name}"},
        }
    server.run(workflow)
    models = server.base / "models"
    for name, folder in (("m", "diffusion_models"), ("c", "text_encoders"), ("v", "vae")):
        (file,) = (server.base / "output" / "saved").glob(f"{name}_*.safetensors")
        file.rename(models / folder / f"saved_{name}.safetensors")
    again = server.graph("authors")
    names = {"model_name": "saved_m", "text_encoder_name": "saved_c", "vae_name": "saved_v"}
    again["1"]["inputs"].update({key: f"{name}.safetensors" for key, name in names.items()})
    expected = server.latent(server.graph("authors"), "5")
    assert torch.allclose(server.latent(again, "5"), expected, atol=1e-4)
    again["unet"] = {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": "saved_m.safetensors", "weight_dtype": "default"},
    }
    again["5"]["inputs"]["model"] = ["unet", 0]
    assert distance(server.latent(again, "5"), expected) <= 1e-4


def test_merging_models(server):
    """A model merged with itself is itself; with a ratio between two, between the two."""
    workflow = with_model_node(server, None, {})
    merge = {"model1": ["1", 0], "model2": ["1", 0], "ratio": 0.3}
    workflow["merge"] = {"class_type": "ModelMergeSimple", "inputs": merge}
    expected = server.latent(workflow, "5")
    workflow["5"]["inputs"]["model"] = ["merge", 0]
    assert distance(server.latent(workflow, "5"), expected) <= 1e-4
