"""Sets writing into an area, as large as asked or as fits, on one line or two."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image, ImageChops, ImageDraw, ImageFont

LINE_SPACING = 1.12  # baseline to baseline, of the size
GRID = 16  # pixels, an image token of the MMDiT
ROOM_BESIDE = 0.64  # of the area that writing may fill where its position is to be seen


class Rect(NamedTuple):
    """A rectangle in pixels; `right` and `bottom` are the first ones outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    def moved(self, dx: int, dy: int) -> "Rect":
        return Rect(self.left + dx, self.top + dy, self.right + dx, self.bottom + dy)


@dataclass(frozen=True)
class Block:
    """Set writing: its coverage, and where it lies in the picture."""

    mask: Image.Image  # mode L
    box: Rect
    lines: tuple[str, ...]
    boxes: tuple[Rect, ...]  # of each line's ink
    size: int  # pixels an em


def line_breaks(text: str) -> list[tuple[str, ...]]:
    """Puts a text on one line, and several words also on two of nearly the same length."""
    words = text.split(" ")
    breaks = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
    # A sign between words never begins or ends a line alone.
    breaks = [lines for lines in breaks if all(line.strip("&+") for line in lines)]
    return [(text,), *sorted(breaks, key=lambda lines: max(map(len, lines)))[:1]]


def set_block(
    text: str,
    font_at: Callable[[int], ImageFont.FreeTypeFont],
    area: Rect,
    position: str,
    size: int,
    min_size: int,
    angle: float,
) -> Block | None:
    """Sets text at `size` pixels an em, smaller where it does not fit, on the lines that let it be largest.

    None where it does not fit at `min_size`. angle: degrees, counterclockwise.
    """
    room = _room(area, position)
    best: tuple[int, tuple[str, ...]] | None = None
    for lines in line_breaks(text):
        fitting = _fitting_size(lines, font_at, room, size, angle)
        if fitting >= min_size and (best is None or fitting > best[0]):
            best = fitting, lines
    if best is None:
        return None
    return _draw(best[1], font_at(best[0]), best[0], area, position, angle)


def set_on_grid(
    text: str, font_at: Callable[[int], ImageFont.FreeTypeFont], area: Rect, position: str, size: int
) -> Block | None:
    """Sets text on one line at `size` pixels an em, placed by its advance and its font's height.

    Its left end is a multiple of GRID: in a font whose advance is one too, every character stands whole on
    the MMDiT's image tokens, where a small model finds it. None where it does not fit.
    """
    font = font_at(size)
    width, height = round(font.getlength(text)), sum(font.getmetrics())
    left, top = _corner(area, position, width, height)
    left = math.ceil(left / GRID) * GRID
    if left + width > area.right or not area.top <= top <= area.bottom - height:
        return None
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).text((0, font.getmetrics()[0]), text, fill=255, font=font, anchor="ls")
    ink = _ink(mask)
    box = ink.moved(left, top)
    return Block(mask.crop(ink), box, (text,), (box,), size)


def _ink(mask: Image.Image) -> Rect:
    """Finds where a mask is not empty, of which writing always leaves something."""
    return Rect(*(mask.getbbox() or (0, 0, 1, 1)))


def _room(area: Rect, position: str) -> tuple[float, float]:
    """Gives the width and height at which writing is still seen to be on the left, at the top, ..."""
    width, height = float(area.width), float(area.height)
    if "left" in position or "right" in position:
        width *= ROOM_BESIDE
    if "top" in position or "bottom" in position:
        height *= ROOM_BESIDE
    return width, height


def _fitting_size(
    lines: Sequence[str],
    font_at: Callable[[int], ImageFont.FreeTypeFont],
    room: tuple[float, float],
    size: int,
    angle: float,
) -> int:
    """Finds the largest size up to `size` at which the lines fit, 0 if none."""
    while size > 0:
        width, height = _extent(lines, font_at(size), size, angle)
        if width <= room[0] and height <= room[1]:
            return size
        size = min(size - 1, int(size * min(room[0] / width, room[1] / height)) + 1)
    return 0


def _extent(
    lines: Sequence[str], font: ImageFont.FreeTypeFont, size: int, angle: float
) -> tuple[float, float]:
    boxes = [font.getbbox(line, anchor="ls") for line in lines]
    width = max(box[2] - box[0] for box in boxes)
    height = boxes[-1][3] - boxes[0][1] + (len(lines) - 1) * round(size * LINE_SPACING)
    cos, sin = math.cos(math.radians(angle)), abs(math.sin(math.radians(angle)))
    slack = 2 if angle else 0  # rotation spreads ink over the next pixel
    return width * cos + height * sin + slack, width * sin + height * cos + slack


def _draw(
    lines: Sequence[str], font: ImageFont.FreeTypeFont, size: int, area: Rect, position: str, angle: float
) -> Block:
    layers = _layers(lines, font, size, position)
    if angle:
        layers = [layer.rotate(angle, Image.Resampling.BICUBIC, expand=True) for layer in layers]
    mask = layers[0]
    for layer in layers[1:]:
        mask = ImageChops.lighter(mask, layer)

    ink = _ink(mask)
    left, top = _corner(area, position, ink.width, ink.height)
    shift = left - ink.left, top - ink.top
    boxes = tuple(_ink(layer).moved(*shift) for layer in layers)
    return Block(mask.crop(ink), ink.moved(*shift), tuple(lines), boxes, size)


def _layers(
    lines: Sequence[str], font: ImageFont.FreeTypeFont, size: int, position: str
) -> list[Image.Image]:
    """Draws each line alone on a canvas that holds them all."""
    boxes = [font.getbbox(line, anchor="ls") for line in lines]
    canvas = [math.ceil(n) for n in _extent(lines, font, size, angle=0)]
    layers = []
    for i, (line, box) in enumerate(zip(lines, boxes, strict=True)):
        spare = canvas[0] - (box[2] - box[0])
        indent = 0 if "left" in position else spare if "right" in position else spare // 2
        baseline = i * round(size * LINE_SPACING) - boxes[0][1]
        layer = Image.new("L", canvas)
        ImageDraw.Draw(layer).text((indent - box[0], baseline), line, fill=255, font=font, anchor="ls")
        layers.append(layer)
    return layers


def _corner(area: Rect, position: str, width: int, height: int) -> tuple[int, int]:
    left, top, right, bottom = area
    x, y = (left + right - width) // 2, (top + bottom - height) // 2
    if "left" in position:
        x = left
    elif "right" in position:
        x = right - width
    if "top" in position:
        y = top
    elif "bottom" in position:
        y = bottom - height
    return x, y
