"""Which of several ways to compute the same is the fastest here, and whether they do compute the same."""

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from statistics import median
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

log = logging.getLogger(__name__)

BUDGET = 0.02  # seconds that a measurement may take, after one call of each way to warm up
MAX_ROUNDS = 9
WORTH = 0.95  # of the time so far: equally fast ways do not change the rounding from start to start
HEAD_START = 5_000_000  # cycles of the GPU, some milliseconds
TOLERANCE = 0.02  # of relative difference; bfloat16's rounding makes a few thousandths

# What kernels raise for what they cannot compute, running out of memory among it; sageattention asserts.
REFUSALS = (RuntimeError, ValueError, AssertionError)
MAX_CHOICES = 256


class Choices:
    """Kernels that are chosen once for a key, in the whole process; the oldest choices go first."""

    def __init__(self, name: str):
        self.name = name
        self._chosen: dict[Hashable, Callable | None] = {}
        self._lock = threading.Lock()

    def run(
        self, key: Hashable, choose: Callable[[], Callable | None], plain: Callable, *tensors: Tensor
    ) -> Any:
        """What the chosen kernel makes of the tensors; plain does it where choose() gives none.

        A kernel that fails is not asked again. Running out of memory is no failure: ComfyUI makes room.
        """
        if key not in self._chosen:
            with self._lock:
                if key not in self._chosen:
                    self._keep(key, choose())
        kernel = self._chosen.get(key)
        if kernel is None:
            return plain(*tensors)
        try:
            return kernel(*tensors)
        except REFUSALS as error:
            if comfy.model_management.is_oom(error):
                raise
            log.warning("%s on %s: not this kernel from now on, since it fails: %s", self.name, key, error)
        with self._lock:
            self._keep(key, None)
        return plain(*tensors)

    def _keep(self, key: Hashable, kernel: Callable | None) -> None:
        if len(self._chosen) >= MAX_CHOICES and key not in self._chosen:
            self._chosen.pop(next(iter(self._chosen)))
        self._chosen[key] = kernel


def is_close(given: Tensor, expected: Tensor) -> bool:
    difference = torch.linalg.vector_norm(given - expected, dtype=torch.float32)
    return bool(difference <= TOLERANCE * torch.linalg.vector_norm(expected, dtype=torch.float32))


def median_seconds(
    calls: dict[str, Callable], seconds_of: Callable[[Sequence[Callable]], list[float]]
) -> dict[str, float]:
    """{name: median seconds}, the calls in turn, as many rounds as `BUDGET` allows and one at least."""
    first = seconds_of([*calls.values()])
    rounds = min(MAX_ROUNDS, int(BUDGET / max(sum(first), 1e-9)))
    times = first + seconds_of([*calls.values()] * (rounds - 1)) if rounds > 1 else first
    return {name: median(times[i :: len(calls)]) for i, name in enumerate(calls)}


def cuda_seconds(calls: Sequence[Callable], device: torch.device) -> list[float]:
    """Seconds that the GPU takes for each call, of a queue that it works off without waiting for Python.

    It sleeps first: until the calls are queued, where they are as short as Python's part of them.
    """
    with torch.cuda.device(device):
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in calls]
        torch.cuda._sleep(HEAD_START)
        for call, (start, end) in zip(calls, events, strict=True):
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1000 for start, end in events]
