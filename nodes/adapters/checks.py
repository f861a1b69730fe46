"""What every tensor that users connect must pass."""

import torch
from torch import Tensor


def check_finite(tensor: Tensor, what: str, advice: str) -> None:
    """Raises ValueError for NaN or infinity, which would otherwise end as a black picture."""
    if not torch.isfinite(tensor.float().sum()):
        raise ValueError(f"{what} holds NaN or infinite values; {advice}")
