"""GGUF files of small models, written by the `gguf` package, and what that package reads from them."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from ovis_core.files.dequantize import BLOCK_FORMATS


def random_rows(name: str, rows: int, columns: int, std: float = 1.0, seed: int = 0) -> np.ndarray:
    """Blocks of random bytes but for their float16 fields, which make numbers of about that deviation."""
    form, kind = BLOCK_FORMATS[name], gguf.GGMLQuantizationType[name]
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (rows * columns // form.numbers, form.num_bytes), dtype=np.uint8)
    scales = generator.normal(0, 1, (len(form.halves), len(blocks)))
    for factor in (0.01, None):
        if factor is None:
            factor = 0.01 * std / gguf.dequantize(blocks, kind).std()
        for at, values in zip(form.halves, scales, strict=True):
            blocks[:, at : at + 2] = (factor * values).astype(np.float16)[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def can_hold(name: str, tensor: Tensor) -> bool:
    numbers = BLOCK_FORMATS[name].numbers if name in BLOCK_FORMATS else 1
    return tensor.ndim == 2 and tensor.shape[1] % numbers == 0


def write(
    path: Path, state: Mapping[str, Tensor], name: str, architecture: str = "flux", **metadata: float
) -> dict[str, Tensor]:
    """Writes tensors as a converter does: matrices in the named type, vectors and what it cannot hold in F32.

    Block types hold random numbers of each matrix' deviation. Returns what the file holds, as the `gguf`
    package multiplies it out, in float32.
    """
    kind = gguf.GGMLQuantizationType[name]
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        writer.add_float32(f"{architecture}.{key}", value)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc"])
    held = {}
    for number, (key, tensor) in enumerate(state.items()):
        if not can_hold(name, tensor) or name == "F32":
            data, raw_type = tensor.float().numpy(), gguf.GGMLQuantizationType.F32
        elif name in BLOCK_FORMATS:
            data, raw_type = random_rows(name, *tensor.shape, tensor.std().item(), number), kind
        else:
            data, raw_type = gguf.quantize(tensor.float().numpy(), kind), kind
        writer.add_tensor(key, data, raw_dtype=raw_type)
        held[key] = torch.from_numpy(gguf.dequantize(data, raw_type).reshape(tensor.shape).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held
