"""Draws pictures on one sheet, with labels in any script that a font of the system can write."""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from .contrast import RGB
from .fonts import Face, Fonts

MAX_PIXELS = 100 * 2**20
MAX_LINES = 4  # of one label
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Look:
    """How a sheet looks.

    cell_size: pixels of a picture's longer side at most, 0 leaves it. font_size: pixels, 0 fits the cells.
    strips: a colour behind each picture's label, which is white then.
    """

    cell_size: int = 512
    font_size: int = 0
    paper: RGB = (255, 255, 255)
    ink: RGB = (20, 20, 20)
    strips: Sequence[RGB] = ()


def draw_sheet(
    pictures: Sequence[Image.Image],
    labels: Sequence[str] = (),
    *,
    columns: int = 0,
    column_labels: Sequence[str] = (),
    row_labels: Sequence[str] = (),
    look: Look | None = None,
    fonts: Fonts | None = None,
) -> Image.Image:
    """Puts pictures row by row on a sheet, each above its label; column labels above, row labels on the left.

    columns: 0 is as many as there are column labels, else about a square. fonts: default, the system's.
    Raises ValueError for labels that do not fit the pictures in number, for a sheet that is too large, and
    for characters that no font has.
    """
    look = look or Look()
    columns, rows = grid_shape(
        len(pictures),
        columns,
        num_labels=len(labels),
        num_column_labels=len(column_labels),
        num_row_labels=len(row_labels),
    )
    scaled_sizes = [_scaled(picture.size, look.cell_size) for picture in pictures]
    width, height = (max(size[i] for size in scaled_sizes) for i in (0, 1))
    letterer = Letterer(fonts or Fonts(), look.font_size or max(12, min(width, height) // 14))
    gap = max(4, letterer.size // 2)

    below = [letterer.lines(label, width) for label in labels] or [[]] * len(pictures)
    above = [letterer.lines(label, width) for label in column_labels]
    beside = [letterer.lines(label, max(width // 2, letterer.size)) for label in row_labels]
    left = max((line.width for lines in beside for line in lines), default=0)
    left += gap if left else 0
    top = max(map(_height, above), default=0)
    top += gap if top else 0
    strips = [max(map(_height, below[i * columns : (i + 1) * columns]), default=0) for i in range(rows)]

    size = gap + left + columns * (width + gap), gap + top + rows * (height + gap) + sum(strips)
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(
            f"the sheet would be {size[0]}x{size[1]} pixels, at most {MAX_PIXELS // 2**20} megapixels are "
            "made; choose a smaller cell_size or fewer pictures"
        )
    sheet = Image.new("RGB", size, look.paper)
    draw = ImageDraw.Draw(sheet)
    across = [gap + left + i * (width + gap) for i in range(columns)]
    down = [gap + top + sum(strips[:i]) + i * (height + gap) for i in range(rows)]
    for i, (picture, scaled) in enumerate(zip(pictures, scaled_sizes, strict=True)):
        x, y = across[i % columns], down[i // columns]
        if scaled != picture.size:
            picture = picture.resize(scaled, Image.Resampling.LANCZOS)
        sheet.paste(picture, (x + (width - scaled[0]) // 2, y + (height - scaled[1]) // 2))
        if look.strips:
            box = (x, y + height, x + width - 1, y + height + strips[i // columns] - 1)
            draw.rectangle(box, fill=look.strips[i])
        _draw_lines(draw, below[i], x, y + height, width, WHITE if look.strips else look.ink)
    for x, lines in zip(across, above, strict=False):
        _draw_lines(draw, lines, x, top - _height(lines), width, look.ink)
    for y, lines in zip(down, beside, strict=False):
        _draw_lines(draw, lines, gap, y + (height - _height(lines)) // 2, left - gap, look.ink)
    return sheet


def grid_shape(
    num_pictures: int,
    columns: int = 0,
    *,
    num_labels: int = 0,
    num_column_labels: int = 0,
    num_row_labels: int = 0,
) -> tuple[int, int]:
    """Counts columns and rows. Raises ValueError where the numbers of pictures and labels do not agree."""
    if not num_pictures:
        raise ValueError("there are no pictures; connect at least one")
    if num_labels and num_labels != num_pictures:
        raise ValueError(
            f"there are {num_labels} labels for {num_pictures} pictures; give each its own, or none"
        )
    if columns and num_column_labels and num_column_labels != columns:
        raise ValueError(
            f"there are {num_column_labels} column labels for {columns} columns; give one a column, or none"
        )
    columns = columns or num_column_labels
    if not columns:
        square = math.isqrt(num_pictures - 1) + 1
        columns = -(-num_pictures // num_row_labels) if num_row_labels else square
    rows = -(-num_pictures // columns)
    if num_row_labels and num_row_labels != rows:
        raise ValueError(
            f"there are {num_row_labels} row labels for {rows} rows ({num_pictures} pictures in {columns} "
            "columns); give each one, or none"
        )
    return columns, rows


@dataclass(frozen=True)
class Line:
    """A line of a label in its fonts; sizes in pixels."""

    runs: tuple[tuple[str, ImageFont.FreeTypeFont], ...]

    @property
    def width(self) -> int:
        return round(sum(font.getlength(text) for text, font in self.runs))

    @property
    def ascent(self) -> int:
        return max((font.getmetrics()[0] for _, font in self.runs), default=0)

    @property
    def height(self) -> int:
        return self.ascent + max((font.getmetrics()[1] for _, font in self.runs), default=0)


class Letterer:
    """Sets labels at one size."""

    def __init__(self, fonts: Fonts, size: int) -> None:
        self.fonts, self.size = fonts, size
        self.loaded: dict[Face, ImageFont.FreeTypeFont] = {}

    def lines(self, text: str, width: int) -> list[Line]:
        """Breaks the label into lines of at most `width` pixels; what is beyond the last line is cut."""
        lines: list[str] = []
        for paragraph in text.strip().splitlines():
            lines += self._wrap(paragraph.strip(), width)
        if len(lines) > MAX_LINES:
            last = lines[MAX_LINES - 1]
            while last and self.line(last + "...").width > width:
                last = last[:-1]
            lines = [*lines[: MAX_LINES - 1], last + "..."]
        return [self.line(line) for line in lines]

    def line(self, text: str) -> Line:
        # Tabs and other controls would be drawn as the sign for a missing character.
        text = "".join(" " if unicodedata.category(c) == "Cc" or c.isspace() else c for c in text)
        return Line(tuple((run, self._font(face)) for run, face in self.fonts.runs(text)) if text else ())

    def _font(self, face: Face) -> ImageFont.FreeTypeFont:
        if face not in self.loaded:
            self.loaded[face] = face.at(self.size, is_shaped=True)
        return self.loaded[face]

    def _wrap(self, text: str, width: int) -> Iterator[str]:
        """Breaks at spaces, and inside a word only where it is wider than a line, as Chinese is."""
        while text:
            fits = self._fitting(text, width)
            if fits < len(text):
                space = text.rfind(" ", 0, fits + 1)
                fits = space if space > 0 else fits
            yield text[:fits].rstrip()
            text = text[fits:].lstrip()

    def _fitting(self, text: str, width: int) -> int:
        """Counts the characters of the beginning that fit, at least 1."""
        low, high = 1, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if self.line(text[:middle]).width <= width:
                low = middle
            else:
                high = middle - 1
        return low


def _scaled(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Makes a size smaller until the longer side fits."""
    factor = min(1.0, longest / max(size)) if longest else 1.0
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _height(lines: Sequence[Line]) -> int:
    return sum(line.height for line in lines)


def _draw_lines(
    draw: ImageDraw.ImageDraw, lines: Sequence[Line], x: int, y: int, width: int, ink: RGB
) -> None:
    """Draws lines below each other, centred in `width`, each run on the common baseline."""
    for line in lines:
        pen = x + (width - line.width) / 2
        for text, font in line.runs:
            draw.text((pen, y + line.ascent), text, ink, font, anchor="ls")
            pen += font.getlength(text)
        y += line.height
