"""Keeps GGUF weights in ComfyUI as rows of bytes, dequantised only while a layer computes.

They are quantised tensors with a layout of our own, so that ComfyUI moves, offloads, casts and counts them as
its own. A patched weight holds the same bytes and the patches, which are added after dequantisation: so
removing a LoRA restores the exact bytes.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import comfy.lora
import comfy.ops
import comfy.utils
import torch
from comfy.quant_ops import QuantizedLayout, QuantizedTensor, register_layout_class
from torch import Tensor, nn

from ....ovis_core.files.dequantize import BLOCK_FORMATS, dequantize
from .patchers import OvisImagePatcher

LAYOUT = "OvisImageGGUF"


class GGUFLayout(QuantizedLayout):
    """ComfyUI's interface to GGUF's bytes."""

    @dataclasses.dataclass(frozen=True)
    class Params:
        """The parameters of a quantised tensor: dtype and shape when dequantised, format, patches."""

        orig_dtype: torch.dtype  # of the dequantised numbers
        orig_shape: tuple[int, ...]
        block_format: str  # GGML's name for how the rows are quantised
        key: str = ""  # the parameter's name, as ComfyUI's patches want it
        patches: tuple = ()  # ComfyUI's, for the numbers

        def to_device(self, device: torch.device) -> "GGUFLayout.Params":
            """Copies the parameters for a device."""
            return self.clone()

        def clone(self) -> "GGUFLayout.Params":
            """Copies the parameters."""
            return dataclasses.replace(self)

        def copy_from(self, source: "GGUFLayout.Params", non_blocking: bool = False) -> None:
            """Takes over another tensor's parameters."""
            for field in dataclasses.fields(self):
                object.__setattr__(self, field.name, getattr(source, field.name))

    @classmethod
    def quantize(cls, tensor: Tensor, **kwargs):
        """Raises NotImplementedError: GGUF weights come from files only."""
        raise NotImplementedError("GGUF weights are read from files only")

    @classmethod
    def dequantize(cls, qdata: Tensor, params: Params) -> Tensor:
        """Dequantises rows of bytes to the dtype wanted; patches are added in float32."""
        if not params.patches:
            return dequantize(qdata, params.block_format, params.orig_dtype)
        weight = dequantize(qdata, params.block_format)
        return comfy.lora.calculate_weight(params.patches, weight, params.key).to(params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[Tensor]:
        """Returns the rows of bytes."""
        return (qtensor._qdata,)

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params: Params) -> dict[str, Tensor]:
        """Returns the rows of bytes under the weight's own name."""
        return {"": qdata}


register_layout_class(LAYOUT, GGUFLayout)


def quantized_weights(
    state: Mapping[str, Tensor], formats: Mapping[str, str], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Wraps a state dict's rows of bytes into weights that are dequantised to `dtype`."""
    weights = dict(state)
    for key, name in formats.items():
        num_rows, num_bytes = state[key].shape
        columns = num_bytes // BLOCK_FORMATS[name].num_bytes * BLOCK_FORMATS[name].numbers
        params = GGUFLayout.Params(dtype, (num_rows, columns), name)
        weights[key] = QuantizedTensor(state[key].contiguous(), LAYOUT, params)
    return weights


def is_gguf(weight: Tensor | None) -> bool:
    """Tells whether a weight is GGUF's bytes."""
    return isinstance(weight, QuantizedTensor) and weight._layout_cls == LAYOUT


class _Movable(nn.Module):
    def _apply(self, fn, recurse=True):
        """Moves parameters by putting new ones in their place; torch would change quantised ones' data."""
        for name, parameter in self._parameters.items():
            if parameter is not None:
                comfy.utils.set_attr_param(self, name, fn(parameter))
        return self


class GGUFOps(comfy.ops.manual_cast):
    """ComfyUI's casting layers, whose weights may be GGUF. They take no memory until weights are assigned."""

    class Linear(_Movable, comfy.ops.manual_cast.Linear):
        """A linear layer whose weight may be GGUF."""

        def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
            super().__init__(in_features, out_features, bias, device="meta", dtype=dtype)

        def convert_weight(self, weight: Tensor, inplace: bool = False, **_) -> Tensor:
            """Dequantises a weight that ComfyUI merges into another model."""
            return weight.dequantize() if is_gguf(weight) else weight

        def set_weight(
            self, weight: Tensor, inplace_update: bool = False, seed=None, return_weight: bool = False, **_
        ) -> Tensor | None:
            """Takes a patched weight from ComfyUI's own patcher; it is no longer quantised."""
            weight = weight.to(self.weight.dtype)
            if return_weight:
                return weight
            if inplace_update:  # hooks do this, and later write the earlier weight back
                self.weight.data.copy_(weight)
            else:
                comfy.utils.set_attr_param(self, "weight", weight)

    class Embedding(_Movable, comfy.ops.manual_cast.Embedding):
        """An embedding whose weight may be GGUF."""

        def forward_comfy_cast_weights(self, ids: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
            """Dequantises only the rows asked for."""
            if not is_gguf(self.weight) or self.weight_function or self.weight._params.patches:
                return super().forward_comfy_cast_weights(ids, out_dtype)
            weight, _, stream = comfy.ops.cast_bias_weight(
                self, device=ids.device, dtype=self.weight.dtype, offloadable=True
            )
            params = weight._params
            rows = dequantize(weight._qdata[ids], params.block_format, out_dtype or params.orig_dtype)
            comfy.ops.uncast_bias_weight(self, weight, None, stream)
            return rows


class _Backup(NamedTuple):
    """A weight before its patches, as ComfyUI's patcher keeps it."""

    weight: Tensor
    inplace_update: bool = False


class GGUFPatcher(OvisImagePatcher):
    """The patcher of a model with GGUF weights, whose patches wait for dequantisation."""

    def patch_weight_to_device(
        self, key, device_to=None, inplace_update=False, return_weight=False, force_cast=False
    ):
        """Adds patches to a GGUF weight, which applies them after dequantisation."""
        weight = comfy.utils.get_attr(self.model, key)
        if key not in self.patches or return_weight or not is_gguf(weight):
            return super().patch_weight_to_device(key, device_to, inplace_update, return_weight, force_cast)
        if key not in self.backup:
            self.backup[key] = _Backup(weight.to(device=self.offload_device))
        weight = self.backup[key].weight.to(device=device_to or weight.device)
        comfy.utils.set_attr_param(self.model, key, _patched(weight, key, self.patches[key]))

    def hooked_weight(self, weight, key, patches, original_weights):
        """Adds a hook's patches to a GGUF weight."""
        return _patched(weight, key, patches)

    def room_for(self, weight, memory_counter):
        """Keeps a hook's copy on the weight's device."""
        return weight.device  # it shares its bytes

    def state_dict_for_saving(self, *args, **kwargs):
        """Raises ValueError: a model with GGUF weights cannot be saved."""
        raise ValueError(
            "a model with GGUF weights cannot be saved; load it with weight_dtype bf16 and save that"
        )


def _patched(weight: QuantizedTensor, key: str, patches: list) -> QuantizedTensor:
    """Gives the same bytes further patches."""
    params = dataclasses.replace(weight._params, key=key, patches=(*weight._params.patches, *patches))
    return QuantizedTensor(weight._qdata, LAYOUT, params)
