"""Runs fp8 and int8 weights in ComfyUI's mixed-precision layers, with dynamic scales of activations.

Formats, files and kernels are ComfyUI's. It scales int8 activations row by row, but fp8 activations by a
number that the file must bring (`input_scale`) and by 1 without one, which loses what is small. Where a file
brings none, our fp8 layers take the largest value of each row (token).

Rounding makes layers discontinuous. Where two runs differ in the last bits of their activations, some numbers
fall to the next step, more do in the next layer, and the results differ by as much as the format's error. So
activations are rounded where products gain by it, which is on a GPU.
"""

import functools
import json
import logging
import math
import re
from collections.abc import Callable

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

log = logging.getLogger(__name__)

FP8, INT8 = "float8_e4m3fn", "int8_tensorwise"  # as ComfyUI calls the formats
FP8_MAX = torch.finfo(torch.float8_e4m3fn).max
ROW_LAYOUT = "OvisImageRowFP8Layout"

# The blocks' large matrices. Modulation layers and all layers outside the blocks stay as they are: they take
# few multiplications, and every error there reaches all tokens.
QUANTIZED = re.compile(
    r"(double_blocks\.\d+\.(img|txt)_(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)|single_blocks\.\d+\.linear[12])"
    r"\.weight"
)


class RowFP8Layout(TensorCoreFP8E4M3Layout):
    """ComfyUI's fp8 layout, with a scale a row for activations that have none."""

    @classmethod
    def quantize(cls, tensor: Tensor, scale=None, **kwargs):
        """Quantises with powers of two as scales, which are exact in bfloat16.

        Rows then need no copy in float32, and products can be scaled in bfloat16.
        """
        if scale is not None or tensor.ndim != 2:
            return super().quantize(tensor, scale=scale, **kwargs)
        largest = torch.linalg.vector_norm(tensor, float("inf"), 1, keepdim=True).float()
        # The dtype must be able to hold the inverse of a scale.
        exponents = (largest / FP8_MAX).log2().ceil().clamp(math.log2(torch.finfo(tensor.dtype).tiny))
        qdata = (tensor * (-exponents).exp2().to(tensor.dtype)).to(cls.FP8_DTYPE)
        rows = exponents.exp2()
        return qdata, cls.Params(scale=rows, orig_dtype=tensor.dtype, orig_shape=tuple(tensor.shape))

    @classmethod
    def dequantize(cls, qdata: Tensor, params) -> Tensor:
        """Dequantises with one scale, or with one a row (M, 1)."""
        if params.scale.numel() == 1:
            return super().dequantize(qdata, params)
        return (qdata.float() * params.scale).to(params.orig_dtype)


register_layout_class(ROW_LAYOUT, RowFP8Layout)


