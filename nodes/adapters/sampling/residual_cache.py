"""Puts the core's residual cache on a MODEL: one state a sampling run, in that run's options alone."""

import logging
from collections.abc import Callable, Hashable, Sequence

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....ovis_core.blocks import Run, call_block
from ....ovis_core.residual_cache import CachedRun, CacheSettings, ResidualCache
from ..network.transformer import RESIDUAL_CACHE, network_of

log = logging.getLogger(__name__)


class HiddenRun(CachedRun):
    """Hides its answers from TorchCompileModel, which treats the options' values as constants."""

    decide = torch.compiler.disable(CachedRun.decide)
    complete = torch.compiler.disable(CachedRun.complete)


class RunCache(ResidualCache):
    """The core's cache for one run, with answers that torch does not compile."""

    @torch.compiler.disable
    def forward(self, keys: Sequence[Hashable], run: Run = call_block) -> HiddenRun:
        """Begins a forward of the branches named by `keys`."""
        forward = super().forward(keys, run)
        return HiddenRun(forward.cache, forward.branches, run)


class CacheRuns:
    """Gives every sampling run of a MODEL a cache of its own, and keeps the last run's report."""

    def __init__(self, settings: CacheSettings, tell: Callable[[str], None]):
        self.settings = settings
        self.tell = tell
        self.report: str | None = None  # stays None after an interrupted run

    def sample(self, executor, *args, **kwargs) -> Tensor:
        """Wraps a guider's run, whose options are its own copy."""
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
        """Wraps one evaluation of a guider, whichever conditionings it has and however they are batched."""
        cache = model_options["transformer_options"][RESIDUAL_CACHE]
        # Reading sigma from the device waits for the step before.
        return cache.evaluate(float(timestep[0]), lambda: executor(x, timestep, model_options, seed))


def cached_model(
    model, threshold: float, warmup_steps: int, max_skips: int, order: int, tell: Callable[[str], None]
):
    """Clones the MODEL with this cache instead of an earlier one. `tell` gets each run's report.

    Raises ValueError when the model is not Ovis-Image.
    """
    network_of(model, "this cache works between the blocks", "use ComfyUI's EasyCache")
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
    """Reads the settings of a MODEL's cache; None without a cache."""
    runs = patcher.get_attachment(RESIDUAL_CACHE) if patcher else None
    return runs.settings if runs else None


def cache_report(model) -> str | None:
    """Reads the report of the cache on a MODEL's last run; None without a cache."""
    runs = model.get_attachment(RESIDUAL_CACHE)
    return runs.report if runs else None
