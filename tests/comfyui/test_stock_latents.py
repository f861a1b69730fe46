"""Stock nodes on our LATENT, VAE and pictures: masks, outpainting, tiles, sizes, files."""

from pathlib import Path

import pytest
import tiny_model
import torch
from PIL import Image

stock = tiny_model.import_by_path("stock_table", Path(__file__).with_name("test_stock_table.py"))
add, outcome, with_fixed_shift = stock.add, stock.outcome, stock.with_fixed_shift

SIZE = {"width": 128, "height": 192}
VAE = {"vae": ["1", 2]}
KEPT = "keeps what is not masked"


def column(workflow, name, under, x, value):
    """Adds a column of 32 pixels to a mask -> the mask."""
    source = add(workflow, f"{name}_part", "SolidMask", value=value, width=32, height=SIZE["height"])
    return add(workflow, name, "MaskComposite", destination=under, source=source, x=x, y=0, operation="add")


def with_picture(workflow, soft=0.0):
    """Adds a picture, encoded, and a mask over its left half, with a soft column of 32 pixels behind it."""
    picture = add(workflow, "picture", "EmptyImage", **SIZE, batch_size=1, color=0x3366CC)
    add(workflow, "encoded", "OvisImageVAEEncode", pixels=picture, **VAE, tile_size=0)
    mask = add(workflow, "none", "SolidMask", **SIZE, value=0.0)
    for name, x, value in (("first", 0, 1.0), ("second", 32, 1.0), ("mask", 64, soft)):
        mask = column(workflow, name, mask, x, value)
    return workflow


