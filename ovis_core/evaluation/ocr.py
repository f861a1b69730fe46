"""Reads the text in a picture, by a small seam, `image -> regions`, with rapidocr behind it.

The models are PP-OCR's (Chinese and English), 31 MB, from rapidocr's own wheel: nothing is downloaded. They
run on the CPU, beside ComfyUI's management of models, which they take nothing from.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

INSTALL = "pip install rapidocr onnxruntime"
# Pixels of the longer side. Writing that fills a picture is only found when that is small, small print only
# when it is large: so a picture is looked at again, small and large, when the first reading does not fit.
FIRST_SIDES = (384, 768)  # from and to
SMALL_SIDE = 256
LARGER = 2  # than the first time
MAX_ASPECT = 40  # beyond, there is no room for a letter, and resizing would leave no pixel

Point = tuple[float, float]


@dataclass(frozen=True)
class Region:
    """A line of writing: what it says, its corners in pixels, and how sure the reader is, 0 to 1."""

    text: str
    corners: tuple[Point, ...]
    score: float

    @property
    def top(self) -> float:
        return min(y for _, y in self.corners)

    @property
    def bottom(self) -> float:
        return max(y for _, y in self.corners)

    @property
    def left(self) -> float:
        return min(x for x, _ in self.corners)


Reader = Callable[[np.ndarray], list[Region]]  # uint8 (height, width, 3), RGB -> regions


class RapidReader:
    """rapidocr as a Reader. Raises ValueError, with the command to install it, where it is not installed."""

    def __init__(self) -> None:
        try:
            import onnxruntime  # noqa: F401, since rapidocr asks for it at the first picture only
            from rapidocr import RapidOCR
        except ImportError as error:
            raise ValueError(
                f"reading text in pictures needs rapidocr, which is not installed ({error.name} is missing); "
                f"run `{INSTALL}` in ComfyUI's Python and restart"
            ) from None
        self.engine = RapidOCR(
            params={
                # Sizes are chosen here, and an upright picture is not turned round.
                "Det.limit_type": "min",
                "Det.limit_side_len": 32,
                "Global.use_cls": False,
                "Global.log_level": "error",
            }
        )

    def __call__(self, image: np.ndarray) -> list[Region]:
        found: Any = self.engine(np.ascontiguousarray(image[:, :, ::-1]))  # it takes BGR, as OpenCV does
        if found.txts is None or found.boxes is None:
            return []
        return [
            Region(text, tuple((float(x), float(y)) for x, y in corners), float(score))
            for text, corners, score in zip(found.txts, found.boxes, found.scores, strict=True)
        ]


def looks(image: np.ndarray, read: Reader) -> Iterator[list[Region]]:
    """Reads a picture, uint8 (height, width, 3), at several sizes, each when it is asked for.

    Boxes are in the picture's own pixels, regions in reading order. A picture without room for writing has
    one reading, which is empty.
    """
    height, width = image.shape[:2]
    if min(height, width) == 0 or max(height, width) > MAX_ASPECT * min(height, width):
        yield []
        return
    first = min(max(height, width, FIRST_SIDES[0]), FIRST_SIDES[1])
    for side in (first, SMALL_SIDE, LARGER * first):
        factor = side / max(height, width)
        size = (max(round(width * factor), 1), max(round(height * factor), 1))
        seen = Image.fromarray(image)
        if size != seen.size:
            seen = seen.resize(size, Image.Resampling.BICUBIC)
        scale = (width / size[0], height / size[1])
        yield reading_order([_scaled(region, scale) for region in read(np.asarray(seen))])


def _scaled(region: Region, scale: tuple[float, float]) -> Region:
    corners = tuple((x * scale[0], y * scale[1]) for x, y in region.corners)
    return Region(region.text, corners, region.score)


def reading_order(regions: list[Region]) -> list[Region]:
    """Sorts rows from top to bottom, each from left to right.

    A region belongs to the row whose first region has its middle below the region's top.
    """
    rows: list[list[Region]] = []
    for region in sorted(regions, key=lambda region: region.top):
        if rows and region.top < (rows[-1][0].top + rows[-1][0].bottom) / 2:
            rows[-1].append(region)
        else:
            rows.append([region])
    return [region for row in rows for region in sorted(row, key=lambda region: region.left)]
