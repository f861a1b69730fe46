"""The core's residual cache on a MODEL: one state a sampling run, kept in that run's options alone."""

import logging
from collections.abc import Callable, Hashable, Sequence

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....ovis_core.residual_cache import CachedForward, CacheSettings, ResidualCache
from ..network.sampling_run import sigma_of
from ..network.transformer import RESIDUAL_CACHE, ComfyTransformer

log = logging.getLogger(__name__)


class RunForward(CachedForward):
    """Hidden from TorchCompileModel, which takes what it finds in the options for constants."""

    reuse = torch.compiler.disable(CachedForward.reuse)
    keep = torch.compiler.disable(CachedForward.keep)


class RunCache(ResidualCache):
    @torch.compiler.disable
    def forward(self, keys: Sequence[Hashable]) -> RunForward:
        forward = super().forward(keys)
        return RunForward(forward.cache, forward.branches)


class CacheRuns:
    """Gives every sampling run of a MODEL a cache of its own, and keeps the last run's report."""

    def __init__(self, settings: CacheSettings, tell: Callable[[str], None]):
        self.settings = settings
        self.tell = tell
        self.report: str | None = None  # none after a run that was interrupted

    def sample(self, executor, *args, **kwargs) -> Tensor:
        """Around a guider's run; its options are this run's own copy."""
        options = executor.class_obj.model_options["transformer_options"]
        cache = options[RESIDUAL_CACHE] = RunCache(self.settings)
        self.report = None
        try:
            samples = executor(*args, **kwargs)
        finally:
            del options[RESIDUAL_CACHE]
        self.report = cache.report
        log.info("Ovis-Image Cache: %s", self.report)
        self.tell(self.report)
        return samples

    def predict_noise(self, executor, x: Tensor, timestep: Tensor, model_options: dict, seed=None) -> Tensor:
        """Around one evaluation of a guider, whichever conditionings it has and however they are batched."""
        cache = model_options["transformer_options"][RESIDUAL_CACHE]
        return cache.evaluate(
            sigma_of(model_options, timestep), lambda: executor(x, timestep, model_options, seed)
        )


def cached_model(
    model, threshold: float, warmup_steps: int, max_skips: int, order: int, tell: Callable[[str], None]
):
    """A clone of the MODEL with the cache, in place of one that it has. `tell` gets each run's report.

    Raises ValueError when the model is not Ovis-Image.
    """
    if not isinstance(model.get_model_object("diffusion_model"), ComfyTransformer):
        raise ValueError(
            "this cache works between the blocks of our loader's MODEL, and this is another model; connect "
            "the Ovis-Image Loader, or use ComfyUI's EasyCache"
        )
    runs = CacheRuns(CacheSettings(threshold, warmup_steps, max_skips, order), tell)
    clone = model.clone()
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, runs.sample),
        (WrappersMP.PREDICT_NOISE, runs.predict_noise),
    ):
        clone.remove_wrappers_with_key(kind, RESIDUAL_CACHE)
        clone.add_wrapper_with_key(kind, RESIDUAL_CACHE, wrapper)
    clone.set_attachments(RESIDUAL_CACHE, runs)
    return clone


def settings_of(patcher) -> CacheSettings | None:
    """Of the cache of a MODEL, None for one without."""
    runs = patcher.get_attachment(RESIDUAL_CACHE) if patcher else None
    return runs.settings if runs else None


def cache_report(model) -> str | None:
    """What the last run of a MODEL with a cache computed, None for one without."""
    runs = model.get_attachment(RESIDUAL_CACHE)
    return runs.report if runs else None
