"""Makes the same networks in three implementations: ours, diffusers' and ComfyUI's own."""

import math
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest import mock

import torch

sys.path.append(os.environ["COMFYUI_PATH"])
sys.path.append(str(Path(__file__).resolve().parents[1]))
from comfy.cli_args import args

args.cpu, args.use_pytorch_cross_attention = True, True
import comfy.k_diffusion.sampling  # noqa: E402
import comfy.ldm.flux.model  # noqa: E402
import comfy.ldm.modules.diffusionmodules.model  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.samplers  # noqa: E402
import pack  # noqa: E402
import tiny_model  # noqa: E402
from diffusers import (  # noqa: E402
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    OvisImageTransformer2DModel,
)
from gpu_models import (  # noqa: E402
    native_model,
    no_rotary_table,
    our_model,
)
from weights import random_weights  # noqa: E402

from ovis_core.autoencoder import Autoencoder, AutoencoderConfig  # noqa: E402
from ovis_core.files import layouts, parts  # noqa: E402
from ovis_core.guidance import Guidance  # noqa: E402
from ovis_core.latents import image_ids, pack_latents, text_ids, unpack_latents  # noqa: E402
from ovis_core.lean_blocks import lean_blocks  # noqa: E402
from ovis_core.sampling import flow_sigmas, guided, sample_euler, shift_mu  # noqa: E402
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
    """Makes a forward of each on the same input; height and width in latent pixels."""
    factory = {"device": device, "dtype": dtype}
    ours = OvisImageTransformer(config, blocks=lean_blocks(), **factory)
    settings = parts.transformer_to_diffusers(config)
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
    numbers = {sum(p.numel() for p in network.parameters()) for network in (ours, theirs, native)}
    assert len(numbers) == 1, "not the same network"
    if device != "meta":
        shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
        weights = random_weights(config, layouts, shapes, device, dtype)
        theirs.load_state_dict(weights.diffusers)
        for network in (ours, native):
            network.load_state_dict(weights.ours)

    torch.manual_seed(0)
    x = torch.randn(batch, 16, height, width, **factory)
    context = torch.randn(batch, 256, config.context_dim, **factory)
    sigma = torch.full((batch,), 0.75, device=device)
    tokens = pack_latents(x)
    ids = {"img_ids": image_ids(height, width).to(device), "txt_ids": text_ids(256).to(device)}
    packed = {"hidden_states": tokens, "encoder_hidden_states": context, "timestep": sigma, **ids}
    return {
        "ours": lambda: ours(x, sigma, context),
        "diffusers": lambda: unpack_latents(theirs(**packed).sample, height, width),
        "ComfyUI": lambda: native(x, sigma, context, None, None),
    }


def tabulated(
    config: TransformerConfig, batch: int, height: int, width: int, has_room: bool = False
) -> Forward:
    """Makes a forward as in the pack's sampling runs, modulation from a table; bfloat16 without data.

    has_room: for single blocks that take all tokens at once; else they work in parts.
    """
    factory = {"device": "meta", "dtype": torch.bfloat16}
    transformer = pack.comfy_transformer
    network = transformer.ComfyTransformer(config, comfy.ops.disable_weight_init, **factory)
    x = torch.randn(batch, 16, height, width, **factory)
    context = torch.randn(batch, 256, config.context_dim, **factory)
    sigma = torch.full((batch,), 0.75, device="meta")
    schedule = pack.modulation.Schedule((0.75,), "the same weights", network)
    options = {pack.modulation.SCHEDULE: schedule, transformer.ROOM: math.inf if has_room else 0}

    def forward() -> torch.Tensor:
        # Sigma is read for the table, as on a GPU, and has no value here.
        with mock.patch.object(torch.Tensor, "tolist", lambda sigma: [0.75] * len(sigma)):
            return network(x, sigma, context, transformer_options=options)

    return forward


def no_table(_: None) -> AbstractContextManager:
    """Runs the modulation layers in every forward."""
    return mock.patch.object(pack.modulation.ModulationTable, "rows", return_value=None)


def whole_blocks(_: None) -> AbstractContextManager:
    """Makes single blocks take all their tokens at once."""
    return mock.patch.object(pack.comfy_transformer.ComfyTransformer, "num_parts", return_value=1)


