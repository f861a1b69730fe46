"""Names colours that are told apart in a small picture."""

from dataclasses import dataclass

import numpy as np

from ..drawing.contrast import RGB


@dataclass(frozen=True)
class Colour:
    name: str
    chinese: str  # without the 色 that follows it in a sentence
    rgb: RGB


# Most useful first: a narrowed palette is a beginning of this list.
PALETTE = (
    Colour("white", "白", (252, 252, 250)),
    Colour("black", "黑", (18, 18, 20)),
    Colour("red", "红", (205, 28, 38)),
    Colour("yellow", "黄", (252, 216, 48)),
    Colour("blue", "蓝", (28, 72, 190)),
    Colour("green", "绿", (22, 124, 62)),
    Colour("orange", "橙", (250, 138, 22)),
    Colour("purple", "紫", (112, 38, 158)),
    Colour("pink", "粉红", (250, 158, 196)),
    Colour("brown", "棕", (104, 60, 30)),
    Colour("cyan", "青", (72, 206, 218)),
    Colour("grey", "灰", (128, 130, 134)),
)
COLOURS = {colour.name: colour for colour in PALETTE}


def nearest_colour(rgb: tuple[float, float, float]) -> Colour:
    """Finds the palette's colour closest to a measured one."""
    return min(PALETTE, key=lambda c: sum((x - y) ** 2 for x, y in zip(c.rgb, rgb, strict=True)))


def writing_colours(image: np.ndarray) -> tuple[str, str]:
    """Names the colours of the writing and of the plain ground of a picture, uint8 (height, width, 3).

    The ground is the median of the picture's edge, the writing that of the 2 % of pixels least like it.
    """
    pixels = image.astype(float)
    edge = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
    ground = np.median(edge, axis=0)
    flat = pixels.reshape(-1, 3)
    distance = np.square(flat - ground).sum(1)
    ink = flat[distance >= np.quantile(distance, 0.98)]
    return nearest_colour(tuple(np.median(ink, axis=0))).name, nearest_colour(tuple(ground)).name
