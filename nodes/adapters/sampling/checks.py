"""What every tensor that users connect must pass."""

import torch
from torch import Tensor


def check_finite(tensor: Tensor, what: str, advice: str) -> None:
    """Raises ValueError for NaN or infinity, which would otherwise end as a black picture."""
    checks = FiniteChecks(advice)
    checks.add(tensor, what)
    checks.finish()


class LateFlag:
    """A truth value on the device, whose truth is asked for later: only what came before it is waited for."""

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
    """`check_finite` for one tensor after the other, each looked at when the next one comes.

    By then the device is done with it and busy with the next: nobody waits for the answer.
    """

    def __init__(self, advice: str):
        self.advice = advice
        self._what = ""
        self._is_finite: LateFlag | None = None

    def add(self, tensor: Tensor, what: str) -> None:
        is_finite = LateFlag(torch.isfinite(tensor.float().sum()))
        self.finish()
        self._what, self._is_finite = what, is_finite

    def finish(self) -> None:
        if self._is_finite is not None and not self._is_finite:
            raise ValueError(f"{self._what} holds NaN or infinite values; {self.advice}")
