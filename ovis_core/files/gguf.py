"""Reads GGUF headers before any weights, and maps weights into memory as they are.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Numbers are little-endian.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from .dequantize import BLOCK_FORMATS
from .storage import IMPOSTORS, MAX_METADATA, MAX_NAME, MAX_TENSORS, TensorInfo

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_ENTRIES = 4096  # of the metadata; a language model has about 30
MAX_ARRAY = 2**20  # a vocabulary has 151,936
MAX_DIMENSIONS = 4

# Metadata types as struct knows them; strings and arrays are read by hand.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9

PLAIN_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# GGML's numbers of the types: those that are read here, and all others for messages.
TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K",
    11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32",
    27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


class GGUFHeader(NamedTuple):
    """The contents of a header; shapes are in torch's order."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str | float]  # without arrays


class Entry(NamedTuple):
    """The entry of one tensor in a header."""

    dtype: str
    shape: tuple[int, ...]
    offset: int  # in the data, which follows the header


def read_gguf_header(path: Path) -> GGUFHeader:
    """Reads the header of a GGUF file without its weights.

    Raises ValueError saying what is wrong with the file, without reading more than it holds.
    """
    try:
        with path.open("rb") as file:
            return _Header(path, file).read()
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read ({error.strerror}); check its permissions") from None


def map_gguf(path: Path, infos: Mapping[str, TensorInfo]) -> dict[str, Tensor]:
    """Maps the tensors of a header into memory as they are: numbers, or uint8 rows of blocks."""
    data = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    tensors = {}
    for key, info in infos.items():
        raw = data[info.offset : info.offset + _num_bytes(info.dtype, info.shape)]
        if info.dtype in PLAIN_TYPES:
            tensors[key] = raw.view(PLAIN_TYPES[info.dtype]).view(info.shape)
        else:
            tensors[key] = raw.view(*info.shape[:-1], -1)
    return tensors


def _num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    if dtype in PLAIN_TYPES:
        return math.prod(shape) * PLAIN_TYPES[dtype].itemsize
    return math.prod(shape[:-1]) * BLOCK_FORMATS[dtype].row_bytes(shape[-1])


class _Header:
    """Reads a header from its start; every length is checked before so many bytes are asked for."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path = path
        self.file = file
        self.size = path.stat().st_size

    def read(self) -> GGUFHeader:
        """Reads the whole header. Raises ValueError when it is damaged."""
        self._check_start()
        num_tensors, num_entries = self._number("Q"), self._number("Q")
        if num_tensors > MAX_TENSORS or num_entries > MAX_ENTRIES:
            raise self._damage(f"{num_tensors} tensors and {num_entries} metadata entries")
        metadata: dict[str, str | float | None] = {}
        for _ in range(num_entries):
            key, value = self._string(), self._value(self._number("I"))
            if key in metadata:
                raise self._damage("a metadata name appears twice")
            metadata[key] = value
        entries: dict[str, Entry] = {}
        for _ in range(num_tensors):
            key, entry = self._tensor()
            if key in entries:
                raise self._damage(f"{key} appears twice")
            entries[key] = entry
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= 4096 or alignment & (alignment - 1):
            raise self._damage(f"an alignment of {alignment!a}")
        infos = self._place(entries, alignment)
        return GGUFHeader(infos, {key: value for key, value in metadata.items() if value is not None})

    def _check_start(self) -> None:
        start = self.file.read(32)
        if not start.startswith(MAGIC):
            kinds = (meaning for magic, meaning in IMPOSTORS.items() if start.startswith(magic))
            kind = next(kinds, "no GGUF file though it is named so; download it again")
            raise ValueError(f"{self.path.name} is {kind}")
        self.file.seek(len(MAGIC))
        version = self._number("I")
        if version not in VERSIONS:
            raise ValueError(
                f"{self.path.name} has GGUF version {version}, versions 2 and 3 are read; convert it again "
                "with a current tool"
            )

    def _tensor(self) -> tuple[str, Entry]:
        """Reads one tensor's name and entry."""
        key = self._string(MAX_NAME)
        if not key.isprintable():
            raise self._damage(f"a tensor has the name {key[:50]!a}")
        num_dimensions = self._number("I")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise self._damage(f"{key} has {num_dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(num_dimensions))[::-1]  # GGUF writes columns first
        kind, offset = self._number("I"), self._number("Q")
        dtype = TYPES.get(kind, f"type {kind}")
        if dtype not in PLAIN_TYPES and dtype not in BLOCK_FORMATS:
            raise ValueError(
                f"{self.path.name} stores {key} as {dtype}, which is not supported; use a file in "
                f"{', '.join((*BLOCK_FORMATS, *PLAIN_TYPES))}"
            )
        if min(shape) < 1 or (dtype in BLOCK_FORMATS and shape[-1] % BLOCK_FORMATS[dtype].numbers):
            raise self._damage(f"{key} has the shape {[*shape]}, which cannot be stored as {dtype}")
        return key, Entry(dtype, shape, offset)

    def _place(self, entries: Mapping[str, Entry], alignment: int) -> dict[str, TensorInfo]:
        """Finds offsets in the file. Between two tensors only padding is allowed."""
        start = -(-self.file.tell() // alignment) * alignment
        position = start
        infos = {}
        for key, (dtype, shape, offset) in sorted(entries.items(), key=lambda item: item[1].offset):
            position = -(-position // alignment) * alignment
            if start + offset != position:
                raise self._damage(f"the bytes of {key} lie elsewhere than its neighbours' shapes tell")
            infos[key] = TensorInfo(dtype, shape, self.path, position)
            position += _num_bytes(dtype, shape)
        if position > self.size:
            first = next(k for k, i in infos.items() if i.offset + _num_bytes(i.dtype, i.shape) > self.size)
            raise ValueError(
                f"{self.path.name} is cut off: {position - self.size} bytes are missing, from {first} on; "
                "download it again"
            )
        if self.size - position >= alignment:
            raise ValueError(
                f"{self.path.name} has {self.size - position} bytes after its last tensor; download it again"
            )
        return {key: infos[key] for key in entries}

    def _value(self, kind: int) -> str | float | None:
        """Reads a metadata value; skips arrays and gives None for them."""
        if kind in NUMBERS:
            return self._number(NUMBERS[kind])
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            raise self._damage(f"metadata of type {kind}")
        kind, length = self._number("I"), self._number("Q")
        if length > MAX_ARRAY or kind not in {*NUMBERS, STRING}:
            raise self._damage(f"an array of {length} values of type {kind}")
        if kind == STRING:
            for _ in range(length):
                self._bytes(self._number("Q"))
        else:
            self._bytes(length * struct.calcsize(NUMBERS[kind]))
        return None

    def _string(self, longest: int = MAX_METADATA) -> str:
        length = self._number("Q")
        if length > longest:
            raise self._damage(f"a text of {length} bytes")
        try:
            return self._bytes(length).decode("utf-8")
        except UnicodeDecodeError:
            raise self._damage("a text that is no UTF-8") from None

    def _number(self, form: str) -> Any:
        """Reads an int, float or bool, as struct's `form` says."""
        (value,) = struct.unpack("<" + form, self._bytes(struct.calcsize(form)))
        return value

    def _bytes(self, length: int) -> bytes:
        if length > self.size - self.file.tell():
            raise ValueError(f"{self.path.name} is cut off within its header; download it again")
        return self.file.read(length)

    def _damage(self, what: str) -> ValueError:
        return ValueError(f"{self.path.name} has a damaged GGUF header ({what}); download it again")
