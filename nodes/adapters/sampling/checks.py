"""Checks that tensors are finite."""

import torch
from torch import Tensor


def check_finite(tensor: Tensor, what: str, advice: str) -> None:
    """Raises ValueError for NaN or infinity, which would otherwise become a black picture."""
    checks = FiniteChecks(advice)
    checks.add(tensor, what)
    checks.finish()


class LateFlag:
    """A boolean on the device that the host reads later, and then waits only for the work before it."""

    def __init__(self, flag: Tensor):
        self._event = None
        if flag.is_cuda:
            stream = torch.cuda.current_stream(flag.device)
            flag = flag.to("cpu", non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(stream)
        self._flag = flag

    def __bool__(self) -> bool:
        if self._event is not None:
            self._event.synchronize()
        return bool(self._flag)


class FiniteChecks:
    """Checks one tensor after another as `check_finite` does, each when the next one comes.

    By then the device has finished it and works on the next, so that the host does not wait.
    """

    def __init__(self, advice: str):
        self.advice = advice
        self._what = ""
        self._is_finite: LateFlag | None = None

    def add(self, tensor: Tensor, what: str) -> None:
        """Starts the check of a tensor, and finishes that of the one before."""
        is_finite = LateFlag(torch.isfinite(tensor.float().sum()))
        self.finish()
        self._what, self._is_finite = what, is_finite

    def finish(self) -> None:
        """Raises ValueError when the last tensor holds NaN or infinity."""
        if self._is_finite is not None and not self._is_finite:
            raise ValueError(f"{self._what} holds NaN or infinite values; {self.advice}")
