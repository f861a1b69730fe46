"""The blocks for inference in less memory: the same numbers as `blocks`, written in place and in parts.

They have the textbook's parameters, and compute as it does with gradients or inside torch.compile. They are
given three things more. `tools`, when they are made: operations that a host does better. `modulation`, at a
call: rows of a table in the place of what the modulation layers make of `vec`. `num_parts`, too: in how many
parts a single block takes its tokens. Without `pe` the attention is to rotate q and k.

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

# Values a token at the peak of a forward, in hidden sizes, by the parts that single blocks work in: counted
# at the full size, with a little room.
ACTIVATIONS = {1: 22, 2: 18, 3: 15, 4: 14}
MAX_PARTS = max(ACTIVATIONS)
PART_TOKENS = 2048  # that a part holds at least: fewer keep a GPU waiting for the next operation


def is_inference() -> bool:
    """Whether neither gradients nor torch.compile need the operations as the textbook has them."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())


def norm_only(norm: QKNorm, q: Tensor, k: Tensor, pe: Tensor | None) -> tuple[Tensor, Tensor, bool]:
    """q and k (B, H, L, D/H) -> the same normed, and that they are not rotated yet."""
    return *norm(q, k), False


def call_layer(layer: nn.Module, x: Tensor) -> AbstractContextManager[Linear]:
    return nullcontext(layer)


@dataclass(frozen=True)
class Tools:
    """Operations that a host may do at once, or in its own way; the defaults are torch's.

    norm: q and k normed and, where one kernel does both, rotated by their tokens' rotary table; whether they
    are rotated. hold: gives a linear for several calls with tensors like x, where each alone would cast or
    move its weight; None where the layer is to be called only once.
    """

    modulated_norm: Callable[[Tensor, Tensor, Tensor], Tensor] = modulated_norm
    norm: Callable[[QKNorm, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, bool]] = norm_only
    hold: Callable[[nn.Module, Tensor], AbstractContextManager[Linear] | None] = call_layer


TORCH = Tools()


class LeanDoubleStreamBlock(DoubleStreamBlock):
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
        """As the textbook's; modulation: rows (B, 12 D), the image's before the text's."""
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
        del img_qkv, txt_qkv  # memory that is wanted again at once
        attn = attention(q, k, v, None if is_rotated else pe)  # (B, L, D), from (B, H, L, D/H) three times
        del q, k, v

        img = self._add(img, attn[:, num_text:], self.img_attn, self.img_mlp, img_vectors)
        txt = self._add(txt, attn[:, :num_text], self.txt_attn, self.txt_mlp, txt_vectors)
        return img, txt

    def _project(
        self, attn: SelfAttention, x: Tensor, vectors: tuple[Tensor, ...], pe: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, bool]:
        """A stream's q, k and v, (B, L, D) -> three (B, H, L, D/H), and whether q and k are rotated."""
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
        """As the textbook's; modulation: rows (B, 3 D)."""
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
        """Makes what linear2 takes: attn and mlp side by side (B, L, D + mlp size)."""
        q, k, v, is_rotated, up, mlp_gate = self._project(self.linear1, x, shift, scale, pe)
        joined, attn, mlp = self._space(x)
        torch.mul(functional.silu(mlp_gate, inplace=True), up, out=mlp)
        v = self._heads(attn).copy_(v)
        del up, mlp_gate  # and with them and v the rows of linear1
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
        """Makes the same in 13 hidden sizes a token instead of 19: linear1's rows, 11, never exist whole."""
        joined, attn, mlp = self._space(x)
        v = self._heads(attn)  # where attn comes later
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
                del up, mlp_gate  # before the next part's are made
        del linear1
        attn.copy_(attention(q, k, v, None if is_rotated else pe))
        return joined

    def _project(
        self, linear1: Linear, x: Tensor, shift: Tensor, scale: Tensor, pe: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, bool, Tensor, Tensor]:
        """(B, L, D) -> q, k and v (B, H, L, D/H), whether q and k are rotated, mlp and its gate."""
        rows = linear1(self.tools.modulated_norm(x, shift, scale))
        qkv, up, mlp_gate = rows.split((3 * self.hidden_size, self.mlp_size, self.mlp_size), dim=-1)
        q, k, v = split_heads(qkv, self.num_heads)
        q, k, is_rotated = self.tools.norm(self.norm, q, k, pe)
        return q, k, v, is_rotated, up, mlp_gate

    def _space(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Memory for attn and mlp: joined (B, L, D + mlp size), and each half of it."""
        joined = x.new_empty(*x.shape[:2], self.hidden_size + self.mlp_size)
        attn, mlp = joined.split((self.hidden_size, self.mlp_size), dim=-1)
        return joined, attn, mlp

    def _heads(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, H, L, D/H), the same memory."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class LeanLastLayer(LastLayer):
    def __init__(self, *args, tools: Tools = TORCH, **kwargs):
        super().__init__(*args, **kwargs)
        self.tools = tools

    def forward(self, x: Tensor, vec: Tensor, modulation: Tensor | None = None) -> Tensor:
        """As the textbook's; modulation: rows (B, 2 D)."""
        if not is_inference():
            return super().forward(x, vec)
        rows = self.adaLN_modulation(vec) if modulation is None else modulation
        return self.linear(self.tools.modulated_norm(x, *vectors(rows, 2)))


def vectors(rows: Tensor, count: int) -> tuple[Tensor, ...]:
    """(B, count D) -> `count` tensors (B, 1, D)."""
    return rows[:, None].chunk(count, dim=-1)


def lean_blocks(tools: Tools = TORCH) -> Blocks:
    """What `OvisImageTransformer` takes for `blocks`."""
    return Blocks(
        partial(LeanDoubleStreamBlock, tools=tools),
        partial(LeanSingleStreamBlock, tools=tools),
        partial(LeanLastLayer, tools=tools),
    )


def most_parts(num_tokens: int) -> int:
    """In how many parts single blocks take (batch x length) tokens where memory is short."""
    return max(1, min(MAX_PARTS, num_tokens // PART_TOKENS))


def fewest_parts(num_tokens: int, bytes_a_token: int, room: float) -> int:
    """The fewest parts whose activations fit into `room` bytes. bytes_a_token: of one hidden size."""
    most = most_parts(num_tokens)
    size = num_tokens * bytes_a_token
    return next((parts for parts in range(1, most) if ACTIVATIONS[parts] * size <= room), most)
