"""Defines the layers of the MMDiT's blocks.

B batch, L tokens (text first, then image), D hidden, H heads. Names follow FLUX. Two seams enter here: `ops`,
the namespace that Linear, RMSNorm and others come from (`torch.nn`, or ComfyUI's for casting, offloading and
quantised weights), and `attention`, a function of q, k, v and the rotary table.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .rope import apply_rope

# q, k, v (B, H, L, D/H) and the rotary table, or None for q and k that are rotated already -> (B, L, D)
Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Ops = Any  # a module or class with Linear, LayerNorm, RMSNorm, Conv2d and GroupNorm, called as torch's
NORM_EPS = 1e-6


def sdp_attention(q: Tensor, k: Tensor, v: Tensor, pe: Tensor | None = None) -> Tensor:
    """Runs torch's attention on q and k rotated by pe, unmasked: (B, H, L, D/H) three times -> (B, L, D)."""
    if pe is not None:
        q, k = apply_rope(q, pe), apply_rope(k, pe)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Modulation(nn.Module):
    """Makes shift, scale and gate of one or two branches from the time vector (adaLN)."""

    def __init__(self, hidden_size: int, num_vectors: int, ops: Ops, **factory):
        super().__init__()
        self.num_vectors = num_vectors
        self.lin = ops.Linear(hidden_size, num_vectors * hidden_size, **factory)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        """Makes the vectors: (B, D) -> `num_vectors` tensors (B, 1, D)."""
        return self.lin(functional.silu(vec))[:, None].chunk(self.num_vectors, dim=-1)


class SelfAttention(nn.Module):
    """The weights of one stream in the joint attention, which the block computes."""

    def __init__(self, hidden_size: int, num_heads: int, ops: Ops, **factory):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = ops.Linear(hidden_size, 3 * hidden_size, **factory)
        self.norm = QKNorm(hidden_size // num_heads, ops, **factory)
        self.proj = ops.Linear(hidden_size, hidden_size, **factory)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Makes q and k, normed, and v: (B, L, D) -> three (B, H, L, D/H)."""
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        return *self.norm(q, k), v


class QKNorm(nn.Module):
    """RMSNorm of queries and keys per head."""

    def __init__(self, head_dim: int, ops: Ops, **factory):
        super().__init__()
        self.query_norm = ops.RMSNorm(head_dim, eps=NORM_EPS, **factory)
        self.key_norm = ops.RMSNorm(head_dim, eps=NORM_EPS, **factory)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Normalises q and k: (B, H, L, D/H) twice -> the same shapes."""
        return self.query_norm(q), self.key_norm(k)


class SwiGLU(nn.Module):
    """The gated MLP: down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, mlp_size: int, ops: Ops, **factory):
        super().__init__()
        self.gate_proj = ops.Linear(hidden_size, mlp_size, **factory)
        self.up_proj = ops.Linear(hidden_size, mlp_size, **factory)
        self.down_proj = ops.Linear(mlp_size, hidden_size, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the MLP: (B, L, D) -> (B, L, D)."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class MLPEmbedder(nn.Module):
    """Two linears with a SiLU between, which turn the time sinusoid into vec."""

    def __init__(self, in_dim: int, hidden_size: int, ops: Ops, **factory):
        super().__init__()
        self.in_layer = ops.Linear(in_dim, hidden_size, **factory)
        self.out_layer = ops.Linear(hidden_size, hidden_size, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Embeds the sinusoid: (B, in_dim) -> (B, D)."""
        return self.out_layer(functional.silu(self.in_layer(x)))


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Makes the sinusoid of 1000 t, cosines first: t in [0, 1] (B,) -> (B, dim), float32."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = 1000.0 * timesteps.float()[:, None] * torch.exp(-math.log(max_period) * exponent)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Applies a LayerNorm without weights, then scale and shift: x (B, L, D), shift and scale (B, 1, D)."""
    return torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Multiplies `up` by the SiLU of `gate`; the shapes are equal."""
    return functional.silu(gate) * up


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Splits rows [q, k, v] into heads: (B, L, 3D) -> three (B, H, L, D/H)."""
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def clip_fp16(x: Tensor) -> Tensor:
    """Clips float16 residual streams to stay finite; other dtypes pass through unchanged."""
    if x.dtype == torch.float16:
        limit = torch.finfo(torch.float16).max
        return x.clip(-limit, limit)
    return x
