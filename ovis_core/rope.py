"""Defines rotary position embedding on several axes; names follow FLUX.

B batch, L tokens, D hidden, H heads.
"""

import torch
from torch import Tensor, nn


class EmbedND(nn.Module):
    """Rotary table of positions on several axes, `axes_dim` rotary dimensions each."""

    def __init__(self, axes_dim: tuple[int, ...], theta: float):
        super().__init__()
        self.axes_dim = axes_dim
        self.theta = theta

    def forward(self, ids: Tensor, device: torch.device) -> Tensor:
        """Makes float32 rotation matrices (1, 1, L, D/H/2, 2, 2) of ids (L, axes), integers on the CPU.

        Angles are computed in float64, since float32 loses about 1e-4 rad at the far side of a large image.
        That happens on the CPU, since some devices lack float64, and once for each position of an axis.
        """
        ids = ids.long()
        tables = []
        for axis, dim in enumerate(self.axes_dim):
            positions = torch.arange(int(ids[:, axis].max()) + 1, dtype=torch.float64)
            angle = positions[:, None] * self.theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
            cos, sin = angle.cos(), angle.sin()
            table = torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2)).float()
            tables.append(table.to(device)[ids[:, axis].to(device)])
        return torch.cat(tables, dim=1)[None, None]


def apply_rope(x: Tensor, pe: Tensor) -> Tensor:
    """Rotates neighbouring pairs of x (B, H, L, D/H) by pe, in float32 or wider."""
    pairs = x.to(torch.promote_types(x.dtype, pe.dtype)).unflatten(-1, (-1, 1, 2))
    rotated = torch.addcmul(pe[..., 0] * pairs[..., 0], pe[..., 1], pairs[..., 1])
    return rotated.flatten(-2).to(x.dtype)