def textbook_blocks(_: None) -> AbstractContextManager:
    """Blocks as the textbook has them: the table of modulation is not used."""
    return mock.patch.object(pack.lean_blocks, "is_inference", return_value=False)


# Steps in ComfyUI with one saving left out each.
ABLATIONS = {
    "single blocks in parts": whole_blocks,
    "lean blocks": textbook_blocks,
    "the table of modulation": no_table,
    "a rotary table kept for a size": no_rotary_table,
}


def comfyui_run(name: str, steps: int, **guidance: float) -> None:
    """Runs guided Euler steps by ComfyUI's sampler with a small network, "ours" or "ComfyUI"'s."""
    model = _comfyui_model(name)
    conds = [[[torch.randn(1, 256, SMALL.context_dim), {}]] for _ in range(2)]
    if name == "ours" or guidance:
        guider = pack.guidance.FlowGuider(model, *conds, Guidance(5.0, **guidance))
    else:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(*conds)
        guider.set_cfg(5.0)
    noise = torch.randn(1, 16, 16, 16)
    euler, sigmas = comfy.samplers.sampler_object("euler"), torch.linspace(1, 0, steps + 1)
    # A flag that is read a step late has arrived: the host does not wait for it.
    late = lambda flag: bool(flag._flag.numpy())  # noqa: E731
    with mock.patch.object(pack.checks.LateFlag, "__bool__", late), torch.inference_mode():
        guider.sample(noise, torch.zeros_like(noise), euler, sigmas, disable_pbar=True, seed=0)


@cache
def _comfyui_model(name: str):
    ours = OvisImageTransformer(SMALL, device="meta")
    shapes = {key: tensor.shape for key, tensor in ours.state_dict().items()}
    weights = random_weights(SMALL, layouts, shapes, "cpu", torch.float32)
    return our_model(SMALL, weights) if name == "ours" else native_model(weights)


def decoders(height: int, width: int) -> dict[str, Forward]:
    """Makes a decoding by each FLUX autoencoder, bfloat16 without data; height and width in latent pixels."""
    factory = {"device": "meta", "dtype": torch.bfloat16}
    config = AutoencoderConfig()
    ours = Autoencoder(config, **factory)
    settings = parts.autoencoder_to_diffusers(config)
    settings.pop("_class_name")
    finest = config.channels[0]
    with torch.device("meta"):
        theirs = AutoencoderKL(**settings).to(torch.bfloat16)
        native = comfy.ldm.modules.diffusionmodules.model.Decoder(
            ch=finest,
            out_ch=3,
            ch_mult=[channels // finest for channels in config.channels],
            num_res_blocks=config.num_res_blocks,
            attn_resolutions=[],
            in_channels=3,
            resolution=256,
            z_channels=config.latent_channels,
        ).to(torch.bfloat16)
    latents = torch.zeros(1, config.latent_channels, height, width, **factory)
    return {
        "ours": lambda: ours.decode(latents),
        "diffusers": lambda: theirs.decode(latents).sample,
        "ComfyUI": lambda: native(latents),
    }


def samplers(steps: int) -> dict[str, Forward]:
    """Makes guided Euler steps by each sampler on the CPU, with a network that costs nothing."""
    x = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    num_tokens = 64
    sigmas = flow_sigmas(steps, num_tokens)
    velocity = guided(lambda x, sigma: 0.5 * x, lambda x, sigma: 0.4 * x, Guidance(5.0))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    grid = torch.linspace(1, 1 / steps, steps).tolist()

    def theirs() -> torch.Tensor:
        latents = x
        scheduler.set_timesteps(sigmas=grid, mu=shift_mu(num_tokens))
        scheduler.set_begin_index(0)  # as the pipeline does
        for t in scheduler.timesteps:
            latents = scheduler.step(velocity(latents, t[None]), t, latents, return_dict=False)[0]
        return latents

    def native() -> torch.Tensor:
        def denoise(x, sigma):
            return x - sigma[:, None, None, None] * velocity(x, sigma)

        return comfy.k_diffusion.sampling.sample_euler(denoise, x, sigmas, disable=True)

    return {
        "ours": lambda: sample_euler(velocity, x, sigmas),
        "diffusers": theirs,
        "ComfyUI": native,
    }
