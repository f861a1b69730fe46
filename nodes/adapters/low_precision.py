"""fp8 and int8 weights in ComfyUI's mixed-precision layers, with activations scaled as they come.

Formats, files and kernels are ComfyUI's. It scales int8 activations row by row, but fp8 activations by a
number that the file must bring (`input_scale`) and by 1 without one, which loses what is small. Where a file
brings none, our fp8 layers take the largest value of each row (token).
"""

import functools
import json
import re

import comfy.model_management
import comfy.ops
import torch
from comfy.quant_ops import (
    QUANT_ALGOS,
    QuantizedTensor,
    TensorCoreFP8E4M3Layout,
    get_layout_class,
    register_layout_class,
    register_layout_op,
)
from torch import Tensor, nn

FP8, INT8 = "float8_e4m3fn", "int8_tensorwise"  # as ComfyUI calls the formats
FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
ROW_LAYOUT = "OvisImageRowFP8Layout"

# The blocks' large matrices. What makes shifts, scales and gates, and all outside the blocks, stays as it is:
# few multiplications, and every error there reaches all tokens.
QUANTIZED = re.compile(
    r"(double_blocks\.\d+\.(img|txt)_(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)|single_blocks\.\d+\.linear[12])"
    r"\.weight"
)


class RowFP8Layout(TensorCoreFP8E4M3Layout):
    """ComfyUI's fp8, where activations without a scale get one a row."""

    @classmethod
    def quantize(cls, tensor: Tensor, scale=None, **kwargs):
        if scale is not None or tensor.ndim != 2:
            return super().quantize(tensor, scale=scale, **kwargs)
        rows = tensor.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / FP8_MAX
        qdata = (tensor / rows).clamp_(-FP8_MAX, FP8_MAX).to(cls.FP8_DTYPE)
        return qdata, cls.Params(scale=rows, orig_dtype=tensor.dtype, orig_shape=tuple(tensor.shape))

    @classmethod
    def dequantize(cls, qdata: Tensor, params) -> Tensor:
        if params.scale.numel() == 1:
            return super().dequantize(qdata, params)
        return (qdata.float() * params.scale).to(params.orig_dtype)


register_layout_class(ROW_LAYOUT, RowFP8Layout)


@functools.cache
def has_row_kernel(device: torch.device) -> bool:
    """Whether torch multiplies fp8 matrices with a scale a row on the device; tried once."""
    a = torch.ones(16, 16, device=device).to(torch.float8_e4m3fn)
    try:
        _multiply(a, a.t(), torch.ones(16, 1, device=device), torch.ones((), device=device), None)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _multiply(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Tensor | None) -> Tensor:
    """(M, K) fp8 with a scale a row, (K, N) fp8 with one scale -> (M, N) bf16."""
    columns = scale_b.expand(1, b.shape[1]).contiguous()
    bias = None if bias is None else bias.bfloat16()
    return torch._scaled_mm(
        a, b, scale_a=scale_a, scale_b=columns, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """inputs (M, K) @ weight (K, N) + bias, in fp8 where both are and the device can."""
    is_fp8 = all(isinstance(x, QuantizedTensor) for x in (inputs, weight))
    if is_fp8 and inputs._params.scale.numel() == len(inputs) and has_row_kernel(inputs.device):
        product = _multiply(
            inputs._qdata, weight._qdata, inputs._params.scale.view(-1, 1), weight._params.scale, bias
        )
        return product.to(inputs.dtype)
    inputs, weight = (x.dequantize() if isinstance(x, QuantizedTensor) else x for x in (inputs, weight))
    return inputs @ weight if bias is None else torch.addmm(bias, inputs, weight)


@register_layout_op(torch.ops.aten.linear.default, RowFP8Layout)
def _linear(_, args, kwargs):
    inputs, weight, bias = (*args, None)[:3]
    return _product(inputs.flatten(0, -2) if inputs.ndim > 2 else inputs, weight.t(), bias).unflatten(
        0, inputs.shape[:-1]
    )


@register_layout_op(torch.ops.aten.mm.default, RowFP8Layout)
def _mm(_, args, kwargs):
    return _product(*args, None)


@register_layout_op(torch.ops.aten.addmm.default, RowFP8Layout)
def _addmm(_, args, kwargs):
    bias, inputs, weight = args
    return _product(inputs, weight, bias)


def note(layer_format: str) -> Tensor:
    """How ComfyUI's mixed-precision layers are told what a weight is."""
    return torch.tensor(list(json.dumps({"format": layer_format}).encode()), dtype=torch.uint8)


def quantize_state(state: dict[str, Tensor], layer_format: str) -> dict[str, Tensor]:
    """A state dict whose large matrices are fp8 or int8, as ComfyUI's files have them.

    One scale a matrix in fp8, where it moves the exponent alone, and one a row in int8.
    """
    device = comfy.model_management.get_torch_device()
    layout = get_layout_class(QUANT_ALGOS[layer_format]["comfy_tensor_layout"])
    quantized = {}
    for key, tensor in state.items():
        if not QUANTIZED.fullmatch(key):
            quantized[key] = tensor
            continue
        layer = key.removesuffix(".weight")
        weight = tensor.to(device, torch.float32)
        if layer_format == FP8:
            qdata, params = layout.quantize(weight, scale=(weight.abs().amax() / FP8_MAX).clamp(min=1e-12))
        else:
            qdata, params = layout.quantize(weight, per_channel=True)
        quantized[key] = qdata.to(tensor.device)
        quantized[f"{layer}.weight_scale"] = params.scale.to(tensor.device)
        quantized[f"{layer}.comfy_quant"] = note(layer_format)
    return quantized


def low_precision_ops(model_config, compute_dtype: torch.dtype, device: torch.device) -> type:
    """ComfyUI's mixed-precision layers, whose fp8 ones scale activations a row unless the file says how."""
    ops = comfy.ops.pick_operations(None, compute_dtype, load_device=device, model_config=model_config)

    class Linear(ops.Linear):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)
            weight = self.weight
            if getattr(self, "quant_format", None) == FP8 and getattr(self, "input_scale", None) is None:
                self.layout_type = ROW_LAYOUT
                self.weight = nn.Parameter(
                    QuantizedTensor(weight._qdata, ROW_LAYOUT, weight._params), requires_grad=False
                )

        def set_weight(self, weight: Tensor, inplace_update: bool = False, **kwargs) -> Tensor | None:
            if not inplace_update:
                return super().set_weight(weight, **kwargs)
            self.weight.data.copy_(weight)  # for hooks, of weights that are not quantised

    return type("LowPrecisionOps", (ops,), {"Linear": Linear})