def split(latents, pixels):
    """A latent left and right of a column of the picture."""
    return latents[..., : pixels // 8], latents[..., pixels // 8 :]


PIXELS = {"pixels": ["picture", 0], "mask": ["mask", 0], **VAE}
MASKING = {
    "SetLatentNoiseMask": {"samples": ["encoded", 0], "mask": ["mask", 0]},
    "VAEEncodeForInpaint": {**PIXELS, "grow_mask_by": 0},
    "InpaintModelConditioning": {**PIXELS, "positive": ["2", 0], "negative": ["3", 0], "noise_mask": True},
}


@pytest.mark.parametrize("class_type", MASKING)
def test_inpainting_keeps_what_is_not_masked(server, outcome, class_type):
    latents = []
    for native in (False, True):
        workflow = with_picture(with_fixed_shift(server, native, denoise=0.9))
        add(workflow, "in", class_type, **MASKING[class_type])
        inputs = {"latent_image": ["in", 0]}
        if class_type == "InpaintModelConditioning":
            inputs = {"positive": ["in", 0], "negative": ["in", 1], "latent_image": ["in", 2]}
        workflow["5"]["inputs"] |= inputs
        latents.append(server.latent(workflow, "5"))
    assert stock.distance(*latents) <= 1e-4
    # VAEEncodeForInpaint encodes the picture with the masked part greyed, which is felt all over.
    before = server.latent(workflow, "in" if class_type == "VAEEncodeForInpaint" else "encoded")
    changed, kept = split(latents[0], 64)
    assert (changed - split(before, 64)[0]).abs().mean() > 0.1
    peer = "the encoded picture outside the mask"
    outcome.equals(class_type, peer, kept, split(before, 64)[1], 1e-5, KEPT)


def test_a_soft_mask(server, outcome):
    """DifferentialDiffusion lets a soft part go in some of the steps, the rest keeps as hard as ever."""
    latents = []
    for native in (False, True):
        workflow = with_picture(with_fixed_shift(server, native, denoise=0.9, steps=8), soft=0.8)
        mask = {"samples": ["encoded", 0], "mask": ["mask", 0]}
        plain = dict(workflow["5"]["inputs"], latent_image=add(workflow, "in", "SetLatentNoiseMask", **mask))
        model = add(workflow, "soft", "DifferentialDiffusion", model=plain["model"], strength=1.0)
        workflow["5"]["inputs"] = {**plain, "model": model}
        latents.append(server.latent(workflow, "5"))
    before = server.latent(workflow, "encoded")
    kept, start = (split(latent, 96)[1] for latent in (latents[0], before))
    assert stock.distance(kept, start) <= 1e-5
    change = (latents[0] - before).abs().mean(dim=(0, 1, 2))
    assert 0.01 < change[8:12].mean() < change[:8].mean()
    workflow["5"]["inputs"] = plain
    unlike = server.latent(workflow, "5")
    outcome.equals("DifferentialDiffusion", stock.ON_NATIVE, *latents, 1e-4, unlike=unlike)


def test_outpainting(server, outcome):
    workflow = with_picture(with_fixed_shift(server))
    borders = {"left": 64, "top": 0, "right": 0, "bottom": 0, "feathering": 0}
    padded = add(workflow, "pad", "ImagePadForOutpaint", image=["picture", 0], **borders)
    add(workflow, "wide", "OvisImageVAEEncode", pixels=padded, **VAE, tile_size=0)
    masked = add(workflow, "in", "SetLatentNoiseMask", samples=["wide", 0], mask=["pad", 1])
    workflow["5"]["inputs"]["latent_image"] = masked
    before, after = (server.latent(workflow, name) for name in ("wide", "5"))
    assert before.shape[-1] == (SIZE["width"] + 64) // 8
    added, kept = split(after, 64)
    assert (added - split(before, 64)[0]).abs().mean() > 0.1
    peer = "the encoded picture inside the border"
    outcome.equals("ImagePadForOutpaint", peer, kept, split(before, 64)[1], 1e-5, KEPT)


TILES = {"tile_size": 64, "overlap": 16, "temporal_size": 64, "temporal_overlap": 8}


def test_tiles(server, outcome):
    workflow = with_picture(with_fixed_shift(server))
    sampled = {"samples": ["5", 0], **VAE}
    stock_picture = add(workflow, "decoded", "VAEDecodeTiled", **sampled, **TILES)
    picture = add(workflow, "ours", "OvisImageVAEDecode", **sampled, tile_size=64)
    latents = [server.latent(*encode(workflow, image)) for image in (stock_picture, picture)]
    outcome.equals("VAEDecodeTiled", "Ovis-Image VAE Decode with tiles", *latents, 0)
    again = {"pixels": picture, **VAE}
    add(workflow, "stock_tiles", "VAEEncodeTiled", **again, **TILES)
    add(workflow, "tiles", "OvisImageVAEEncode", **again, tile_size=64)
    latents = [server.latent(workflow, name) for name in ("stock_tiles", "tiles")]
    whole = server.latent(*encode(workflow, picture))
    outcome.equals("VAEEncodeTiled", "Ovis-Image VAE Encode with tiles", *latents, 0, unlike=whole)


def encode(workflow, image):
    """The graph with a picture encoded whole, and the node that does it."""
    add(workflow, "whole", "OvisImageVAEEncode", pixels=image, **VAE, tile_size=0)
    return workflow, "whole"


def test_stock_decoder_and_encoder(server, outcome):
    workflow = with_fixed_shift(server)
    image = add(workflow, "stock", "VAEDecode", samples=["5", 0], **VAE)
    latents = [server.latent(*encode(workflow, source)) for source in (image, ["6", 0])]
    outcome.equals("VAEDecode", "Ovis-Image VAE Decode", *latents, 0)
    add(workflow, "encoded", "VAEEncode", pixels=image, **VAE)
    latents = [server.latent(workflow, "encoded"), latents[1]]
    outcome.equals("VAEEncode", "Ovis-Image VAE Encode", *latents, 0)


def test_an_upscaled_latent_is_sampled_again(server, outcome):
    workflow = with_fixed_shift(server)
    size = {"upscale_method": "nearest-exact", "width": 256, "height": 384, "crop": "disabled"}
    up = add(workflow, "up", "LatentUpscale", samples=["5", 0], **size)
    inputs = {**workflow["5"]["inputs"], "latent_image": up, "denoise": 0.5}
    add(workflow, "again", "OvisImageSampler", **inputs)
    first, larger, again = (server.latent(workflow, name) for name in ("5", "up", "again"))
    workflow["6"]["inputs"]["samples"] = ["again", 0]
    assert server.image(server.run(workflow)).size == (256, 384)
    assert stock.distance(again, larger) > 1e-3
    expected = first.repeat_interleave(2, -1).repeat_interleave(2, -2)
    outcome.equals("LatentUpscale", "each number repeated", larger, expected, 0, "works, and samples again")


def test_a_scaled_picture_is_encoded_and_sampled(server, outcome):
    workflow = with_fixed_shift(server)
    size = {"upscale_method": "nearest-exact", "width": 256, "height": 384, "crop": "disabled"}
    scaled = add(workflow, "scale", "ImageScale", image=["6", 0], **size)
    small = server.image(server.run(workflow))
    workflow["7"]["inputs"]["images"] = scaled
    large = server.image(server.run(workflow))
    expected = small.resize(large.size, Image.Resampling.NEAREST)
    pixels = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in (large, expected)]
    latent = add(workflow, "encoded", "OvisImageVAEEncode", pixels=scaled, **VAE, tile_size=0)
    inputs = {**workflow["5"]["inputs"], "latent_image": latent, "denoise": 0.5}
    add(workflow, "again", "OvisImageSampler", **inputs)
    assert server.latent(workflow, "again").shape == (1, 16, 48, 32)
    text = "works, encodes and samples again"
    outcome.equals("ImageScale", "the picture scaled by Pillow", *(p.float() for p in pixels), 0, text)


def test_a_latent_saved_and_loaded(server, outcome):
    workflow = with_fixed_shift(server)
    expected = server.latent(workflow, "5")
    saved = max((server.base / "output").glob("test_*.latent"))
    saved.rename(server.base / "input" / "saved.latent")
    loaded = {"load": {"class_type": "LoadLatent", "inputs": {"latent": "saved.latent"}}}
    result = server.latent(loaded, "load")
    workflow["6"]["inputs"]["samples"] = ["5", 0]
    names = "SaveLatent, LoadLatent"
    outcome.equals(names, "what was saved", result, expected, 0, "load again")
    picture = server.image(server.run(workflow)).tobytes()
    workflow |= loaded
    workflow["6"]["inputs"]["samples"] = ["load", 0]
    assert server.image(server.run(workflow)).tobytes() == picture


def test_empty_latents_of_other_models_become_ours(server, outcome):
    workflow = with_fixed_shift(server)
    expected = server.latent(workflow, "5")
    workflow["4"] = {"class_type": "EmptyLatentImage", "inputs": {**SIZE, "batch_size": 1}}
    outcome.equals("EmptyLatentImage", "Ovis-Image Empty Latent", server.latent(workflow, "5"), expected, 0)
