"""The blocks of the MMDiT.

B batch, L tokens (text first, then image), D hidden, H heads. Names follow FLUX. Two seams enter here:
`ops`, the namespace that Linear and RMSNorm come from (`torch.nn`, or ComfyUI's for casting, offloading and
quantised weights), and `attention`, a function of q, k, v and the rotary table. One whose attribute
`is_watched` is true lets others see q, k and v, which then stay as they are; one whose `takes_rotated` is
true also takes q and k that are rotated already, and None for the table. `AdaLayerNorm` and `QKNorm` may be
given a kernel that does all they do at once.

Residuals are added out of place: an in-place add would overwrite what gradient checkpointing needs for the
backward pass.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

from .rope import apply_rope

Attention = Callable[..., Tensor]  # q, k, v (B, H, L, D/H), rotary table or None -> (B, L, D)
Ops = ModuleType | type
NORM_EPS = 1e-6
MAX_PARTS = 4  # in which a single block's tokens go through its first linear at inference
PART_TOKENS = 2048  # that a part holds at least: fewer keep a GPU waiting for the next operation
Linear = Callable[[Tensor], Tensor]


def sdp_attention(q: Tensor, k: Tensor, v: Tensor, pe: Tensor | None = None) -> Tensor:
    """Torch's attention without a mask, q and k rotated by pe: (B, H, L, D/H) three times -> (B, L, D)."""
    if pe is not None:
        q, k = apply_rope(q, pe), apply_rope(k, pe)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class DoubleStreamBlock(nn.Module):
    """Image and text with weights of their own that meet in one attention."""

    def __init__(self, hidden_size: int, num_heads: int, mlp_size: int, ops: Ops, **factory):
        super().__init__()
        for stream in ("img", "txt"):
            setattr(self, f"{stream}_mod", Modulation(hidden_size, 6, ops, **factory))
            setattr(self, f"{stream}_norm1", AdaLayerNorm())
            setattr(self, f"{stream}_attn", SelfAttention(hidden_size, num_heads, ops, **factory))
            setattr(self, f"{stream}_norm2", AdaLayerNorm())
            setattr(self, f"{stream}_mlp", SwiGLU(hidden_size, mlp_size, ops, **factory))

    def forward(
        self, img: Tensor, txt: Tensor, vec: Tensor, pe: Tensor, attention: Attention
    ) -> tuple[Tensor, Tensor]:
        """img (B, L, D), txt (B, L, D), vec (B, D), pe from `EmbedND` -> img, txt of the same shapes."""
        img_shift1, img_scale1, img_gate1, img_shift2, img_scale2, img_gate2 = self.img_mod(vec)
        txt_shift1, txt_scale1, txt_gate1, txt_shift2, txt_scale2, txt_gate2 = self.txt_mod(vec)

        early = self.img_attn.norm.rotates(attention)
        num_text = txt.shape[1]
        txt_pe, img_pe = (pe[:, :, :num_text], pe[:, :, num_text:]) if early else (None, None)
        img_qkv = self.img_attn.project(self.img_norm1(img, img_shift1, img_scale1), img_pe)
        txt_qkv = self.txt_attn.project(self.txt_norm1(txt, txt_shift1, txt_scale1), txt_pe)
        q, k, v = (torch.cat(streams, dim=2) for streams in zip(txt_qkv, img_qkv, strict=True))
        del img_qkv, txt_qkv  # memory that is wanted again at once
        attn = attention(q, k, v, None if early else pe)  # (B, L, D), from (B, H, L, D/H) three times
        del q, k, v
        txt_attn, img_attn = attn[:, :num_text], attn[:, num_text:]

        img = torch.addcmul(img, img_gate1, self.img_attn.proj(img_attn))
        img = torch.addcmul(img, img_gate2, self.img_mlp(self.img_norm2(img, img_shift2, img_scale2)))

        txt = torch.addcmul(txt, txt_gate1, self.txt_attn.proj(txt_attn))
        txt = torch.addcmul(txt, txt_gate2, self.txt_mlp(self.txt_norm2(txt, txt_shift2, txt_scale2)))
        return clip_fp16(img), clip_fp16(txt)


