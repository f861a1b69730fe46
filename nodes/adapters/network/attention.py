"""Computes attention in ComfyUI: chooses the kernel, and calls other nodes' patches around it.

What the user has asked for goes first: another node's override, then the kernel that Ovis-Image Attention
names, then ComfyUI's flags (--use-sage-attention and its like). Without any of these the rule of `kernels`
holds. A kernel enters as ComfyUI's `optimized_attention_override`, with our own calls alone and not in the
MODEL's options, where another node's would stand.

B batch, H heads, L tokens, D hidden. A kernel: q, k, v (B, H, L, D/H) -> (B, L, D), without a mask.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial

import comfy.model_management
import torch
from comfy.ldm.flux.math import attention
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from .kernels import has_new_kernels

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]

# In transformer_options: the name of the kernel that the user chose.
ATTENTION = "ovis_attention"
OVERRIDE = "optimized_attention_override"  # ComfyUI's
AUTOMATIC, COMFYUI, SAGE = "automatic", "comfyui", "sage"
MEASURED = "measured"  # what saved workflows call AUTOMATIC
TORCHS = ("cudnn", "flash", "efficient")  # as torch's functions name them
KERNELS = (AUTOMATIC, COMFYUI, *TORCHS, SAGE, MEASURED)

# ComfyUI's functions that report its flags; some versions lack some of them.
FLAGS = ("sage_attention_enabled", "flash_attention_enabled", "comfy_kitchen_attention_enabled")


class PatchedAttention:
    """ComfyUI's kernel or ours, with other nodes' patches before and after it."""

    def __init__(self, options: dict, mask: Tensor | None, num_text: int | None, pe: Tensor):
        """Takes the options as a block's patches see them; `num_text` is where a double block's image begins.
        pe: the rotary table, for patches before the attention.
        """
        self.options = options
        self.mask = mask
        self.num_text = num_text
        self.pe = pe

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pe: Tensor | None) -> Tensor:
        """Attends: q, k, v (B, H, L, D/H), and the rotary table unless q and k are rotated -> (B, L, D)."""
        patches = self.options.get("patches", {})
        if patches.get("attn1_patch"):
            pe = self.pe
        if is_watched(self.options):
            v = v.clone()  # lean blocks reuse its memory
        told = dict(self.options)
        if self.num_text is not None:
            told["img_slice"] = [self.num_text, q.shape[2]]
        new = {"q": q, "k": k, "v": v, "pe": pe, "attn_mask": self.mask}
        for patch in patches.get("attn1_patch", ()):
            new |= patch(
                new["q"], new["k"], new["v"], pe=new["pe"], attn_mask=new["attn_mask"], extra_options=told
            )
        options = with_kernel(self.options, q.device)
        out = attention(
            new["q"], new["k"], new["v"], new["pe"], new["attn_mask"], transformer_options=options
        )
        for patch in patches.get("attn1_output_patch", ()):
            out = patch(out, told)
        return out


def is_watched(options: Mapping) -> bool:
    """Tells whether another node's code sees q, k and v, and may keep them."""
    return OVERRIDE in options or bool(options.get("patches", {}).get("attn1_patch"))


def with_kernel(options: dict, device: torch.device) -> dict:
    """Adds our override to a call's options, unless another node's is there or torch compiles the call."""
    if OVERRIDE in options or torch.compiler.is_compiling():
        return options
    name = options.get(ATTENTION, AUTOMATIC)
    if name in (AUTOMATIC, MEASURED):
        name = automatic_kernel(device)
    return options if name == COMFYUI else {**options, OVERRIDE: attention_override(name)}


def automatic_kernel(device: torch.device) -> str:
    """Names the one of `KERNELS` that computes when the user has named none."""
    management = comfy.model_management
    is_named = any(getattr(management, flag, bool)() for flag in FLAGS)
    is_open = management.pytorch_attention_enabled() or management.xformers_enabled()
    return "cudnn" if is_open and not is_named and has_new_kernels(device) else COMFYUI


@lru_cache
def attention_override(name: str) -> "AttentionOverride":
    """Makes the override of one of torch's kernels or SageAttention, once for the whole process."""
    return AttentionOverride(sage_attention if name == SAGE else partial(torch_attention, name))


class AttentionOverride:
    """An attention override for ComfyUI: our kernel where it supports the call, ComfyUI's elsewhere."""

    def __init__(self, kernel: Kernel):
        self.kernel = kernel

    def __call__(self, comfyui: Callable, q: Tensor, k: Tensor, v: Tensor, *args, **kwargs) -> Tensor:
        # Kernels are for inference: some of them lack gradients.
        if torch.is_grad_enabled() or not (q.shape == k.shape == v.shape) or not _is_plain(args, kwargs):
            return comfyui(q, k, v, *args, **kwargs)
        return self.kernel(q, k, v)


def _is_plain(args: Sequence, kwargs: Mapping) -> bool:
    """Tells whether a call is plain: q, k, v split into heads, heads merged after, and nothing else."""
    extras = kwargs.keys() - {"mask", "skip_reshape", "transformer_options", "_inside_attn_wrapper"}
    return len(args) == 1 and not extras and kwargs.get("mask") is None and kwargs.get("skip_reshape", False)


def torch_attention(name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Computes torch's attention, with one of `TORCHS` where it supports these tensors.

    The others stay allowed, as ComfyUI allows them: the setting is the whole process's, and another thread
    may run attention meanwhile.
    """
    names = [name, *(other for other in TORCHS if other != name)]
    backends = [getattr(SDPBackend, f"{name.upper()}_ATTENTION") for name in names]
    with sdpa_kernel([*backends, SDPBackend.MATH], **_PRIORITY):
        out = functional.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)


# Older versions of torch have their own order of kernels.
_PRIORITY = {"set_priority": True} if "set_priority" in inspect.signature(sdpa_kernel).parameters else {}


def sage_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Computes SageAttention (8 bit); subtracts the keys' mean before quantisation, unlike ComfyUI."""
    from sageattention import sageattn

    out = sageattn(q, k, v, tensor_layout="HND", is_causal=False, smooth_k=True)
    return out.transpose(1, 2).flatten(2)


def missing_kernel(kernel: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Tells what a kernel lacks for a model that computes in `dtype` on a device, and what to do; or None."""
    runs = f"this model runs on {device.type} in {str(dtype).removeprefix('torch.')}"
    if kernel == SAGE:
        try:
            import sageattention  # noqa: F401
        except ImportError as error:
            return (
                f"sage needs the package sageattention, which cannot be imported ({error}); install it into "
                f"ComfyUI's Python with pip install sageattention, or choose {AUTOMATIC}"
            )
        if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
            return f"sage needs a GPU and a model in float16 or bfloat16, and {runs}; choose {AUTOMATIC}"
    elif kernel in TORCHS:
        q, k, v = torch.empty(3, 1, 1, 64, head_dim, device=device, dtype=dtype)
        if not _can_use(kernel, q, k, v):
            return f"torch has no {kernel} kernel for this model, since {runs}; choose {AUTOMATIC}"
    return None


def _can_use(kernel: str, q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Tells whether torch has that kernel for these tensors on their device. Computes nothing."""
    if q.device.type != "cuda" or not _PRIORITY:
        return False
    with sdpa_kernel([getattr(SDPBackend, f"{kernel.upper()}_ATTENTION"), SDPBackend.MATH], **_PRIORITY):
        params = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, False)
        return getattr(torch.backends.cuda, f"can_use_{kernel}_attention")(params)
