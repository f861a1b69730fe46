"""What every tensor that users connect must pass."""

import torch
from torch import Tensor


def check_finite(tensor: Tensor, what: str, advice: str) -> None:
    """Raises ValueError for NaN or infinity, which would otherwise end as a black picture."""
    checks = FiniteChecks(advice)
    checks.add(tensor, what)
    checks.finish()


class FiniteChecks:
    """`check_finite` for one tensor after the other, each looked at when the next one comes.

    By then the device is done with it and busy with the next: nobody waits for the answer.
    """

    def __init__(self, advice: str):
        self.advice = advice
        self._what = ""
        self._is_finite: Tensor | None = None

    def add(self, tensor: Tensor, what: str) -> None:
        is_finite = torch.isfinite(tensor.float().sum())
        self.finish()
        self._what, self._is_finite = what, is_finite

    def finish(self) -> None:
        if self._is_finite is not None and not self._is_finite:
            raise ValueError(f"{self._what} holds NaN or infinite values; {self.advice}")
