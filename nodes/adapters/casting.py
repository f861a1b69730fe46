"""ComfyUI's layers, where they are not called once and as they are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import comfy.ops
import comfy.utils
from comfy.cli_args import args
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn
from torch.nn import functional

from .gguf import is_gguf


def is_hooked(layer: nn.Module) -> bool:
    """Whether a call of the layer is more than its class says: ComfyUI's bypass mode, or another node's."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


@contextmanager
def cast(layer: nn.Module, x: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """A layer's weight and bias as it would use them on x, while other layers are cast, too."""
    weight, bias, stream = comfy.ops.cast_bias_weight(layer, x, offloadable=True)
    values = weight, bias
    offload_stream, *transferred = stream
    if offload_stream is not None and not args.cuda_malloc:
        # ComfyUI has one buffer a stream, that the next layer's weight may come to.
        values = tuple(
            value.clone() if value is not None and any(value is known for known in transferred) else value
            for value in values
        )
    try:
        yield values
    finally:
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


@contextmanager
def held(layer: nn.Module, x: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """A linear layer to call several times with tensors like x, whose weight is brought over once.

    Each call of ComfyUI's layer would stream it, multiply it out and patch it again. With dynamic VRAM a
    weight that does not fit is patched where it lies, so that a LoRA would be added as often as it is called.
    """
    if is_hooked(layer) or not isinstance(layer, comfy.ops.CastWeightBiasOp):
        yield layer
    elif isinstance(layer.weight, QuantizedTensor) and not is_gguf(layer.weight):
        with _on_device(layer, x):
            yield layer  # which multiplies quantised
    else:
        with cast(layer, x) as (weight, bias):
            yield partial(functional.linear, weight=weight, bias=bias)


@contextmanager
def _on_device(layer: nn.Module, x: Tensor) -> Iterator[None]:
    weight = layer.weight
    if weight.device == x.device or hasattr(
        layer, "_v"
    ):  # dynamic VRAM's, prefetched and never patched twice
        yield
        return
    comfy.utils.set_attr_param(layer, "weight", weight.to(x.device))
    try:
        yield
    finally:
        layer.weight = weight