def scaled_in_kernel(a: Tensor, b: Tensor, rows: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Multiplies (M, K) fp8 scaled a row (M, 1), (K, N) fp8 with one scale, adds (N,) -> (M, N) bf16."""
    columns = scale.expand(1, b.shape[1]).contiguous()
    return torch._scaled_mm(
        a, b, scale_a=rows, scale_b=columns, bias=bias, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def scaled_behind(a: Tensor, b: Tensor, rows: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Does the same where the kernel takes one scale a matrix, as on Windows and before Hopper."""
    product = torch._scaled_mm(
        a, b, scale_a=torch.ones_like(scale), scale_b=scale, out_dtype=torch.bfloat16, use_fast_accum=True
    )
    rows = rows.bfloat16()
    return product.mul_(rows) if bias is None else torch.addcmul(bias, product, rows)


@functools.cache
def fp8_product(device: torch.device) -> Callable[..., Tensor] | None:
    """Finds how torch multiplies fp8 matrices on the device, None where it cannot; tries once."""
    a, weight = (torch.ones(num, 1024, device=device).to(torch.float8_e4m3fn) for num in (64, 512))
    rows, scale = torch.ones(64, 1, device=device), torch.ones((), device=device)
    bias = torch.ones(512, device=device, dtype=torch.bfloat16)
    for product in (scaled_in_kernel, scaled_behind):
        try:
            product(a, weight.t(), rows, scale, bias)
        except (RuntimeError, NotImplementedError) as error:
            if comfy.model_management.is_oom(error):
                raise  # ComfyUI catches it and frees memory
            log.info("fp8 on %s: not %s: %s", device, product.__name__, str(error).partition("\n")[0])
        else:
            log.info("fp8 on %s: %s", device, product.__name__)
            return product
    return None


def _product(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Computes inputs (M, K) @ weight (K, N) + bias, in fp8 where both are and the device supports it."""
    is_fp8 = all(isinstance(x, QuantizedTensor) for x in (inputs, weight))
    if is_fp8 and inputs._params.scale.numel() == len(inputs) and (multiply := fp8_product(inputs.device)):
        product = multiply(
            inputs._qdata,
            weight._qdata,
            inputs._params.scale.view(-1, 1),
            weight._params.scale,
            None if bias is None else bias.bfloat16(),
        )
        return product.to(inputs.dtype)
    inputs, weight = (x.dequantize() if isinstance(x, QuantizedTensor) else x for x in (inputs, weight))
    return inputs @ weight if bias is None else torch.addmm(bias, inputs, weight)


@register_layout_op(torch.ops.aten.linear.default, RowFP8Layout)
def _linear(_, args, kwargs):
    inputs, weight, bias = (*args, None)[:3]
    if not isinstance(inputs, QuantizedTensor):
        return nn.functional.linear(inputs, weight.dequantize(), bias)
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
    """Writes a weight's format as the quantisation metadata of ComfyUI's mixed-precision layers."""
    return torch.tensor(list(json.dumps({"format": layer_format}).encode()), dtype=torch.uint8)


def quantize_state(state: dict[str, Tensor], layer_format: str) -> dict[str, Tensor]:
    """Quantises a state dict's large matrices to fp8 or int8, as in ComfyUI's files.

    Uses one scale a matrix in fp8, where it shifts the exponent alone, and one a row in int8.
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
    """Makes ComfyUI's mixed-precision layers; fp8 ones scale activations a row unless the file has a scale.

    On any CPU int8 layers compute dequantised, so that all CPUs give the same picture.
    On one with AVX2 alone, torch's int8 products take 13 to 34 times as long.
    """
    is_cpu = comfy.model_management.is_device_cpu(device)
    ops = comfy.ops.pick_operations(None, compute_dtype, load_device=device, model_config=model_config)

    class Linear(ops.Linear):
        def _load_from_state_dict(self, *args):
            super()._load_from_state_dict(*args)
            weight = self.weight
            layer_format = getattr(self, "quant_format", None)
            if layer_format == INT8:
                self._full_precision_mm = self._full_precision_mm or is_cpu
            if layer_format == FP8 and getattr(self, "input_scale", None) is None:
                self.layout_type = ROW_LAYOUT
                # Rounding activations gains nothing where the products are not in fp8.
                self._full_precision_mm = self._full_precision_mm or fp8_product(device) is None
                self.weight = nn.Parameter(
                    QuantizedTensor(weight._qdata, ROW_LAYOUT, weight._params), requires_grad=False
                )

        def _forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            # ComfyUI's int8 layers overlook this where weights and activations have one dtype.
            if is_cpu and self._full_precision_mm and isinstance(weight, QuantizedTensor):
                weight = weight.dequantize()
            return super()._forward(input, weight, bias)

        def set_weight(self, weight: Tensor, inplace_update: bool = False, **kwargs) -> Tensor | None:
            if not inplace_update:
                return super().set_weight(weight, **kwargs)
            self.weight.data.copy_(weight)  # hooks do this with plain weights

    return type("LowPrecisionOps", (ops,), {"Linear": Linear})
