"""Estimates the memory of a forward, and keeps room for guidance as one batch.

ComfyUI's estimate for FLUX is almost three times what is counted, and models would be offloaded without
need. ComfyUI also keeps only one branch's estimate free of weights, but batches the branches of guidance only
if one and a half times both branches' estimate is free. So a card that streams weights would load them twice
a step. Here the estimate of both branches is kept free and no more: what single blocks take in most parts.
A run then works in as few parts as fit into the free memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import comfy.model_management
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....ovis_core.latents import num_image_tokens
from ....ovis_core.lean_blocks import ACTIVATIONS, most_parts
from ....ovis_core.prompt import CONTEXT_TOKENS
from ..network.transformer import BLOCK_RUNNER, ROOM
from .residual_cache import settings_of

MEMORY = "ovis_memory"  # the key of our wrappers

CACHED = 4  # residuals that a cache keeps, each as large as the image's tokens; prediction adds one
COMFYUIS_FACTOR = 1.5  # ComfyUI's margin on estimates before it batches the branches of guidance
FACTOR = 1.1


class Asking(NamedTuple):
    """The occasion on which ComfyUI asks: before it loads for a run of that batch, or to batch branches."""

    patcher: ModelPatcher
    batch: int | None = None


def has_fused_attention() -> bool:
    """Tells whether attention works without a matrix of all pairs of tokens in memory."""
    management = comfy.model_management
    return management.xformers_enabled() or management.pytorch_attention_flash_attention()


def bytes_of_forward(model, patcher, batch: int, sides: Sequence[int]) -> float:
    """Estimates the peak bytes of a forward of latents (batch, C, *sides) in most parts, cache included."""
    num_tokens = batch * (num_image_tokens(*sides) + CONTEXT_TOKENS)
    options = patcher.model_options["transformer_options"] if patcher else {}
    # Compiled blocks do not work in parts.
    values = ACTIVATIONS[1 if BLOCK_RUNNER in options else most_parts(num_tokens)]
    return num_tokens * values * _bytes_a_token(model) + bytes_of_cache(model, patcher, batch, sides)


def bytes_of_cache(model, patcher, batch: int, sides: Sequence[int]) -> float:
    """Estimates the bytes of a MODEL's cache for latents (batch, C, *sides), working memory included."""
    cache = settings_of(patcher)
    if cache is None or cache.is_off:
        return 0.0
    return batch * num_image_tokens(*sides) * (CACHED + cache.order) * _bytes_a_token(model)


def _bytes_a_token(model) -> int:
    """Counts the bytes of one token at the hidden size."""
    itemsize = comfy.model_management.dtype_size(model.get_dtype_inference())
    return model.diffusion_model.config.hidden_size * itemsize


def bytes_to_ask_for(model, input_shape: Sequence[int]) -> float:
    """Estimates the bytes to report to ComfyUI for latents (B, C, H, W), by the occasion."""
    batch, _, *sides = input_shape
    if model.asking is None:
        return bytes_of_forward(model, model.current_patcher, batch, sides)
    patcher, run_batch = model.asking
    if run_batch is not None:
        return FACTOR * bytes_of_forward(model, patcher, run_batch, sides)
    return FACTOR / COMFYUIS_FACTOR * bytes_of_forward(model, patcher, batch, sides)


def make_room(patcher) -> None:
    """Lets sampling runs of a MODEL and its clones guide in one batch, and work in as few parts as fit."""
    patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, MEMORY, _prepare)
    patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, MEMORY, _join)


def _prepare(executor, patcher, noise_shape: Sequence[int], conds: Mapping, model_options=None, **kwargs):
    """Loads the models of a run; then notes the free memory in the run's own options."""
    batch = sum(bool(branch) for branch in conds.values()) * noise_shape[0]
    with _asking(patcher.model, Asking(patcher, batch)):
        prepared = executor(patcher, noise_shape, conds, model_options=model_options, **kwargs)
    if model_options:
        free = patcher.get_free_memory(patcher.load_device)
        if patcher.is_dynamic():  # which counts weights that can be evicted, to be streamed in every step
            free -= patcher.model_size()
        kept = bytes_of_cache(patcher.model, patcher, batch, noise_shape[2:])
        model_options.setdefault("transformer_options", {})[ROOM] = free / FACTOR - kept
    return prepared


def _join(executor, model, conds: list, x: Tensor, timestep: Tensor, model_options: dict):
    if not hasattr(model, "asking"):  # a guider may combine another kind of model with ours
        return executor(model, conds, x, timestep, model_options)
    with _asking(model, Asking(model.current_patcher)):
        return executor(model, conds, x, timestep, model_options)


@contextmanager
def _asking(model, asking: Asking) -> Iterator[None]:
    before, model.asking = model.asking, asking
    try:
        yield
    finally:
        model.asking = before
