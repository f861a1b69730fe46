"""Operations that comfy_kitchen, ComfyUI's own package of kernels, does in one pass over the memory.

LayerNorm with its modulation, and the norm of q and k with their rotation. Its backends differ from computer
to computer, so each kernel runs beside the plain operations when a size first comes on a GPU, and is used
where it gives the same in less time.

B batch, H heads, L tokens, D hidden.
"""

import logging
from collections.abc import Callable
from functools import partial

import comfy.model_management
import comfy.quant_ops
import torch
from comfy.ldm.flux.math import apply_rope
from torch import Tensor, nn
from torch.nn import functional

from ....ovis_core.layers import NORM_EPS, AdaLayerNorm, QKNorm, ada_layer_norm
from .casting import cast, is_hooked
from .measuring import WORTH, Choices, cuda_seconds, is_close, median_seconds

log = logging.getLogger(__name__)

PLAIN = "eager"  # comfy_kitchen's backend of torch operations, which joins nothing

Tensors = tuple[Tensor, ...]


class Fused:
    """A kernel where it is worth it, and the plain operations elsewhere: (tensors) -> tensors."""

    def __init__(self, name: str, kernel: Callable[..., Tensors], plain: Callable[..., Tensors]):
        self.name, self.kernel, self.plain = name, kernel, plain
        self._choices = Choices(name)

    def __call__(self, *tensors: Tensor) -> Tensors:
        first = tensors[0]
        # Sizes within a factor of two share a measurement.
        layout = first.shape[0], first.shape[-1], first.is_contiguous()
        key = first.device, first.dtype, layout, first.numel().bit_length()
        return self._choices.run(key, lambda: self._choose(tensors), self.plain, *tensors)

    def _choose(self, tensors: Tensors) -> Callable[..., Tensors] | None:
        return self.kernel if self._measure(tensors) else None

    def _measure(self, tensors: Tensors) -> bool:
        device = tensors[0].device
        if device.type != "cuda" or torch.are_deterministic_algorithms_enabled():
            return False
        try:
            pairs = zip(self.kernel(*tensors), self.plain(*tensors), strict=True)
            agrees = all(is_close(given, expected) for given, expected in pairs)
        except Exception as error:  # whatever a backend's compiler or bindings raise
            if comfy.model_management.is_oom(error):
                raise  # for ComfyUI, which makes room
            log.info("%s on %s is not used: %s", self.name, device, error)
            return False
        calls = {"kernel": partial(self.kernel, *tensors), "plain": partial(self.plain, *tensors)}
        seconds = median_seconds(calls, partial(cuda_seconds, device=device))
        is_worth = agrees and seconds["kernel"] < WORTH * seconds["plain"]
        notes = (f"{name} {1000 * taken:.3f} ms" for name, taken in seconds.items())
        log.info("%s on %s: %s, %s", self.name, device, "used" if is_worth else "not used", ", ".join(notes))
        return is_worth


ADALN = Fused(
    "adaln",
    lambda x, shift, scale: (comfy.quant_ops.ck.adaln(x, scale, shift, NORM_EPS),),
    lambda x, shift, scale: (ada_layer_norm(x, shift, scale),),
)
RMS_ROPE = Fused(
    "rms_rope",
    lambda q, k, pe, *scales: comfy.quant_ops.ck.rms_rope(q, k, pe, *scales, NORM_EPS),
    lambda q, k, pe, *scales: apply_rope(*_rms_norms(q, k, *scales), pe),
)


def _rms_norms(q: Tensor, k: Tensor, *scales: Tensor) -> Tensors:
    return tuple(
        functional.rms_norm(x, x.shape[-1:], scale, NORM_EPS) for x, scale in zip((q, k), scales, strict=True)
    )


def join_operations(network: nn.Module) -> None:
    """Gives a network's layers the kernels that this computer has."""
    for module in network.modules():
        if isinstance(module, AdaLayerNorm) and has_kernel(ADALN.name):
            module.kernel = norm_and_modulate
        elif isinstance(module, QKNorm) and has_kernel(RMS_ROPE.name):
            module.kernel = norm_and_rotate


def has_kernel(name: str) -> bool:
    """Whether a backend of comfy_kitchen joins these operations; older ones and none at all are possible."""
    kitchen = getattr(comfy.quant_ops, "ck", None)
    return hasattr(kitchen, name) and any(
        backend["available"] and not backend["disabled"] and name in backend["capabilities"]
        for title, backend in kitchen.list_backends().items()
        if title != PLAIN
    )


def norm_and_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, L, D), shift and scale (B, 1, D) -> (B, L, D)."""
    return ADALN(x, shift, scale)[0]


def norm_and_rotate(norm: QKNorm, q: Tensor, k: Tensor, pe: Tensor) -> Tensors:
    """q and k (B, H, L, D/H), and the rotary table of their tokens -> the same shapes.

    The norms' weights come as ComfyUI's layers get theirs: cast, patched, and brought over.
    """
    if is_hooked(norm.query_norm) or is_hooked(norm.key_norm):
        return apply_rope(*norm(q, k, None), pe)
    with cast(norm.query_norm, q) as (query_scale, _), cast(norm.key_norm, k) as (key_scale, _):
        return RMS_ROPE(q, k, pe, query_scale, key_scale)
