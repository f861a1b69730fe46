"""How much memory a forward takes, and room for guidance as one batch.

By ComfyUI's estimate for FLUX, which is almost three times what is counted, models are put off the device
without need. And of any estimate it keeps a single branch's free of weights, while it joins the branches of
guidance only where one and a half times both branches' is free. So on a card that streams weights, they would
come twice a step. Here both branches' are kept free, and nothing beyond them is asked for: as much as single
blocks take in most parts. A run then works in as few parts as fit what it finds free.
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

CACHED = 4  # and one more with prediction: residuals that a cache keeps, in the size of the image's tokens
COMFYUIS_FACTOR = 1.5  # of estimates that stand for branches of guidance in one batch
FACTOR = 1.1


class Asking(NamedTuple):
    """On what occasion ComfyUI asks: before it loads for a run of that batch, or to join branches."""

    patcher: ModelPatcher
    batch: int | None = None


def has_fused_attention() -> bool:
    """Whether attention writes no table of all pairs of tokens."""
    management = comfy.model_management
    return management.xformers_enabled() or management.pytorch_attention_flash_attention()


def bytes_of_forward(model, patcher, batch: int, sides: Sequence[int]) -> float:
    """Activations of latents (batch, C, *sides) at their peak, in most parts, and what a cache keeps."""
    num_tokens = batch * (num_image_tokens(*sides) + CONTEXT_TOKENS)
    options = patcher.model_options["transformer_options"] if patcher else {}
    # Compiled blocks do not work in parts.
    values = ACTIVATIONS[1 if BLOCK_RUNNER in options else most_parts(num_tokens)]
    return num_tokens * values * _bytes_a_token(model) + bytes_of_cache(model, patcher, batch, sides)


def bytes_of_cache(model, patcher, batch: int, sides: Sequence[int]) -> float:
    """Residuals that the cache of a MODEL keeps for latents (batch, C, *sides), with what makes them."""
    cache = settings_of(patcher)
    if cache is None or cache.is_off:
        return 0.0
    return batch * num_image_tokens(*sides) * (CACHED + cache.order) * _bytes_a_token(model)


def _bytes_a_token(model) -> int:
    """Of one hidden size."""
    itemsize = comfy.model_management.dtype_size(model.get_dtype_inference())
    return model.diffusion_model.config.hidden_size * itemsize


def bytes_to_ask_for(model, input_shape: Sequence[int]) -> float:
    """What ComfyUI is told of latents (B, C, H, W), by the occasion."""
    batch, _, *sides = input_shape
    if model.asking is None:
        return bytes_of_forward(model, model.current_patcher, batch, sides)
    patcher, run_batch = model.asking
    if run_batch is not None:
        return FACTOR * bytes_of_forward(model, patcher, run_batch, sides)
    return FACTOR / COMFYUIS_FACTOR * bytes_of_forward(model, patcher, batch, sides)


def make_room(patcher) -> None:
    """Lets sampling runs of a MODEL, and of its clones, guide in one batch and work in few parts as fits."""
    patcher.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, MEMORY, _prepare)
    patcher.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, MEMORY, _join)


def _prepare(executor, patcher, noise_shape: Sequence[int], conds: Mapping, model_options=None, **kwargs):
    """Loads the models of a run; then tells the run's own options what is free."""
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
    if not hasattr(model, "asking"):  # another kind of model, that a guider joins with ours
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
