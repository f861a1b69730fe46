"""Separates lettering from what it stands on: the ground behind it, and the colour of its ink."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from .contrast import RGB, contrast
from .placing import Point

SEEN = 40.0  # distance in RGB from the ground, from which something is ink
INK_SHARE = 0.1  # of an area's pixels, those least like the ground, are the middle of its strokes
READABLE = 2.5  # contrast; below, letters are black or white instead
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def area(corners: Iterable[Sequence[Point]], size: tuple[int, int]) -> np.ndarray:
    """Marks polygons in a picture of `size`, width and height -> bool (height, width)."""
    mask = Image.new("1", size)
    draw = ImageDraw.Draw(mask)
    for polygon in corners:
        draw.polygon([(float(x), float(y)) for x, y in polygon], fill=1, outline=1)
    return np.asarray(mask)


def ground_behind(picture: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Fills what is hidden, bool (height, width), from its surroundings -> float32 (height, width, 3).

    picture: uint8 (height, width, 3). Colours run smoothly through a hole; a texture does not.
    """
    pixels = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None]
    known = torch.from_numpy(~hidden).float()[None, None]
    return _filled(pixels, known)[0].permute(1, 2, 0).numpy()


def ink_of(picture: np.ndarray, ground: np.ndarray, where: np.ndarray) -> RGB | None:
    """Finds the colour of the lettering in an area, bool (height, width); None where there is no ink."""
    pixels, behind = picture[where].astype(np.float32), ground[where]
    if not len(pixels):
        return None
    distance = np.linalg.norm(pixels - behind, axis=1)
    strokes = distance >= max(np.quantile(distance, 1 - INK_SHARE), SEEN)
    if not strokes.any():
        return None
    return _rgb(np.median(pixels[strokes], axis=0))


def readable(ink: RGB | None, ground: np.ndarray, where: np.ndarray) -> RGB:
    """Gives the ink, or black or white where it would not be read on the ground of an area."""
    behind = _rgb(np.median(ground[where], axis=0)) if where.any() else WHITE
    if ink and contrast(ink, behind) >= READABLE:
        return ink
    return max(BLACK, WHITE, key=lambda colour: contrast(colour, behind))


def _filled(pixels: Tensor, known: Tensor) -> Tensor:
    """Fills (1, 3, H, W) where `known` (1, 1, H, W) is 0: by the next coarser level, filled first."""
    if known.all():
        return pixels
    if max(known.shape) == 1 or not known.any():
        return pixels.mean((2, 3), keepdim=True).expand_as(pixels)
    share = F.avg_pool2d(known, 2, ceil_mode=True)
    coarse = F.avg_pool2d(pixels * known, 2, ceil_mode=True) / share.clamp(min=1e-6)
    coarse = _filled(coarse, (share > 0).float())
    smooth = F.interpolate(coarse, pixels.shape[2:], mode="bilinear", align_corners=False)
    return torch.where(known > 0, pixels, smooth)


def _rgb(colour: np.ndarray) -> RGB:
    red, green, blue = (int(n) for n in np.clip(np.round(colour), 0, 255))
    return red, green, blue
