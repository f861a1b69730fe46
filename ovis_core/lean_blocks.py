"""Computes the same numbers as `blocks` in less memory, for inference: in place and in parts.

The blocks have the textbook's parameters, and compute as it does with gradients or inside torch.compile.
They take three more arguments. `tools`, at construction: operations that a host does better. `modulation`,
at a call: rows of a table that replace the output of the modulation layers. `num_parts`, at a call: the
number of parts that a single block cuts its tokens into. Without `pe` the attention must rotate q and k.

B batch, L tokens (text first, then image), D hidden, H heads.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import Blocks, DoubleStreamBlock, LastLayer, SingleStreamBlock
from .layers import (
    Attention,
    QKNorm,
    SelfAttention,
    SwiGLU,
    clip_fp16,
    modulated_norm,
    sdp_attention,
    split_heads,
)

Linear = Callable[[Tensor], Tensor]

# Values per token at the peak of a forward, in hidden sizes, by the number of parts: counted at the full
# size, with a little room.
ACTIVATIONS = {1: 22, 2: 18, 3: 15, 4: 14}
MAX_PARTS = max(ACTIVATIONS)
PART_TOKENS = 2048  # the least in a part: with fewer, a GPU waits for the next operation


def is_inference() -> bool:
    """Tells whether in-place operations are allowed: neither gradients nor torch.compile are on."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def norm_only(norm: QKNorm, q: Tensor, k: Tensor, pe: Tensor | None) -> tuple[Tensor, Tensor, bool]:
    """Normalises q and k (B, H, L, D/H), and returns False: they are not rotated yet."""
    return *norm(q, k), False


def call_layer(layer: nn.Module, x: Tensor) -> AbstractContextManager[Linear]:
    """Gives the layer itself: torch's weights need neither cast nor move."""
    return nullcontext(layer)


@dataclass(frozen=True)
class Tools:
    """Operations that a host may fuse, or do in its own way; the defaults are torch's.

    norm: normalises q and k and, where one kernel does both, rotates them by their tokens' rotary table;
    tells whether they are rotated. hold: gives a linear for several calls with tensors like x, so that its
    weight is cast or moved only once; None where the layer must be called only once.
    """

    modulated_norm: Callable[[Tensor, Tensor, Tensor], Tensor] = modulated_norm
    norm: Callable[[QKNorm, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, bool]] = norm_only
    hold: Callable[[nn.Module, Tensor], AbstractContextManager[Linear] | None] = call_layer


TORCH = Tools()


class LeanDoubleStreamBlock(DoubleStreamBlock):
    """The double-stream block for inference, which writes in place."""

    def __init__(self, *args, tools: Tools = TORCH, **kwargs):
        super().__init__(*args, **kwargs)
        self.tools = tools

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        vec: Tensor,
        pe: Tensor | None,
        attention: Attention = sdp_attention,
        modulation: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes the textbook's block; modulation: rows (B, 12 D), the image's before the text's."""
        if not is_inference():
            return super().forward(img, txt, vec, pe, attention)
        img_mod, txt_mod = (None, None) if modulation is None else modulation.chunk(2, dim=-1)
        img_vectors = self.img_mod(vec) if img_mod is None else vectors(img_mod, 6)
        txt_vectors = self.txt_mod(vec) if txt_mod is None else vectors(txt_mod, 6)
        num_text = txt.shape[1]

        img_pe, txt_pe = (None, None) if pe is None else (pe[:, :, num_text:], pe[:, :, :num_text])
        *img_qkv, is_rotated = self._project(self.img_attn, img, img_vectors, img_pe)
        *txt_qkv, _ = self._project(self.txt_attn, txt, txt_vectors, txt_pe)
        q, k, v = (torch.cat(streams, dim=2) for streams in zip(txt_qkv, img_qkv, strict=True))
        del img_qkv, txt_qkv  # frees memory that the attention needs
        attn = attention(q, k, v, None if is_rotated else pe)  # (B, L, D), from (B, H, L, D/H) three times
        del q, k, v

        img = self._add(img, attn[:, num_text:], self.img_attn, self.img_mlp, img_vectors)
        txt = self._add(txt, attn[:, :num_text], self.txt_attn, self.txt_mlp, txt_vectors)
        return img, txt

    def _project(
        self, attn: SelfAttention, x: Tensor, vectors: tuple[Tensor, ...], pe: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, bool]:
        """Makes a stream's q, k, v, (B, L, D) -> three (B, H, L, D/H); tells whether q and k are rotated."""
        q, k, v = split_heads(attn.qkv(self.tools.modulated_norm(x, *vectors[:2])), attn.num_heads)
        q, k, is_rotated = self.tools.norm(attn.norm, q, k, pe)
        return q, k, v, is_rotated

    def _add(
        self, x: Tensor, attn: Tensor, attn_layers: SelfAttention, mlp: SwiGLU, vectors: tuple[Tensor, ...]
    ) -> Tensor:
        """Adds both branches to a stream."""
        _, _, gate1, shift2, scale2, gate2 = vectors
        x = torch.addcmul(x, gate1, attn_layers.proj(attn))
        normed = self.tools.modulated_norm(x, shift2, scale2)
        gate, up = mlp.gate_proj(normed), mlp.up_proj(normed)
        del normed
        return clip_fp16(x.addcmul_(gate2, mlp.down_proj(functional.silu(gate, inplace=True).mul_(up))))


