"""Two velocities, of the prompt and of the negative prompt -> one.

All on velocities (B, C, H, W); classifier-free guidance and what has been proposed to correct it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

IMAGE = (1, 2, 3)  # all dimensions but the batch


@dataclass(frozen=True)
class Guidance:
    """How the two velocities are joined; the defaults are plain classifier-free guidance at the reference's
    scale.

    cfg: guidance scale (arXiv 2207.12598); 1 is the prompt alone.
    start, end: guide only where end <= sigma <= start (arXiv 2404.07724); elsewhere the prompt stands alone
    and the
        negative need not be computed.
    rescale: how far the result's deviation is drawn back to the prompt's, 0 to 1 (arXiv 2305.08891).
    zero_star: scale the negative to be closest to the prompt's velocity (CFG-Zero*, arXiv 2503.18886).
    zero_init_steps: steps at the start that are left out, as the same paper does.
    """

    cfg: float = 5.0
    start: float = 1.0
    end: float = 0.0
    rescale: float = 0.0
    zero_star: bool = False
    zero_init_steps: int = 0

    @property
    def needs_sigma(self) -> bool:
        """Whether steps differ by their noise level."""
        has_interval = self.cfg != 1.0 and (self.start < 1.0 or self.end > 0.0)
        return has_interval or self.zero_init_steps > 0

    def is_active(self, sigma: float | Tensor) -> bool:
        """Whether the negative is needed at this noise level; without an interval, sigma is not looked at."""
        if self.cfg == 1.0 or (self.start >= 1.0 and self.end <= 0.0):
            return self.cfg != 1.0
        return self.end <= float(sigma) <= self.start

    def join(self, positive: Tensor, negative: Tensor) -> Tensor:
        """The guided velocity where guidance is active."""
        if self.zero_star:
            negative = negative * optimal_scale(positive, negative)
        velocity = torch.lerp(negative, positive, self.cfg)
        if self.rescale:
            deviation = positive.std(IMAGE, keepdim=True) / velocity.std(IMAGE, keepdim=True)
            velocity = torch.lerp(velocity, velocity * deviation, self.rescale)
        return velocity


def optimal_scale(positive: Tensor, negative: Tensor) -> Tensor:
    """The s of each image that brings s * negative closest to positive -> (B, 1, 1, 1)."""
    product = (positive * negative).sum(IMAGE, keepdim=True)
    return product / negative.square().sum(IMAGE, keepdim=True).clamp(min=1e-8)