class SingleStreamBlock(nn.Module):
    """Attention and MLP side by side on all tokens; the rows of `linear1` are [q, k, v, mlp, gate].

    `hold(linear1, x)` gives linear1 for several calls, where each alone would cast or move its weight, or
    None where it is to be called once.
    """

    hold: Callable[[nn.Module, Tensor], AbstractContextManager[Linear] | None] = staticmethod(
        lambda layer, x: nullcontext(layer)
    )

    def __init__(self, hidden_size: int, num_heads: int, mlp_size: int, ops: Ops, **factory):
        super().__init__()
        self.hidden_size = hidden_size
        self.mlp_size = mlp_size
        self.num_heads = num_heads
        self.modulation = Modulation(hidden_size, 3, ops, **factory)
        self.pre_norm = AdaLayerNorm()
        self.linear1 = ops.Linear(hidden_size, 3 * hidden_size + 2 * mlp_size, **factory)
        self.norm = QKNorm(hidden_size // num_heads, ops, **factory)
        self.linear2 = ops.Linear(hidden_size + mlp_size, hidden_size, **factory)

    def forward(self, x: Tensor, vec: Tensor, pe: Tensor, attention: Attention) -> Tensor:
        """x (B, L, D), vec (B, D), pe from `EmbedND` -> (B, L, D)."""
        shift, scale, gate = self.modulation(vec)
        if not is_inference():
            run = self._differentiably
        elif num_parts(*x.shape[:2]) > 1 and (held := self.hold(self.linear1, x)) is not None:
            run = partial(self._in_parts, held)
        else:
            run = self._at_once
        return clip_fp16(torch.addcmul(x, gate, self.linear2(run(x, shift, scale, pe, attention))))

    def _differentiably(
        self, x: Tensor, shift: Tensor, scale: Tensor, pe: Tensor, attention: Attention
    ) -> Tensor:
        """-> what linear2 takes: attn and mlp side by side (B, L, D + mlp size)."""
        early = self.norm.rotates(attention)
        q, k, v, mlp, mlp_gate = self._project(self.linear1, x, shift, scale, pe if early else None)
        return torch.cat((attention(q, k, v, None if early else pe), swiglu(mlp_gate, mlp)), dim=-1)

    def _at_once(self, x: Tensor, shift: Tensor, scale: Tensor, pe: Tensor, attention: Attention) -> Tensor:
        """The same, each half written where it belongs."""
        early = self.norm.rotates(attention)
        q, k, v, mlp, mlp_gate = self._project(self.linear1, x, shift, scale, pe if early else None)
        joined, attn = self._space(x)
        torch.mul(functional.silu(mlp_gate, inplace=True), mlp, out=joined[..., self.hidden_size :])
        v = attn.copy_(v)
        del mlp, mlp_gate  # and with them and v the rows of linear1
        return self._attend(joined, q, k, v, None if early else pe, attention)

    def _in_parts(
        self,
        held: AbstractContextManager[Linear],
        x: Tensor,
        shift: Tensor,
        scale: Tensor,
        pe: Tensor,
        attention: Attention,
    ) -> Tensor:
        """The same in 13 hidden sizes a token instead of 19: linear1's rows, 11, never exist whole."""
        early = self.norm.rotates(attention)
        joined, v = self._space(x)
        q, k = x.new_empty(2, *v.shape)
        batch, length, hidden = x.shape
        size = -(-length // num_parts(batch, length))
        with held as linear1:
            for part in (slice(start, start + size) for start in range(0, length, size)):
                q[:, :, part], k[:, :, part], v[:, :, part], mlp, mlp_gate = self._project(
                    linear1, x[:, part], shift, scale, pe[:, :, part] if early else None
                )
                torch.mul(functional.silu(mlp_gate, inplace=True), mlp, out=joined[:, part, hidden:])
                del mlp, mlp_gate  # before the next part's are made
        del linear1
        return self._attend(joined, q, k, v, None if early else pe, attention)

    def _space(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For attn and mlp side by side (B, L, D + mlp size), and attn's in heads (B, H, L, D/H)."""
        joined = x.new_empty(*x.shape[:2], self.hidden_size + self.mlp_size)
        return joined, joined[..., : self.hidden_size].unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _attend(
        self, joined: Tensor, q: Tensor, k: Tensor, v: Tensor, pe: Tensor | None, attention: Attention
    ) -> Tensor:
        """Puts attn in its place in joined, where v still is."""
        if getattr(attention, "is_watched", False):
            v = v.clone()
        joined[..., : self.hidden_size] = attention(q, k, v, pe)
        return joined

    def _project(
        self, linear1: Linear, x: Tensor, shift: Tensor, scale: Tensor, pe: Tensor | None
    ) -> tuple[Tensor, ...]:
        """(B, L, D) -> q, k as of `QKNorm` and v (B, H, L, D/H), mlp and its gate (B, L, mlp size)."""
        rows = linear1(self.pre_norm(x, shift, scale))
        qkv, mlp, mlp_gate = rows.split((3 * self.hidden_size, self.mlp_size, self.mlp_size), dim=-1)
        q, k, v = split_heads(qkv, self.num_heads)
        return *self.norm(q, k, pe), v, mlp, mlp_gate


class LastLayer(nn.Module):
    """Modulated norm and projection to packed latents; the modulation's rows are [shift, scale]."""

    def __init__(self, hidden_size: int, out_channels: int, ops: Ops, **factory):
        super().__init__()
        self.norm_final = AdaLayerNorm()
        self.linear = ops.Linear(hidden_size, out_channels, **factory)
        # A Sequential only because the released files call the linear `adaLN_modulation.1`.
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), ops.Linear(hidden_size, 2 * hidden_size, **factory))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        """x (B, L, D), vec (B, D) -> (B, L, out_channels)."""
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm_final(x, shift, scale))


