"""Defines the MMDiT: latents, text states and sigma -> velocity.

B batch, C channels, H and W latent pixels, L tokens, D hidden.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .blocks import TEXTBOOK, Blocks, Run, call_block
from .latents import (
    LATENT_CHANNELS,
    PATCH_SIZE,
    image_ids,
    pack_latents,
    pad_to_patch,
    text_ids,
    unpack_latents,
)
from .layers import NORM_EPS, Attention, MLPEmbedder, Ops, sdp_attention, timestep_embedding
from .rope import EmbedND

TIME_DIM = 256
MAX_TABLES = 4  # sizes whose rotary tables are kept, 4 MB each at 1024x1024


@dataclass(frozen=True)
class TransformerConfig:
    """The numbers of the network; the defaults are the released 7.37 B model."""

    in_channels: int = LATENT_CHANNELS * PATCH_SIZE**2
    hidden_size: int = 3072
    num_heads: int = 24
    depth: int = 6
    depth_single_blocks: int = 27
    context_dim: int = 2048
    mlp_size: int = 4 * 3072
    axes_dim: tuple[int, int, int] = (16, 56, 56)
    theta: float = 10000.0

    def __post_init__(self):
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise ValueError(f"a hidden size of {self.hidden_size} cannot be cut into {self.num_heads} heads")
        head_dim = self.hidden_size // self.num_heads
        even = all(type(dim) is int and dim > 0 and dim % 2 == 0 for dim in self.axes_dim)
        if not even or len(self.axes_dim) != 3 or sum(self.axes_dim) != head_dim:
            raise ValueError(
                f"rotary dimensions {self.axes_dim} must be three even numbers that add up to the head size, "
                "but hidden_size "
                f"{self.hidden_size} over {self.num_heads} heads gives {head_dim}; correct the model's "
                "config"
            )


class OvisImageTransformer(nn.Module):
    """The velocity network. `blocks` makes its blocks: the textbook's, or those of `lean_blocks`."""

    def __init__(self, config: TransformerConfig, ops: Ops = nn, blocks: Blocks = TEXTBOOK, **factory):
        """Makes the network; `factory` gives dtype and device of the weights, as for a torch layer."""
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        block = (hidden, config.num_heads, config.mlp_size, ops)

        self.pe_embedder = EmbedND(config.axes_dim, config.theta)
        self.img_in = ops.Linear(config.in_channels, hidden, **factory)
        self.time_in = MLPEmbedder(TIME_DIM, hidden, ops, **factory)
        self.txt_norm = ops.RMSNorm(config.context_dim, eps=NORM_EPS, **factory)
        self.txt_in = ops.Linear(config.context_dim, hidden, **factory)
        self.double_blocks = nn.ModuleList(blocks.double(*block, **factory) for _ in range(config.depth))
        self.single_blocks = nn.ModuleList(
            blocks.single(*block, **factory) for _ in range(config.depth_single_blocks)
        )
        self.final_layer = blocks.last(hidden, config.in_channels, ops, **factory)
        self._tables: dict[tuple, Tensor] = {}

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        context: Tensor,
        attention: Attention = sdp_attention,
        run: Run = call_block,
    ) -> Tensor:
        """Computes the velocity eps - x0 at `x`.

        x: latents (B, C, H, W), any H and W. sigma: flow time (B,), 1 is noise. context: text states (B, L,
        context_dim), zero where padded; padding takes part in the attention, as in training. run: how a block
        is called. Returns (B, C, H, W) in x's dtype.
        """
        height, width = x.shape[-2:]
        padded = pad_to_patch(x)
        even_height, even_width = padded.shape[-2:]

        vec = self.time_in(timestep_embedding(sigma, TIME_DIM).to(x.dtype))  # (B, D)
        pe = self.rotary_table(context.shape[1], even_height, even_width, x.device)
        txt = self.txt_in(self.txt_norm(context))  # (B, L, D)
        img = self.img_in(pack_latents(padded))  # (B, L, D)

        for i, block in enumerate(self.double_blocks):
            img, txt = run("double", i, block, img, txt, vec, pe, attention)
        num_text = txt.shape[1]
        img = torch.cat((txt, img), dim=1)  # (B, L, D), text first
        del txt
        for i, block in enumerate(self.single_blocks):
            img = run("single", i, block, img, vec, pe, attention)
        img = run("last", 0, self.final_layer, img[:, num_text:], vec)

        return unpack_latents(img, even_height, even_width)[..., :height, :width]

    def rotary_table(self, num_text: int, height: int, width: int, device: torch.device) -> Tensor:
        """Makes `EmbedND`'s table for a size in latent pixels, and keeps it for the next steps."""
        key = num_text, height, width, device
        if key not in self._tables:
            if len(self._tables) >= MAX_TABLES:
                self._tables.pop(next(iter(self._tables)))
            ids = torch.cat((text_ids(num_text), image_ids(height, width)))
            # A tensor made in inference mode could not be used where gradients are wanted later.
            with torch.inference_mode(False):
                self._tables[key] = self.pe_embedder(ids, device)
        return self._tables[key]
