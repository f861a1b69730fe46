"""What is known of a sampling run before it begins, and kept for its forwards.

On a GPU sigma is never read, which would wait for the step before: that an evaluation is at the schedule's
next sigma, and its rows of modulation in the table, is asked a step later. A sampler that evaluates elsewhere
is found out so, and the run begins anew, with sigmas that are read.

B batch.
"""

import logging
import math
from collections.abc import Hashable, Sequence

import comfy.model_management
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..sampling.checks import LateFlag

log = logging.getLogger(__name__)

SAMPLING_RUN = "ovis_sampling_run"
MAX_SIGMAS = 256  # of a run that is known; their modulation takes 233 MiB in bfloat16


class OffSchedule(Exception):
    """The sampler has evaluated the model at a sigma that its schedule does not have."""


class OutOfOrder(OffSchedule):
    """It evaluates the schedule's sigmas in another order, or not each of them once."""


class SamplingRun:
    """What a run tells the networks, its sigmas and the state of the weights, and what it keeps for them."""

    def __init__(
        self,
        sigmas: Sequence[float],
        weights: Hashable,
        is_read: bool,
        schedule: Sequence[float] | None = None,
        network: nn.Module | None = None,
    ):
        """sigmas: what the network gets. weights: equal for equal weights of one network. is_read: rows are
        found by sigmas that are read from the device. schedule: what the sampler gets, in its order; None
        where sigmas are to be read in every evaluation. network: whose run it is, None for any.
        """
        self.sigmas = tuple(sorted({sigma for sigma in sigmas if sigma > 0}))
        self.weights = weights
        self.is_read = is_read
        self.schedule = None if schedule is None else tuple(schedule)
        self.network = network
        self._evaluation: tuple[Tensor | None, float] = None, math.inf
        self._position = 0
        self._is_out_of_order: LateFlag | None = None
        self._is_off: LateFlag | None = None

    def sigma_of(self, sigma: Tensor) -> float:
        """The sigma (B,) of the evaluation that runs, as a number: the schedule's next, where it is known."""
        if self.schedule is None:
            return float(sigma[0])
        if sigma is not self._evaluation[0]:
            self._evaluation = sigma, self._guess(sigma)
        return self._evaluation[1]

    def _guess(self, sigma: Tensor) -> float:
        if self._position == len(self.schedule):
            raise OutOfOrder
        guess = self.schedule[self._position]
        self._position += 1
        late = LateFlag(sigma[0] != guess)
        self._ask_order()
        self._is_out_of_order = late
        return guess

    def watch(self, is_off: Tensor) -> None:
        late = LateFlag(is_off)
        self._ask()
        self._is_off = late

    def finish(self) -> None:
        self._ask_order()
        self._ask()

    def _ask_order(self) -> None:
        if self._is_out_of_order is not None and self._is_out_of_order:
            raise OutOfOrder
        self._is_out_of_order = None

    def _ask(self) -> None:
        if self._is_off is not None and self._is_off:
            raise OffSchedule
        self._is_off = None


def sigma_of(model_options: dict, sigma: Tensor) -> float:
    """The sigma (B,) that a guider is given, as a number, without waiting for it where a run knows it."""
    run = model_options["transformer_options"].get(SAMPLING_RUN)
    return run.sigma_of(sigma) if run else float(sigma[0])


def schedule_of(model_options: dict) -> Sequence[float] | Tensor:
    """The sigmas of the run, in the sampler's order."""
    options = model_options["transformer_options"]
    run = options.get(SAMPLING_RUN)
    return options["sample_sigmas"] if run is None or run.schedule is None else run.schedule


def follow_runs(patcher) -> None:
    """Gives every sampling run of a MODEL, and of its clones, a `SamplingRun`."""
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, SAMPLING_RUN, _sample)


# Samplers that have been found out.
_off_schedule: set[str] = set()
_out_of_order: set[str] = set()


def _sample(
    executor, noise: Tensor, latent_image: Tensor, sampler, sigmas: Tensor, *args, **kwargs
) -> Tensor:
    """Around a guider's run; its options are this run's own copy."""
    guider = executor.class_obj
    patcher, options = guider.model_patcher, guider.model_options["transformer_options"]
    steps = patcher.get_model_object("model_sampling").timestep(sigmas).tolist()
    schedule = sigmas.tolist()
    if len(steps) > MAX_SIGMAS or patcher.hook_patches or patcher.weight_wrapper_patches:
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)

    name = getattr(getattr(sampler, "sampler_function", sampler), "__qualname__", type(sampler).__qualname__)
    is_cpu = comfy.model_management.is_device_cpu(patcher.load_device)
    conds = {kind: [cond.copy() for cond in conds] for kind, conds in guider.conds.items()}
    try:
        while True:
            run = options[SAMPLING_RUN] = SamplingRun(
                steps,
                patcher.patches_uuid,
                is_cpu or name in _off_schedule,
                None if is_cpu or name in _out_of_order else schedule,
                patcher.model.diffusion_model,
            )
            try:
                samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
                run.finish()
                return samples
            except OutOfOrder:
                log.info("Ovis-Image: %s does not take its sigmas one by one, and starts anew", name)
                _out_of_order.add(name)
            except OffSchedule:
                log.info("Ovis-Image: sampler %s leaves its schedule, and starts anew", name)
                _off_schedule.add(name)
            guider.conds = conds
    finally:
        del options[SAMPLING_RUN]
