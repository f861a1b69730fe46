"""Dequantises the block formats of GGML: bytes -> numbers, in plain torch, on the device of the bytes.

Each row of a weight is cut into blocks of 32 or 256 numbers; a block holds whole numbers of 2 to 8 bits and
their scales. ggml's quants.c defines the formats; results equal those of the `gguf` package to the bit, in
float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

MAX_NUMBERS = 2**24  # at most, at once: float32 copies of a large weight stay small


@dataclass(frozen=True)
class BlockFormat:
    """The storage of a block in one format."""

    numbers: int
    num_bytes: int
    halves: tuple[int, ...]  # the offsets of its float16 fields
    decode: Callable[[Tensor], Tensor]  # (N, bytes) -> (N, numbers)

    def row_bytes(self, columns: int) -> int:
        """Counts the bytes of a row of `columns` numbers."""
        return columns // self.numbers * self.num_bytes


def dequantize(rows: Tensor, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Dequantises rows of blocks of the named format: (..., bytes) uint8 -> (..., columns) in `dtype`."""
    form = BLOCK_FORMATS[name]
    columns = rows.shape[-1] // form.num_bytes * form.numbers
    out = torch.empty(*rows.shape[:-1], columns, dtype=dtype, device=rows.device)
    blocks, numbers = rows.reshape(-1, form.num_bytes), out.view(-1, form.numbers)
    step = MAX_NUMBERS // form.numbers
    for start in range(0, len(blocks), step):
        numbers[start : start + step] = form.decode(blocks[start : start + step])
    return out


def is_finite(rows: Tensor, name: str) -> bool:
    """Tells whether all numbers are finite, which the float16 fields alone decide."""
    form = BLOCK_FORMATS[name]
    blocks = rows.reshape(-1, form.num_bytes)
    return all(bool(torch.isfinite(_half(blocks, at)).all()) for at in form.halves)


def _half(blocks: Tensor, at: int) -> Tensor:
    """Reads the float16 at a byte of each block -> (N, 1) float32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _parts(packed: Tensor, shifts: tuple[int, ...], mask: int) -> Tensor:
    """Takes the bits of each byte at each shift: (N, G, B) uint8 -> (N, G, shifts, B) uint8."""
    return packed[:, :, None] >> _column(shifts, packed.device) & mask


@lru_cache
def _column(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """Copies numbers to the device once, (N, 1) uint8: each copy makes the host wait for the device."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=torch.uint8, device=device)[:, None]


def _nibbles(packed: Tensor, group: int) -> Tensor:
    """Splits (N, B) bytes into (N, 2B) numbers of 4 bits: in groups of bytes, low halves first."""
    return _parts(packed.unflatten(1, (-1, group)), (0, 4), 15).flatten(1)


def _fifth_bits(packed: Tensor) -> Tensor:
    """Puts the bits of (N, 4) bytes, lowest first, at the fifth place -> (N, 32)."""
    return _parts(packed[:, :, None], tuple(range(8)), 1).flatten(1) << 4


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:], 16).to(torch.int8) - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:], 16) + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    numbers = _nibbles(blocks[:, 6:], 16) | _fifth_bits(blocks[:, 2:6])
    return _half(blocks, 0) * (numbers.to(torch.int8) - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    numbers = _nibbles(blocks[:, 8:], 16) | _fifth_bits(blocks[:, 4:8])
    return _half(blocks, 0) * numbers + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8)


def _q2_k(blocks: Tensor) -> Tensor:
    scales, numbers = blocks[:, :16], _parts(blocks[:, 16:80].unflatten(1, (-1, 32)), (0, 2, 4, 6), 3)
    scale, offset = _half(blocks, 80) * (scales & 15), _half(blocks, 82) * (scales >> 4)
    return (scale[:, :, None] * numbers.reshape(-1, 16, 16) - offset[:, :, None]).flatten(1)


def _q3_k(blocks: Tensor) -> Tensor:
    masks, low = blocks[:, :32], _parts(blocks[:, 32:96].unflatten(1, (-1, 32)), (0, 2, 4, 6), 3)
    high = _parts(masks[:, None], tuple(range(8)), 1) ^ 1  # a bit that is not set takes 4 away
    numbers = low.flatten(1).to(torch.int8) - (high.flatten(1) << 2).to(torch.int8)
    scales = _parts(blocks[:, None, 96:104], (0, 4), 15).flatten(1)
    scales = scales | _parts(blocks[:, None, 104:108], (0, 2, 4, 6), 3).flatten(1) << 4
    scale = _half(blocks, 108) * (scales.to(torch.int8) - 32)
    return (scale[:, :, None] * numbers.reshape(-1, 16, 16)).flatten(1)


def _k_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Reads scales and offsets, 6 bits each, of the 8 parts of a Q4_K or Q5_K block -> (N, 8, 1) twice."""
    first, second, third = blocks[:, 4:16].unflatten(1, (3, 4)).unbind(1)
    scales = torch.cat((first & 63, third & 15 | first >> 2 & 48), dim=1)
    offsets = torch.cat((second & 63, third >> 4 | second >> 2 & 48), dim=1)
    return (_half(blocks, 0) * scales)[:, :, None], (_half(blocks, 2) * offsets)[:, :, None]


def _q4_k(blocks: Tensor) -> Tensor:
    scale, offset = _k_scales(blocks)
    return (scale * _nibbles(blocks[:, 16:], 32).unflatten(1, (8, 32)) - offset).flatten(1)


def _q5_k(blocks: Tensor) -> Tensor:
    scale, offset = _k_scales(blocks)
    high = _parts(blocks[:, None, 16:48], tuple(range(8)), 1).flatten(1) << 4
    numbers = _nibbles(blocks[:, 48:], 32) | high
    return (scale * numbers.unflatten(1, (8, 32)) - offset).flatten(1)


def _q6_k(blocks: Tensor) -> Tensor:
    low = _nibbles(blocks[:, :128], 64)
    high = _parts(blocks[:, 128:192].unflatten(1, (-1, 32)), (0, 2, 4, 6), 3).flatten(1) << 4
    numbers = ((low | high).to(torch.int8) - 32).unflatten(1, (16, 16))
    scale = _half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8)
    return (scale[:, :, None] * numbers).flatten(1)


BLOCK_FORMATS = {
    "Q4_0": BlockFormat(32, 18, (0,), _q4_0),
    "Q4_1": BlockFormat(32, 20, (0, 2), _q4_1),
    "Q5_0": BlockFormat(32, 22, (0,), _q5_0),
    "Q5_1": BlockFormat(32, 24, (0, 2), _q5_1),
    "Q8_0": BlockFormat(32, 34, (0,), _q8_0),
    "Q2_K": BlockFormat(256, 84, (80, 82), _q2_k),
    "Q3_K": BlockFormat(256, 110, (108,), _q3_k),
    "Q4_K": BlockFormat(256, 144, (0, 2), _q4_k),
    "Q5_K": BlockFormat(256, 176, (0, 2), _q5_k),
    "Q6_K": BlockFormat(256, 210, (208,), _q6_k),
}
