"""Chooses kernels by GPU, and calls those operations that comfy_kitchen has as one fused kernel.

The rule is written down here, not measured: NVIDIA GPUs of compute capability 9 and above (Hopper, Blackwell)
compute attention by cuDNN first, and a norm together with what follows it by ComfyUI's comfy_kitchen. All
others, and all runs with gradients, compute as ComfyUI does.

B batch, H heads, L tokens, D hidden.
"""

import functools

import comfy.quant_ops
import torch
from torch import Tensor

from ....ovis_core import layers, lean_blocks
from ....ovis_core.layers import NORM_EPS, QKNorm
from ..compat import HELD_WEIGHTS, JOINED_OPERATIONS, has
from .casting import cast, hold, is_hooked

LEAST_CAPABILITY = (9, 0)
ADALN, RMS_ROPE = "adaln", "rms_rope"  # as comfy_kitchen calls them
PLAIN = "eager"  # comfy_kitchen's backend of torch operations, which fuses nothing


@functools.cache
def has_new_kernels(device: torch.device) -> bool:
    """Tells whether the rule gives a device other kernels than ComfyUI's choice."""
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return is_nvidia and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


@functools.cache
def has_joined(name: str) -> bool:
    """Tells whether a backend of comfy_kitchen has this operation as one fused kernel."""
    if not has(JOINED_OPERATIONS):
        return False
    return any(
        backend["available"] and not backend["disabled"] and name in backend["capabilities"]
        for title, backend in comfy.quant_ops.ck.list_backends().items()
        if title != PLAIN
    )


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalises and modulates x (B, L, D) with shift and scale (B, 1, D) -> (B, L, D)."""
    if has_new_kernels(x.device) and has_joined(ADALN):
        return comfy.quant_ops.ck.adaln(x, scale, shift, NORM_EPS)
    return layers.modulated_norm(x, shift, scale)


def norm_and_rotate(norm: QKNorm, q: Tensor, k: Tensor, pe: Tensor | None) -> tuple[Tensor, Tensor, bool]:
    """Normalises q and k (B, H, L, D/H), and rotates them by pe where one kernel does both.

    The norms' weights are then cast, patched and transferred as in ComfyUI's layers.
    """
    is_plain = pe is None or is_hooked(norm.query_norm) or is_hooked(norm.key_norm)
    is_plain = is_plain or not has(HELD_WEIGHTS)
    if is_plain or not (has_new_kernels(q.device) and has_joined(RMS_ROPE)):
        return *norm(q, k), False
    with cast(norm.query_norm, q) as (query_scale, _), cast(norm.key_norm, k) as (key_scale, _):
        return *comfy.quant_ops.ck.rms_rope(q, k, pe, query_scale, key_scale, NORM_EPS), True


TOOLS = lean_blocks.Tools(modulated_norm, norm_and_rotate, hold)
