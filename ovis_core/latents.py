"""Converts latents <-> packed tokens, and makes the positions of both token streams.

B batch, C channels, H and W latent pixels (one latent pixel is 8x8 image pixels), L tokens.
"""

import torch
from einops import rearrange
from torch import Tensor

LATENT_CHANNELS = 16
VAE_FACTOR = 8  # image pixels per latent pixel, each way
PATCH_SIZE = 2  # latent pixels per token, each way


def pack_latents(latents: Tensor) -> Tensor:
    """Packs 2x2 latent pixels into a token: (B, C, H, W) -> (B, HW/4, 4C).

    H and W must be even. A token's channels are ordered (c, row, column).
    """
    return rearrange(latents, "b c (h ph) (w pw) -> b (h w) (c ph pw)", ph=PATCH_SIZE, pw=PATCH_SIZE)


def unpack_latents(tokens: Tensor, height: int, width: int) -> Tensor:
    """Unpacks tokens: (B, HW/4, 4C) -> (B, C, H, W); `height` and `width` are even, in latent pixels."""
    return rearrange(
        tokens,
        "b (h w) (c ph pw) -> b c (h ph) (w pw)",
        h=height // PATCH_SIZE,
        w=width // PATCH_SIZE,
        ph=PATCH_SIZE,
        pw=PATCH_SIZE,
    )


def pad_to_patch(latents: Tensor) -> Tensor:
    """Pads latents to an even height and width by wrapping round, as ComfyUI's FLUX does."""
    height, width = latents.shape[-2:]
    return torch.nn.functional.pad(latents, (0, width % PATCH_SIZE, 0, height % PATCH_SIZE), mode="circular")


def num_image_tokens(height: int, width: int) -> int:
    """Counts the tokens of a latent of `height` x `width` latent pixels."""
    return -(-height // PATCH_SIZE) * -(-width // PATCH_SIZE)


def image_ids(height: int, width: int) -> Tensor:
    """Makes positions (0, row, column) of the image tokens of an even latent size -> (HW/4, 3)."""
    rows, columns = height // PATCH_SIZE, width // PATCH_SIZE
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1] = torch.arange(rows)[:, None]
    ids[..., 2] = torch.arange(columns)[None, :]
    return ids.flatten(0, 1)


def text_ids(num_tokens: int) -> Tensor:
    """Makes positions (0, i, i) of the text tokens -> (L, 3)."""
    positions = torch.arange(num_tokens, dtype=torch.float32)
    return torch.stack((torch.zeros(num_tokens), positions, positions), dim=-1)
