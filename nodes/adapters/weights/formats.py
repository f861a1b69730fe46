"""Chooses the format that a checkpoint's weights are kept in: plain, scaled (fp8 and int8) or GGUF.

`choose` reads the weights and says what follows from their format: dtypes, layers and patcher. A MODEL and a
CLIP follow different rules of ComfyUI for their dtypes (`DtypeRules`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from torch import Tensor

from ....ovis_core.files.checkpoint import Checkpoint
from .gguf import GGUFOps, GGUFPatcher, quantized_weights
from .low_precision import FP8, INT8, low_precision_ops, note, quantize_state
from .patchers import OvisImagePatcher

WEIGHT_DTYPES = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_scaled": FP8,
    "int8": INT8,
}
WeightDtype = torch.dtype | str | None  # the quantisation metadata of ComfyUI's mixed-precision layers


@dataclass(frozen=True)
class WeightFormat:
    """Weights, and how a model keeps them and computes with them."""

    state: dict[str, Tensor]
    storage: torch.dtype
    compute: torch.dtype | None  # None for the storage dtype
    operations: type | None  # the layers; None for those that ComfyUI picks by the dtypes
    patcher: type[OvisImagePatcher] = OvisImagePatcher  # of a MODEL, where dynamic VRAM is off
    # Dynamic VRAM quantises patched weights again, which is too slow for GGUF's formats.
    takes_dynamic_vram: bool = True


@dataclass(frozen=True)
class DtypeRules:
    """ComfyUI's dtypes for one kind of model."""

    device: Callable[[], torch.device]
    storage: Callable[[dict[str, Tensor], torch.dtype], torch.dtype]  # (state, the file's) -> dtype
    compute: Callable[[torch.dtype | None, torch.device], torch.dtype | None]  # (storage if plain, device)
    operations: type | None  # the layers of plain weights
    keeps_scaled: bool  # whether scaled weights stay so unless the user asks for a dtype


def _model_storage(state: dict[str, Tensor], _: torch.dtype) -> torch.dtype:
    return comfy.model_management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(state),
        supported_dtypes=MODEL_DTYPES,
        weight_dtype=comfy.utils.weight_dtype(state),
    )


def _clip_compute(_: torch.dtype | None, device: torch.device) -> torch.dtype:
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32


MODEL_DTYPES = [torch.bfloat16, torch.float16, torch.float32]
MODEL = DtypeRules(
    device=comfy.model_management.get_torch_device,
    storage=_model_storage,
    compute=lambda storage, device: comfy.model_management.unet_manual_cast(storage, device, MODEL_DTYPES),
    operations=None,
    keeps_scaled=True,
)
CLIP = DtypeRules(
    device=comfy.model_management.text_encoder_device,
    storage=lambda state, in_file: in_file,
    compute=_clip_compute,
    operations=comfy.ops.manual_cast,
    keeps_scaled=False,
)


def choose(
    checkpoint: Checkpoint, weight_dtype: WeightDtype = None, rules: DtypeRules = MODEL
) -> WeightFormat:
    """Reads a checkpoint's weights in the format that suits file, device and wish.

    `weight_dtype` is what the weights are to be kept in, None for what suits the file and the device. Raises
    ValueError as `Checkpoint.read` does.
    """
    read = partial(checkpoint.read, comfy.utils.load_torch_file)
    if checkpoint.block_formats and weight_dtype is None:
        return _gguf(read(keep_quantized=True), checkpoint, rules)
    is_format = isinstance(weight_dtype, str)
    keep = (
        rules.keeps_scaled
        and not checkpoint.block_formats
        and weight_dtype in (None, torch.float8_e4m3fn, FP8)
    )
    state = read(keep, torch.bfloat16 if weight_dtype is None or is_format else weight_dtype)
    state, _ = comfy.utils.convert_old_quants(state, metadata={})
    if is_format and not scaled_layers(state):
        state = quantize_state(state, weight_dtype)
    return format_of(state, None if is_format else weight_dtype, checkpoint.dtype, rules)


def format_of(
    state: dict[str, Tensor],
    weight_dtype: torch.dtype | None,
    in_file: torch.dtype,
    rules: DtypeRules = MODEL,
) -> WeightFormat:
    """Tells the format of weights that are read: scaled when they bring scales, else plain."""
    if scaled_layers(state):
        return _scaled(state, rules)
    return _plain(state, weight_dtype or rules.storage(state, in_file), rules)


def scaled_layers(state: dict[str, Tensor]) -> list[str]:
    """Lists the layers whose weights bring a scale."""
    return [key.removesuffix(".weight_scale") for key in state if key.endswith(".weight_scale")]


def _plain(state: dict[str, Tensor], storage: torch.dtype, rules: DtypeRules) -> WeightFormat:
    return WeightFormat(state, storage, rules.compute(storage, rules.device()), rules.operations)


def _scaled(state: dict[str, Tensor], rules: DtypeRules) -> WeightFormat:
    """Gives scaled weights to ComfyUI's mixed-precision layers."""
    for layer in scaled_layers(state):  # the newest files name the format in their metadata alone
        is_int8 = state[f"{layer}.weight"].dtype == torch.int8
        state.setdefault(f"{layer}.comfy_quant", note(INT8 if is_int8 else FP8))
    device = rules.device()
    storage = comfy.model_management.unet_dtype(supported_dtypes=MODEL_DTYPES)
    compute = rules.compute(None, device)
    config = SimpleNamespace(quant_config={"mixed_ops": True})
    return WeightFormat(state, storage, compute, low_precision_ops(config, compute, device))


def _gguf(state: dict[str, Tensor], checkpoint: Checkpoint, rules: DtypeRules) -> WeightFormat:
    """Keeps GGUF's bytes, which layers dequantise while they compute."""
    compute = rules.compute(None, rules.device())
    weights = quantized_weights(state, checkpoint.block_formats, compute)
    return WeightFormat(weights, compute, compute, GGUFOps, GGUFPatcher, takes_dynamic_vram=False)
