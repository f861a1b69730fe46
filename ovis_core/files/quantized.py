"""Finds quantised weights in files, and checks that their form is supported.

Safetensors files hold fp8 or int8 weights with quantisation metadata beside them: the scales and formats of
their layers. GGUF files hold rows of blocks (see `dequantize`).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from .dequantize import BLOCK_FORMATS, is_finite
from .rules import Layout
from .storage import TensorInfo

T = TypeVar("T")
QuantMetadata = Mapping[tuple[str, str], T]  # {(layer, ending): what the file says}

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
}

# The names of a weight's scale in fp8 files (two generations), and of their other metadata.
SCALE_ENDS = (".scale_weight", ".weight_scale")
QUANT_ENDS = (*SCALE_ENDS, ".scale_input", ".input_scale", ".comfy_quant")
QUANT_MARK = "scaled_fp8"


def split_metadata(tensors: Mapping[str, T]) -> tuple[dict[str, T], dict[tuple[str, str], T]]:
    """Splits a file's tensors into weights and quantisation metadata."""
    weights, metadata = {}, {}
    for key, tensor in tensors.items():
        layer, dot, end = key.rpartition(".")
        if key == QUANT_MARK:
            metadata["", key] = tensor
        elif dot + end in QUANT_ENDS and f"{layer}.weight" in tensors:
            metadata[layer, dot + end] = tensor
        else:
            weights[key] = tensor
    return weights, metadata


def scales_of(metadata: QuantMetadata[T]) -> dict[str, T]:
    """Picks the scales: {weight: its factor}."""
    return {f"{layer}.weight": scale for (layer, end), scale in metadata.items() if end in SCALE_ENDS}


def block_formats(path: Path, layout: Layout, weights: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Finds the GGUF weights: {name of ours: GGML's name of the format}.

    Raises ValueError when one layer joins rows of different formats.
    """
    formats = {}
    for rule in layout.rules:
        kinds = sorted({weights[source].dtype for source in rule.sources if source in weights})
        if not BLOCK_FORMATS.keys().isdisjoint(kinds):
            if len(kinds) > 1:
                raise ValueError(
                    f"{path.name} stores {rule.sources[0]} and its neighbours as {' and '.join(kinds)}, "
                    "which cannot be joined into one layer; use a file with the authors' names"
                )
            formats.update(dict.fromkeys(rule.targets, kinds[0]))
    return formats


def check_dtypes(path: Path, weights: Mapping[str, TensorInfo], scales: Mapping[str, TensorInfo]) -> None:
    """Raises ValueError for tensors or scales of an unsupported kind."""
    for key, info in weights.items():
        if 0 in info.shape:
            raise ValueError(f"{path.name} has the empty tensor {key}; download the file again")
        is_known = info.dtype in BLOCK_FORMATS and len(info.shape) > 1
        if not is_known and (info.dtype not in TORCH_DTYPES or (info.dtype == "I8" and key not in scales)):
            raise ValueError(
                f"{path.name} stores {key} as {info.dtype}, which is not supported; use a file in bf16, "
                "fp16, fp32, fp8_e4m3fn, int8 with scales, or GGUF"
            )
    for key, info in scales.items():
        rows = (weights[key].shape[0], 1) if weights[key].dtype == "I8" else None
        if weights[key].dtype not in ("F8_E4M3", "I8") or (math.prod(info.shape) != 1 and info.shape != rows):
            raise ValueError(
                f"{path.name} scales {key} in a way that is not supported; use fp8_e4m3fn with one scale "
                "each, or int8 with one scale each or one a row"
            )


def check_unrotated(path: Path, key: str, metadata: QuantMetadata[Tensor]) -> None:
    """Raises ValueError for int8 weights that are rotated (ConvRot), which only ComfyUI's layers undo."""
    format_text = metadata.get((key.removesuffix(".weight"), ".comfy_quant"))
    if format_text is not None and b"convrot" in bytes(format_text.tolist()):
        raise ValueError(
            f"{path.name} holds {key} rotated (ConvRot), which only ComfyUI's layers undo; choose the "
            "weight_dtype default, or another file"
        )


def check_scales(path: Path, scales: Mapping[str, Tensor]) -> None:
    """Raises ValueError for scales that are not above zero and finite."""
    for key, scale in scales.items():
        if not (torch.isfinite(scale.float()).all() and scale.min() > 0):
            raise ValueError(
                f"{path.name} has the scale {float(scale.min())} for {key}; download the file again"
            )


def check_blocks(path: Path, weights: Mapping[str, Tensor], formats: Mapping[str, str]) -> None:
    """Raises ValueError for GGUF weights with scales that are not finite."""
    for key, name in formats.items():
        if not is_finite(weights[key], name):
            raise ValueError(
                f"{key} in {path.name} has scales that are NaN or infinite; download the file again"
            )
