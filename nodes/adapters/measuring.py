"""Which of several ways to compute the same is the fastest here, and whether they do compute the same."""

from collections.abc import Callable, Sequence
from statistics import median

import torch
from torch import Tensor

BUDGET = 0.02  # seconds that a measurement may take, after one call of each way to warm up
MAX_ROUNDS = 9
WORTH = 0.95  # of the time so far: equally fast ways do not change the rounding from start to start
HEAD_START = 5_000_000  # cycles of the GPU, some milliseconds
TOLERANCE = 0.02  # of relative difference; bfloat16's rounding makes a few thousandths

# What kernels raise for what they cannot compute, running out of memory among it; sageattention asserts.
REFUSALS = (RuntimeError, ValueError, AssertionError)


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
