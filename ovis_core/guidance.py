"""Joins two velocities, of the prompt and of the negative prompt, into one.

Holds classifier-free guidance and published corrections of it. All velocities are (B, C, H, W).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

IMAGE = (1, 2, 3)  # all dimensions but the batch


@dataclass(frozen=True)
class Guidance:
    """Settings of guidance; the defaults are plain classifier-free guidance at the reference's scale.

    cfg: guidance scale (arXiv 2207.12598); 1 is the prompt alone.
    start, end: guide only where end <= sigma <= start (arXiv 2404.07724); elsewhere the prompt stands alone,
        and the negative need not be computed.
    rescale: how far the result's deviation is drawn back to the prompt's, 0 to 1 (arXiv 2305.08891).
    zero_star: scale the negative to be closest to the prompt's velocity (CFG-Zero*, arXiv 2503.18886).
    zero_init_steps: steps at the start that are skipped, as the same paper does.
    """

    cfg: float = 5.0
    start: float = 1.0
    end: float = 0.0
    rescale: float = 0.0
    zero_star: bool = False
    zero_init_steps: int = 0

    @property
    def needs_sigma(self) -> bool:
        """Tells whether guidance depends on the noise level of a step."""
        has_interval = self.cfg != 1.0 and (self.start < 1.0 or self.end > 0.0)
        return has_interval or self.zero_init_steps > 0

    def is_active(self, sigma: float | Tensor) -> bool:
        """Tells whether the negative is needed at this noise level; only an interval makes it read sigma."""
        if self.cfg == 1.0 or (self.start >= 1.0 and self.end <= 0.0):
            return self.cfg != 1.0
        return self.end <= float(sigma) <= self.start

    def join(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Joins both into the guided velocity where guidance is active."""
        if self.zero_star:
            negative = negative * optimal_scale(positive, negative)
        velocity = torch.lerp(negative, positive, self.cfg)
        if self.rescale:
            deviation = positive.std(IMAGE, keepdim=True) / velocity.std(IMAGE, keepdim=True)
            velocity = torch.lerp(velocity, velocity * deviation, self.rescale)
        return velocity


def optimal_scale(positive: Tensor, negative: Tensor) -> Tensor:
    """Finds each image's s that brings s * negative closest to positive -> (B, 1, 1, 1)."""
    product = (positive * negative).sum(IMAGE, keepdim=True)
    return product / negative.square().sum(IMAGE, keepdim=True).clamp(min=1e-8)
