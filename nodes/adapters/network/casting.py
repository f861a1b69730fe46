"""Casts the weights of ComfyUI's layers that are called several times, or as a part of another operation."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import comfy.ops
import comfy.utils
from comfy.cli_args import args
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn
from torch.nn import functional

from ..compat import HELD_WEIGHTS, has


def is_hooked(layer: nn.Module) -> bool:
    """Tells whether a layer's call is hooked, by ComfyUI's bypass mode or by another node."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


def multiplies_quantised(layer: nn.Module) -> bool:
    """Tells whether a layer multiplies its quantised weight directly; only ComfyUI's own layers do."""
    return isinstance(layer.weight, QuantizedTensor) and getattr(layer, "quant_format", None) is not None


@contextmanager
def cast(layer: nn.Module, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Casts a layer's weight and bias as it would use them on x, while other layers are cast, too.

    Quantised weights stay quantised unless they have patches.
    """
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, x, offloadable=True)
    values = weight, bias
    offload_stream, *transferred = stream
    if offload_stream is not None and not args.cuda_malloc:
        # ComfyUI has one buffer a stream, which the next layer's weight may overwrite.
        values = tuple(
            value.clone() if value is not None and any(value is known for known in transferred) else value
            for value in values
        )
    try:
        yield values
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


def hold(layer: nn.Module, x: Tensor) -> AbstractContextManager[Callable[[Tensor], Tensor]] | None:
    """Loads a linear layer's weight once, for several calls with tensors like x.

    Each call of ComfyUI's layer would transfer, dequantise and patch it again. With dynamic VRAM a
    weight that does not fit is patched where it lies, so that a LoRA would be added as often as it is called.
    Returns None where only the layer itself will do; call it once then.
    """
    if not has(HELD_WEIGHTS):
        return None
    if is_hooked(layer) or not isinstance(layer, comfy.ops.CastWeightBiasOp):
        return None
    if not multiplies_quantised(layer):
        return _as_product(layer, x)
    if layer.weight.device == x.device or hasattr(layer, "_prefetch"):  # dynamic VRAM has brought it over
        return nullcontext(layer)
    if hasattr(layer, "_v"):  # dynamic VRAM will, at each call
        return None
    is_patched = layer.weight_function or layer.bias_function
    return _as_product(layer, x) if is_patched else _on_device(layer, x)


@contextmanager
def _as_product(layer: nn.Module, x: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    with cast(layer, x) as (weight, bias):
        numbers = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        yield partial(functional.linear, weight=numbers, bias=bias)


@contextmanager
def _on_device(layer: nn.Module, x: Tensor) -> Iterator[nn.Module]:
    """Gives the layer itself, which multiplies quantised weights, with its weight on x's device."""
    weight, bias = layer.weight, layer.bias
    with cast(layer, x) as (moved, moved_bias):
        comfy.utils.set_attr_param(layer, "weight", moved)
        if moved_bias is not None:
            comfy.utils.set_attr_param(layer, "bias", moved_bias)
        try:
            yield layer
        finally:
            layer.weight, layer.bias = weight, bias