class LeanSingleStreamBlock(SingleStreamBlock):
    """The single-stream block for inference, which writes in place and in parts."""

    def __init__(self, *args, tools: Tools = TORCH, **kwargs):
        super().__init__(*args, **kwargs)
        self.tools = tools

    def forward(
        self,
        x: Tensor,
        vec: Tensor,
        pe: Tensor | None,
        attention: Attention = sdp_attention,
        modulation: Tensor | None = None,
        num_parts: int = 1,
    ) -> Tensor:
        """Computes the textbook's block; modulation: rows (B, 3 D)."""
        if not is_inference():
            return super().forward(x, vec, pe, attention)
        shift, scale, gate = self.modulation(vec) if modulation is None else vectors(modulation, 3)

        held = self.tools.hold(self.linear1, x) if num_parts > 1 else None
        if held is None:
            joined = self._join(x, shift, scale, pe, attention)
        else:
            joined = self._join_in_parts(x, shift, scale, pe, attention, held, num_parts)
        return clip_fp16(torch.addcmul(x, gate, self.linear2(joined)))

    def _join(
        self, x: Tensor, shift: Tensor, scale: Tensor, pe: Tensor | None, attention: Attention
    ) -> Tensor:
        """Makes the input of linear2: attn and mlp side by side (B, L, D + mlp size)."""
        q, k, v, is_rotated, up, mlp_gate = self._project(self.linear1, x, shift, scale, pe)
        joined, attn, mlp = self._space(x)
        torch.mul(functional.silu(mlp_gate, inplace=True), up, out=mlp)
        v = self._heads(attn).copy_(v)
        del up, mlp_gate  # frees the rows of linear1, which v no longer holds
        attn.copy_(attention(q, k, v, None if is_rotated else pe))
        return joined

    def _join_in_parts(
        self,
        x: Tensor,
        shift: Tensor,
        scale: Tensor,
        pe: Tensor | None,
        attention: Attention,
        held: AbstractContextManager[Linear],
        num_parts: int,
    ) -> Tensor:
        """Makes the same in 13 hidden sizes per token, not 19: linear1's rows, 11, never exist whole."""
        joined, attn, mlp = self._space(x)
        v = self._heads(attn)  # attn overwrites it later
        q, k = x.new_empty(2, *v.shape)
        length, is_rotated = x.shape[1], False
        size = -(-length // num_parts)
        with held as linear1:
            for part in (slice(start, start + size) for start in range(0, length, size)):
                part_pe = None if pe is None else pe[:, :, part]
                q[:, :, part], k[:, :, part], v[:, :, part], is_rotated, up, mlp_gate = self._project(
                    linear1, x[:, part], shift, scale, part_pe
                )
                torch.mul(functional.silu(mlp_gate, inplace=True), up, out=mlp[:, part])
                del up, mlp_gate  # frees memory for the next part's
        del linear1
        attn.copy_(attention(q, k, v, None if is_rotated else pe))
        return joined

    def _project(
        self, linear1: Linear, x: Tensor, shift: Tensor, scale: Tensor, pe: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, bool, Tensor, Tensor]:
        """Makes q, k, v (B, H, L, D/H), whether q and k are rotated, mlp and its gate from x (B, L, D)."""
        rows = linear1(self.tools.modulated_norm(x, shift, scale))
        qkv, up, mlp_gate = rows.split((3 * self.hidden_size, self.mlp_size, self.mlp_size), dim=-1)
        q, k, v = split_heads(qkv, self.num_heads)
        q, k, is_rotated = self.tools.norm(self.norm, q, k, pe)
        return q, k, v, is_rotated, up, mlp_gate

    def _space(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Allocates memory for attn and mlp: joined (B, L, D + mlp size), and each half of it."""
        joined = x.new_empty(*x.shape[:2], self.hidden_size + self.mlp_size)
        attn, mlp = joined.split((self.hidden_size, self.mlp_size), dim=-1)
        return joined, attn, mlp

    def _heads(self, x: Tensor) -> Tensor:
        """Splits into heads, as a view: (B, L, D) -> (B, H, L, D/H)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class LeanLastLayer(LastLayer):
    """The last layer with a host's modulated norm."""

    def __init__(self, *args, tools: Tools = TORCH, **kwargs):
        super().__init__(*args, **kwargs)
        self.tools = tools

    def forward(self, x: Tensor, vec: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Computes the textbook's layer; modulation: rows (B, 2 D)."""
        if not is_inference():
            return super().forward(x, vec)
        rows = self.adaLN_modulation(vec) if modulation is None else modulation
        return self.linear(self.tools.modulated_norm(x, *vectors(rows, 2)))


def vectors(rows: Tensor, count: int) -> tuple[Tensor, ...]:
    """Cuts rows into vectors: (B, count D) -> `count` tensors (B, 1, D)."""
    return rows[:, None].chunk(count, dim=-1)


def lean_blocks(tools: Tools = TORCH) -> Blocks:
    """Makes the argument `blocks` of `OvisImageTransformer`."""
    return Blocks(
        partial(LeanDoubleStreamBlock, tools=tools),
        partial(LeanSingleStreamBlock, tools=tools),
        partial(LeanLastLayer, tools=tools),
    )


def most_parts(num_tokens: int) -> int:
    """Counts the parts of (batch x length) tokens that single blocks use where memory is short."""
    return max(1, min(MAX_PARTS, num_tokens // PART_TOKENS))


def fewest_parts(num_tokens: int, bytes_a_token: int, room: float) -> int:
    """Finds the fewest parts whose activations fit into `room` bytes. bytes_a_token: of one hidden size."""
    most = most_parts(num_tokens)
    size = num_tokens * bytes_a_token
    return next((parts for parts in range(1, most) if ACTIVATIONS[parts] * size <= room), most)