class Modulation(nn.Module):
    """adaLN: one linear of the time vector -> `num_vectors` rows of shift, scale, gate (, shift, scale,
    gate).
    """

    def __init__(self, hidden_size: int, num_vectors: int, ops: Ops, **factory):
        super().__init__()
        self.num_vectors = num_vectors
        self.lin = ops.Linear(hidden_size, num_vectors * hidden_size, **factory)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        """(B, D) -> `num_vectors` tensors (B, 1, D)."""
        return self.lin(functional.silu(vec))[:, None].chunk(self.num_vectors, dim=-1)


class SelfAttention(nn.Module):
    """The weights of one stream's half of the joint attention; the attention itself is the block's."""

    def __init__(self, hidden_size: int, num_heads: int, ops: Ops, **factory):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = ops.Linear(hidden_size, 3 * hidden_size, **factory)
        self.norm = QKNorm(hidden_size // num_heads, ops, **factory)
        self.proj = ops.Linear(hidden_size, hidden_size, **factory)

    def project(self, x: Tensor, pe: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, D) -> q, k as of `QKNorm` and v, each (B, H, L, D/H)."""
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        q, k = self.norm(q, k, pe)
        return q, k, v


class QKNorm(nn.Module):
    """RMSNorm of queries and keys per head, and their rotation where a kernel does both."""

    kernel: Callable[..., tuple[Tensor, Tensor]] | None = None  # this module, q, k, pe; for inference

    def __init__(self, head_dim: int, ops: Ops, **factory):
        super().__init__()
        self.query_norm = ops.RMSNorm(head_dim, eps=NORM_EPS, **factory)
        self.key_norm = ops.RMSNorm(head_dim, eps=NORM_EPS, **factory)

    def rotates(self, attention: Attention) -> bool:
        """Whether q and k are rotated here, and not by the attention."""
        return self.kernel is not None and is_inference() and getattr(attention, "takes_rotated", False)

    def forward(self, q: Tensor, k: Tensor, pe: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, H, L, D/H) twice -> the same normed, and rotated by pe if it is given."""
        if pe is not None:
            return self.kernel(self, q, k, pe)
        return self.query_norm(q), self.key_norm(k)


class AdaLayerNorm(nn.Module):
    """LayerNorm without weights of its own, with adaLN's scale and shift."""

    kernel: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None  # for inference

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """x (B, L, D), shift and scale (B, 1, D) -> (B, L, D)."""
        if self.kernel is not None and is_inference():
            return self.kernel(x, shift, scale)
        return ada_layer_norm(x, shift, scale)


class SwiGLU(nn.Module):
    def __init__(self, hidden_size: int, mlp_size: int, ops: Ops, **factory):
        super().__init__()
        self.gate_proj = ops.Linear(hidden_size, mlp_size, **factory)
        self.up_proj = ops.Linear(hidden_size, mlp_size, **factory)
        self.down_proj = ops.Linear(mlp_size, hidden_size, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class MLPEmbedder(nn.Module):
    """Two linears with a SiLU between: the time sinusoid -> vec."""

    def __init__(self, in_dim: int, hidden_size: int, ops: Ops, **factory):
        super().__init__()
        self.in_layer = ops.Linear(in_dim, hidden_size, **factory)
        self.out_layer = ops.Linear(hidden_size, hidden_size, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(functional.silu(self.in_layer(x)))


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoid of 1000 t, cosines first: t in [0, 1] (B,) -> (B, dim), float32."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    angles = 1000.0 * timesteps.float()[:, None] * torch.exp(-math.log(max_period) * exponent)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def num_parts(batch: int, length: int) -> int:
    """In how many parts a single block takes (B, L) tokens at inference."""
    return max(1, min(MAX_PARTS, batch * length // PART_TOKENS))


def is_inference() -> bool:
    """Whether neither gradients nor torch.compile need the operations as they are written."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, in gate's memory where no gradient needs it and no compiler decides."""
    if gate.requires_grad or up.requires_grad or torch.compiler.is_compiling():
        return functional.silu(gate) * up
    return functional.silu(gate, inplace=True).mul_(up)


def ada_layer_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, functional.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale)


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, L, 3D) with rows [q, k, v] -> three (B, H, L, D/H)."""
    return qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def clip_fp16(x: Tensor) -> Tensor:
    """Keeps float16 residual streams finite; other dtypes have the range and pass through."""
    if x.dtype == torch.float16:
        limit = torch.finfo(torch.float16).max
        return x.clip(-limit, limit)
    return x
