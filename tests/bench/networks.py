"""The same network in three implementations: ours, diffusers' and ComfyUI's own."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

sys.path.append(os.environ["COMFYUI_PATH"])
sys.path.append(str(Path(__file__).resolve().parents[1]))
from comfy.cli_args import args

args.cpu, args.use_pytorch_cross_attention = True, True
import comfy.ldm.flux.model  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.ops  # noqa: E402
import tiny_model  # noqa: E402
from diffusers import OvisImageTransformer2DModel  # noqa: E402

from ovis_core.latents import image_ids, pack_latents, text_ids  # noqa: E402
from ovis_core.transformer import OvisImageTransformer, TransformerConfig  # noqa: E402

PEERS = ("diffusers", "ComfyUI")
FULL = TransformerConfig()
# Heads of 128 and their rotary dimensions as in the full model.
SMALL = replace(
    tiny_model.TRANSFORMER, hidden_size=384, num_heads=3, depth=2, depth_single_blocks=3, mlp_size=1536
)

Forward = Callable[[], torch.Tensor]


def forwards(
    config: TransformerConfig, batch: int, height: int, width: int, device: str, dtype: torch.dtype
) -> dict[str, Forward]:
    """One forward of each on the same input; height and width in latent pixels."""
    factory = {"device": device, "dtype": dtype}
    ours = OvisImageTransformer(config, **factory)
    settings = config.to_diffusers()
    class_name = settings.pop("_class_name")
    with torch.device(device):
        theirs = OvisImageTransformer2DModel(**settings)
        for parameter in theirs.parameters():
            parameter.data = parameter.data.to(dtype)
    assert class_name == type(theirs).__name__
    detected = comfy.model_detection.detect_unet_config(ours.state_dict(), "")
    detected.pop("image_model")
    operations = comfy.ops.disable_weight_init
    native = comfy.ldm.flux.model.Flux(operations=operations, **factory, **detected)
    if device != "meta":
        native.load_state_dict(ours.state_dict())
    numbers = {sum(p.numel() for p in network.parameters()) for network in (ours, theirs, native)}
    assert len(numbers) == 1, "not the same network"

    x = torch.zeros(batch, 16, height, width, **factory)
    context = torch.zeros(batch, 256, config.context_dim, **factory)
    sigma = torch.ones(batch, device=device)
    tokens = pack_latents(x)
    ids = {"img_ids": image_ids(height, width), "txt_ids": text_ids(256)}
    packed = {"hidden_states": tokens, "encoder_hidden_states": context, "timestep": sigma, **ids}
    return {
        "ours": lambda: ours(x, sigma, context),
        "diffusers": lambda: theirs(**packed).sample,
        "ComfyUI": lambda: native(x, sigma, context, None, None),
    }
