"""Wraps the core's autoencoder into a ComfyUI VAE."""

from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.model import vae_attention
from torch import Tensor

from ....ovis_core.autoencoder import Autoencoder, AutoencoderConfig
from ....ovis_core.files.checkpoint import Checkpoint, open_checkpoint
from ....ovis_core.files.parts import AUTOENCODER
from ....ovis_core.latents import LATENT_CHANNELS, VAE_FACTOR
from ..sampling.checks import check_finite

# Bytes of activations per image pixel and byte of dtype. 512 and 640 are counted at the full size (a test
# counts again); a quarter more is for the workspace of kernels. ComfyUI asks for 1767 and 2178.
ENCODE_BYTES = 640
DECODE_BYTES = 800
MIN_TILE = 64  # image pixels
AMD_FACTOR = 2.73


class OvisImageVAE(comfy.sd.VAE):
    """comfy.sd.VAE around a network that is already built.

    Its own constructor builds the network from a state dict, for full-size FLUX encoders only; so this sets
    what that one would set for FLUX's VAE, and a test compares the two.
    """

    def __init__(self, config: AutoencoderConfig, state: dict[str, Tensor], disable_dynamic: bool = False):
        self.latent_channels = config.latent_channels
        self.latent_dim = 2
        self.output_channels = 3
        self.downscale_ratio = self.upscale_ratio = VAE_FACTOR
        self.downscale_index_formula = self.upscale_index_formula = None
        self.process_input = lambda image: image * 2.0 - 1.0
        self.process_output = lambda image: image.add_(1.0).div_(2.0).clamp_(0.0, 1.0)
        self.working_dtypes = [torch.bfloat16, torch.float32]
        self.pad_channel_value = self.extra_1d_channel = self.format_encoded = self.size = None
        self.disable_offload = self.not_video = self.handles_tiling = False
        self.crop_input = True
        self.audio_sample_rate = 44100

        self.device = comfy.model_management.vae_device()
        self.output_device = comfy.model_management.intermediate_device()
        self.vae_dtype = comfy.model_management.vae_dtype(self.device, self.working_dtypes)
        network = Autoencoder(config, comfy.ops.disable_weight_init, _attention, dtype=self.vae_dtype)
        self.first_stage_model = network.eval()
        comfy.model_management.archive_model_dtypes(self.first_stage_model)
        patcher_class = (
            comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
        )
        self.patcher = patcher_class(
            self.first_stage_model,
            load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device(),
        )
        self.first_stage_model.load_state_dict(state, strict=False, assign=self.patcher.is_dynamic())
        self.model_size()

    def memory_used_encode(self, shape: tuple[int, ...], dtype: torch.dtype) -> float:
        """Estimates the bytes for encoding an image (B, 3, height, width), one of the batch at a time."""
        return _memory(ENCODE_BYTES, shape[2] * shape[3], dtype)

    def memory_used_decode(self, shape: tuple[int, ...], dtype: torch.dtype) -> float:
        """Estimates the bytes for decoding latents (B, C, H, W), one of the batch at a time."""
        return _memory(DECODE_BYTES, shape[2] * shape[3] * VAE_FACTOR**2, dtype)


def _memory(bytes_per_pixel: int, num_pixels: int, dtype: torch.dtype) -> float:
    factor = AMD_FACTOR if comfy.model_management.is_amd() else 1.0
    return bytes_per_pixel * num_pixels * comfy.model_management.dtype_size(dtype) * factor


def _attention(q: Tensor, k: Tensor, v: Tensor, pe: None) -> Tensor:
    """Calls ComfyUI's attention for autoencoders: (B, 1, L, C) -> (B, L, C), sliced when memory is short."""
    images = (tensor[:, 0].transpose(1, 2)[..., None] for tensor in (q, k, v))  # (B, C, L, 1)
    return vae_attention()(*images)[..., 0].transpose(1, 2)


def load_autoencoder(path: Path, disable_dynamic: bool = False) -> OvisImageVAE:
    """Loads a VAE from a file or folder. Raises ValueError as `open_checkpoint` does."""
    return autoencoder_of(open_checkpoint(path, AUTOENCODER), disable_dynamic)


def autoencoder_of(
    checkpoint: Checkpoint[AutoencoderConfig, Autoencoder], disable_dynamic: bool = False
) -> OvisImageVAE:
    """Puts a checked autoencoder into a VAE."""
    vae = OvisImageVAE(checkpoint.config, checkpoint.read(comfy.utils.load_torch_file), disable_dynamic)
    vae.patcher.cached_patcher_init = (_load_patcher, (checkpoint.path,))
    return vae


def _load_patcher(path: Path, disable_dynamic: bool = False):
    return load_autoencoder(path, disable_dynamic).patcher


def empty_latent(width: int, height: int, batch_size: int) -> dict:
    """Makes a LATENT of zeros for a picture of width x height pixels."""
    shape = (batch_size, LATENT_CHANNELS, height // VAE_FACTOR, width // VAE_FACTOR)
    device, dtype = comfy.model_management.intermediate_device(), comfy.model_management.intermediate_dtype()
    return {"samples": torch.zeros(shape, device=device, dtype=dtype), "downscale_ratio_spacial": VAE_FACTOR}


def decode(vae: comfy.sd.VAE, samples: Tensor, tile_size: int) -> Tensor:
    """Decodes latents (B, C, H, W) to images (B, height, width, 3), whole or in tiles of `tile_size` pixels.

    Raises ValueError for latents of another VAE's shape, or NaN.
    """
    if (
        samples.is_nested
        or samples.ndim != 4
        or 0 in samples.shape
        or samples.shape[1] != vae.latent_channels
    ):
        raise ValueError(
            f"the latent has the shape {[*samples.shape]}, this VAE decodes [batch, {vae.latent_channels}, "
            "height, width]; connect the latent of the model that the VAE belongs to"
        )
    check_finite(samples, "the latent", "make it again")
    if not tile_size:
        return vae.decode(samples)
    tile, overlap = _tiling(tile_size, vae.spacial_compression_decode())
    return vae.decode_tiled(samples, tile_x=tile, tile_y=tile, overlap=overlap)


def encode(vae: comfy.sd.VAE, pixels: Tensor, tile_size: int) -> Tensor:
    """Encodes images (B, height, width, 3) to latents (B, C, H, W), whole or in tiles of `tile_size` pixels.

    Raises ValueError for images smaller than a latent pixel, or NaN.
    """
    if (
        pixels.ndim != 4
        or pixels.shape[0] == 0
        or min(pixels.shape[1:3]) < VAE_FACTOR
        or pixels.shape[-1] < 3
    ):
        raise ValueError(
            f"the image has the shape {[*pixels.shape]}, this VAE encodes [batch, height, width, 3] of at "
            f"least {VAE_FACTOR} pixels a side; connect a larger picture in colour"
        )
    check_finite(pixels, "the image", "use another picture")
    if not tile_size:
        return vae.encode(pixels)
    tile, overlap = _tiling(tile_size, 1)
    return vae.encode_tiled(pixels, tile_x=tile, tile_y=tile, overlap=overlap)


def _tiling(tile_size: int, unit: int) -> tuple[int, int]:
    """Sizes tile and overlap in `unit` pixels; tiles overlap by 64 pixels, small ones by a quarter."""
    tile_size = max(tile_size, MIN_TILE)
    return tile_size // unit, min(64, tile_size // 4) // unit
