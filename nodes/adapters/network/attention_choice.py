"""The attention kernel that a user names, on a MODEL."""

import torch

from .attention import ATTENTION, SAGE, TORCHS, has_torch_attention
from .transformer import ComfyTransformer


def model_with_attention(model, kernel: str):
    """A clone of the MODEL whose attention is computed by one of `attention.KERNELS`.

    Raises ValueError when the model is not Ovis-Image, or when this computer does not have the kernel.
    """
    network = model.get_model_object("diffusion_model")
    if not isinstance(network, ComfyTransformer):
        raise ValueError(
            "this node chooses the attention kernel of our loader's MODEL, and this is another model; "
            "connect the Ovis-Image Loader, or use ComfyUI's --use-sage-attention or --use-flash-attention"
        )
    head_dim = network.config.hidden_size // network.config.num_heads
    missing = missing_kernel(kernel, model.load_device, model.model.get_dtype_inference(), head_dim)
    if missing:
        raise ValueError(missing)
    clone = model.clone()
    clone.model_options["transformer_options"][ATTENTION] = kernel
    return clone


def missing_kernel(kernel: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """What a kernel lacks for a model that computes in `dtype` on a device, and what to do; or None."""
    runs = f"this model runs on {device.type} in {str(dtype).removeprefix('torch.')}"
    if kernel == SAGE:
        try:
            import sageattention  # noqa: F401
        except ImportError as error:
            return (
                f"sage needs the package sageattention, which cannot be imported ({error}); install it into "
                "ComfyUI's Python with pip install sageattention, or choose measured"
            )
        if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
            return f"sage needs a GPU and a model in float16 or bfloat16, and {runs}; choose measured"
    elif kernel in TORCHS:
        q, k, v = torch.empty(3, 1, 1, 64, head_dim, device=device, dtype=dtype)
        if not has_torch_attention(kernel, q, k, v):
            return f"torch has no {kernel} kernel for this model, since {runs}; choose measured"
    return None
