"""Which kernel computes the attention: the fastest one, measured on the GPU when a shape first comes.

Exact kernels differ in speed by a factor of two, and which is fastest differs from GPU to GPU and from shape
to shape. The chosen one enters as ComfyUI's `optimized_attention_override`, with our own calls alone and not
in the MODEL's options: what stands there is another node's, and goes first.

B batch, H heads, L tokens, D hidden. A kernel: q, k, v (B, H, L, D/H) -> (B, L, D), without a mask.
"""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from typing import NamedTuple

import comfy.model_management
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from .measuring import REFUSALS, WORTH, Choices, cuda_seconds, is_close, median_seconds

log = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
Own = Callable[[], Tensor]  # ComfyUI's own attention of the call at hand

# In transformer_options: the name of the kernel that the user chose (`attention_choice`).
ATTENTION = "ovis_attention"
OVERRIDE = "optimized_attention_override"  # ComfyUI's
MEASURED, COMFYUI, SAGE = "measured", "comfyui", "sage"
TORCHS = ("cudnn", "flash", "efficient")  # as torch's functions name them
KERNELS = (MEASURED, COMFYUI, *TORCHS, SAGE)

LENGTH_STEP = 256  # lengths up to the next multiple share a measurement


def with_attention(options: dict) -> dict:
    """A call's options with our override, unless another node's is there or torch compiles the call."""
    if OVERRIDE in options or torch.compiler.is_compiling():
        return options
    override = attention_override(options.get(ATTENTION, MEASURED))
    return options if override is None else {**options, OVERRIDE: override}


@lru_cache
def attention_override(name: str) -> "AttentionOverride | None":
    """The override of one of `KERNELS`, the same for the whole process; None for ComfyUI's own kernel."""
    if name == COMFYUI:
        return None
    if name == MEASURED:
        return AttentionOverride(fastest)
    kernel = sage_attention if name == SAGE else partial(torch_attention, name)
    return AttentionOverride(lambda own, q, k, v: kernel)


class Shape(NamedTuple):
    """What a kernel is chosen for."""

    device: torch.device
    dtype: torch.dtype
    num_heads: int  # of the whole batch
    length: int
    head_dim: int

    @classmethod
    def of(cls, q: Tensor) -> "Shape":
        batch, heads, length, head_dim = q.shape
        return cls(q.device, q.dtype, batch * heads, -(-length // LENGTH_STEP) * LENGTH_STEP, head_dim)

    def __str__(self) -> str:
        sizes = f"{self.num_heads} heads, up to {self.length} tokens, head size {self.head_dim}"
        return f"{self.device}, {self.dtype}, {sizes}"


class AttentionOverride:
    """ComfyUI's attention override: the kernel chosen for a shape, and ComfyUI's own where it does not fit.

    `choose(own, q, k, v)` is asked once a shape and gives None for ComfyUI's own.
    """

    def __init__(self, choose: Callable[[Own, Tensor, Tensor, Tensor], Kernel | None]):
        self._choose = choose
        self._choices = Choices("attention")

    def __call__(self, comfyui: Callable, q: Tensor, k: Tensor, v: Tensor, *args, **kwargs) -> Tensor:
        own = partial(comfyui, q, k, v, *args, **kwargs)
        # Kernels are for inference: not all of them have gradients.
        if torch.is_grad_enabled() or not (q.shape == k.shape == v.shape) or not _is_plain(args, kwargs):
            return own()
        choose = partial(self._choose, own, q, k, v)
        return self._choices.run(Shape.of(q), choose, lambda *_: own(), q, k, v)


def _is_plain(args: Sequence, kwargs: Mapping) -> bool:
    """Whether ComfyUI asks for what a kernel does: q, k, v in heads, heads joined behind, and no more."""
    extras = kwargs.keys() - {"mask", "skip_reshape", "transformer_options", "_inside_attn_wrapper"}
    return len(args) == 1 and not extras and kwargs.get("mask") is None and kwargs.get("skip_reshape", False)


def torch_attention(name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's attention by one of `TORCHS`, where it takes these tensors."""
    with _preferring(name):
        out = functional.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


def sage_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SageAttention (8 bit), with the keys' mean taken off before rounding, which ComfyUI leaves out."""
    from sageattention import sageattn

    out = sageattn(q, k, v, tensor_layout="HND", is_causal=False, smooth_k=True)
    return out.transpose(1, 2).flatten(2)


def has_torch_attention(name: str, q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether torch has that kernel for these tensors, on their device. Computes nothing."""
    if q.device.type != "cuda" or "set_priority" not in inspect.signature(sdpa_kernel).parameters:
        return False
    with _preferring(name):  # which allows it, too
        params = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, False)
        return getattr(torch.backends.cuda, f"can_use_{name}_attention")(params)


def _preferring(name: str) -> AbstractContextManager:
    """That kernel first. The others stay allowed, as ComfyUI allows them: the setting is the whole process's,
    and another thread may run attention meanwhile.
    """
    names = [name, *(other for other in TORCHS if other != name)]
    backends = [getattr(SDPBackend, f"{name.upper()}_ATTENTION") for name in names]
    return sdpa_kernel([*backends, SDPBackend.MATH], set_priority=True)


def torch_kernels(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Kernel]:
    """Torch's kernels for these tensors; none but on a GPU (CUDA and ROCm)."""
    return {name: partial(torch_attention, name) for name in TORCHS if has_torch_attention(name, q, k, v)}


def fastest(
    own: Own,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    candidates: Callable[[Tensor, Tensor, Tensor], dict[str, Kernel]] = torch_kernels,
    seconds_of: Callable[[Sequence[Callable], torch.device], list[float]] = cuda_seconds,
) -> Kernel | None:
    """The fastest of the candidates and ComfyUI's own on these very tensors, None for ComfyUI's own.

    Nothing is measured where there is no choice, where ComfyUI's own is neither torch's nor xformers' (by the
    command line, or on devices that ComfyUI keeps from them), or where runs must be the same to the bit.
    """
    kernels = candidates(q, k, v)
    if not kernels or not _is_open() or torch.are_deterministic_algorithms_enabled():
        return None
    expected = own()
    usable = {name: kernel for name, kernel in kernels.items() if _agrees(kernel, q, k, v, expected)}
    del expected  # its memory is wanted for the runs
    calls = {COMFYUI: own, **{name: partial(kernel, q, k, v) for name, kernel in usable.items()}}
    seconds = median_seconds(calls, partial(seconds_of, device=q.device)) if usable else {}
    best = COMFYUI
    for name, taken in seconds.items():
        if taken < WORTH * seconds[best]:
            best = name
    notes = [f"{name} {1000 * taken:.3f} ms" for name, taken in seconds.items()]
    notes += [f"{name} fails" for name in kernels if name not in usable]
    log.info("attention on %s: %s is chosen (%s)", Shape.of(q), best, ", ".join(notes))
    return usable.get(best)


def _is_open() -> bool:
    """Whether ComfyUI uses torch's attention or xformers', and not what the command line names."""
    management = comfy.model_management
    is_named = management.sage_attention_enabled() or management.flash_attention_enabled()
    return not is_named and (management.pytorch_attention_enabled() or management.xformers_enabled())


def _agrees(kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, expected: Tensor) -> bool:
    """Whether a kernel runs, and gives what ComfyUI's own gives; also its warm-up."""
    try:
        return is_close(kernel(q, k, v), expected)
    except REFUSALS:
        return False
