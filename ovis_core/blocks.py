"""Defines the blocks of the MMDiT as the architecture diagram draws them.

Image and text tokens first pass double-stream blocks, each stream with weights of its own, then, joined,
single-stream blocks. The time vector `vec` modulates every norm and gates every branch (adaLN). Everything
here is differentiable and written out of place; `lean_blocks` computes the same for inference in less memory.

B batch, L tokens (text first, then image), D hidden, H heads. Names follow FLUX.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .layers import (
    Attention,
    Modulation,
    Ops,
    QKNorm,
    SelfAttention,
    SwiGLU,
    clip_fp16,
    modulated_norm,
    sdp_attention,
    split_heads,
    swiglu,
)


class DoubleStreamBlock(nn.Module):
    """Image and text streams with separate weights, which meet in one attention."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_size: int, ops: Ops = nn, **factory):
        super().__init__()
        self.img_mod = Modulation(hidden_size, 6, ops, **factory)
        self.img_attn = SelfAttention(hidden_size, num_heads, ops, **factory)
        self.img_mlp = SwiGLU(hidden_size, mlp_size, ops, **factory)
        self.txt_mod = Modulation(hidden_size, 6, ops, **factory)
        self.txt_attn = SelfAttention(hidden_size, num_heads, ops, **factory)
        self.txt_mlp = SwiGLU(hidden_size, mlp_size, ops, **factory)

    def forward(
        self, img: Tensor, txt: Tensor, vec: Tensor, pe: Tensor | None, attention: Attention = sdp_attention
    ) -> tuple[Tensor, Tensor]:
        """Updates img (B, L, D) and txt (B, L, D) by vec (B, D) and pe from `EmbedND`; keeps the shapes."""
        img_shift1, img_scale1, img_gate1, img_shift2, img_scale2, img_gate2 = self.img_mod(vec)
        txt_shift1, txt_scale1, txt_gate1, txt_shift2, txt_scale2, txt_gate2 = self.txt_mod(vec)

        img_qkv = self.img_attn.project(modulated_norm(img, img_shift1, img_scale1))
        txt_qkv = self.txt_attn.project(modulated_norm(txt, txt_shift1, txt_scale1))
        q, k, v = (torch.cat(streams, dim=2) for streams in zip(txt_qkv, img_qkv, strict=True))
        attn = attention(q, k, v, pe)  # (B, L, D), from (B, H, L, D/H) three times
        txt_attn, img_attn = attn.split((txt.shape[1], img.shape[1]), dim=1)

        img = torch.addcmul(img, img_gate1, self.img_attn.proj(img_attn))
        img = torch.addcmul(img, img_gate2, self.img_mlp(modulated_norm(img, img_shift2, img_scale2)))

        txt = torch.addcmul(txt, txt_gate1, self.txt_attn.proj(txt_attn))
        txt = torch.addcmul(txt, txt_gate2, self.txt_mlp(modulated_norm(txt, txt_shift2, txt_scale2)))
        return clip_fp16(img), clip_fp16(txt)


class SingleStreamBlock(nn.Module):
    """Attention and MLP side by side on all tokens; the rows of `linear1` are [q, k, v, mlp, gate]."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_size: int, ops: Ops = nn, **factory):
        super().__init__()
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.mlp_size = mlp_size
        self.modulation = Modulation(hidden_size, 3, ops, **factory)
        self.linear1 = ops.Linear(hidden_size, 3 * hidden_size + 2 * mlp_size, **factory)
        self.norm = QKNorm(hidden_size // num_heads, ops, **factory)
        self.linear2 = ops.Linear(hidden_size + mlp_size, hidden_size, **factory)

    def forward(
        self, x: Tensor, vec: Tensor, pe: Tensor | None, attention: Attention = sdp_attention
    ) -> Tensor:
        """Updates the tokens: x (B, L, D), vec (B, D), pe from `EmbedND` -> (B, L, D)."""
        shift, scale, gate = self.modulation(vec)

        rows = self.linear1(modulated_norm(x, shift, scale))
        qkv, mlp, mlp_gate = rows.split((3 * self.hidden_size, self.mlp_size, self.mlp_size), dim=-1)
        q, k, v = split_heads(qkv, self.num_heads)
        q, k = self.norm(q, k)
        attn = attention(q, k, v, pe)  # (B, L, D), from (B, H, L, D/H) three times

        out = self.linear2(torch.cat((attn, swiglu(mlp_gate, mlp)), dim=-1))
        return clip_fp16(torch.addcmul(x, gate, out))


class LastLayer(nn.Module):
    """Modulated norm and projection to packed latents; the modulation's rows are [shift, scale]."""

    def __init__(self, hidden_size: int, out_channels: int, ops: Ops = nn, **factory):
        super().__init__()
        self.linear = ops.Linear(hidden_size, out_channels, **factory)
        # A Sequential only because the released files call the linear `adaLN_modulation.1`.
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), ops.Linear(hidden_size, 2 * hidden_size, **factory))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        """Projects the tokens: x (B, L, D), vec (B, D) -> (B, L, out_channels)."""
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=-1)
        return self.linear(modulated_norm(x, shift, scale))


@dataclass(frozen=True)
class Blocks:
    """The classes of the transformer's blocks; all kinds have the same parameters and names."""

    double: Callable[..., DoubleStreamBlock] = DoubleStreamBlock
    single: Callable[..., SingleStreamBlock] = SingleStreamBlock
    last: Callable[..., LastLayer] = LastLayer


TEXTBOOK = Blocks()


class Run(Protocol):
    """Calls a block, given its kind ("double", "single" or "last"), index among its kind, and inputs.

    Returns what the block returns. There is one loop over the blocks, in `transformer`; gradient
    checkpointing, caches, compiled blocks and a host's patches are values of this seam.
    """

    def __call__(self, kind: str, index: int, block: nn.Module, *inputs: Any, **lean: Any) -> Any:
        """lean: what blocks of `lean_blocks` take besides."""
        ...


def call_block(kind: str, index: int, block: nn.Module, *inputs: Any, **lean: Any) -> Any:
    """Calls a block as it is."""
    return block(*inputs, **lean)
