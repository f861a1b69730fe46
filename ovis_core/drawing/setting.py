"""Sets text in type: breaks it into lines, finds the size that fits a box, and draws its coverage.

Lines run from left to right, or as columns from right to left. Sizes are pixels an em, lengths of `Type` ems.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw, ImageFont

from .fonts import Face, Fonts, is_drawn

MIN_SIZE = 5  # pixels an em; below, nobody can read it
BREAKS_HAN_FROM = 2.0  # times as large as unbroken: only then is a line of Chinese broken to fit
ALIGNMENTS = {"left": 0.0, "centre": 0.5, "right": 1.0}
VERTICAL_ALIGNMENTS = {"top": 0.0, "middle": 0.5, "bottom": 1.0}

# Of an em, in Chinese fonts: the baseline below the top of a character's square.
SQUARE_ASCENT = 0.88
# Of an em: the middle of Latin capitals above their baseline, which stands on the middle of a column.
LATIN_MIDDLE = 0.36
UPRIGHT = re.compile(
    "[\u1100-\u11ff\u2e80-\u2fff\u3000-\u30ff\u3100-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
    "\ufe10-\ufe1f\ufe30-\ufe4f\uff00-\uff60\uffe0-\uffe6\U00020000-\U0003ffff]"
)
IN_COLUMNS = "“”…—"  # of Chinese, too, with forms for columns
HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff\uf900-\ufaff\U00020000-\U0003ffff]")
CLOSING = "，。、；：！？”’」』）》〉】…—,.;:!?)"  # never first in a line
OPENING = "“‘「『（《〈【("  # never last in a line
VERTICAL_FORMS = dict(
    zip(
        "，、。：；！？（）《》〈〉【】「」『』“”…—",
        "︐︑︒︓︔︕︖︵︶︽︾︿﹀︻︼﹁﹂﹃﹄﹃﹄︙︱",
        strict=True,
    )
)


@dataclass(frozen=True)
class Type:
    """How text is set.

    size: pixels an em, 0 is the largest that fits. line_spacing: baseline to baseline, tracking: between
    characters, outline: beyond a letter's edge, all in ems.
    """

    faces: tuple[Face, ...] = ()
    size: int = 0
    align: str = "centre"
    vertical_align: str = "middle"
    line_spacing: float = 1.2
    tracking: float = 0.0
    outline: float = 0.0
    is_vertical: bool | None = False  # None: where a box is more than twice as high as wide, and Chinese

    def stroke(self, size: int) -> int:
        """Gives the outline's width in pixels, at least 1 where one is wanted."""
        return max(1, round(self.outline * size)) if self.outline else 0


@dataclass(frozen=True)
class Laid:
    """Text on its lines at a size, and the pixels that its ink takes."""

    lines: tuple[str, ...]
    size: int
    width: int
    height: int


@dataclass(frozen=True)
class Coverage:
    """Set text on a canvas that is larger than its box by `pad` pixels on each side; modes L."""

    letters: Image.Image
    outline: Image.Image  # the letters with their outline
    pad: int


@dataclass(frozen=True)
class Glyphs:
    """What is drawn at once, its pen `x` and `y` from the line's start in pixels."""

    text: str
    font: ImageFont.FreeTypeFont
    x: float
    y: float = 0.0
    is_turned: bool = False  # a quarter, clockwise, in a column


@dataclass(frozen=True)
class Ink:
    """What a line's ink takes from its start, in pixels."""

    left: float
    top: float
    right: float
    bottom: float


class Typesetter:
    """Sets text of one type."""

    def __init__(self, fonts: Fonts, kind: Type) -> None:
        self.fonts, self.kind = fonts, kind
        self.font_at: Callable[[Face, int], ImageFont.FreeTypeFont] = lru_cache(maxsize=256)(_load)

    def lay(self, text: str, width: int, height: int) -> Laid:
        """Breaks text into lines at its size, or at the largest that fits `width` x `height` pixels.

        Lines break where they were typed to, and at spaces; Chinese is broken only where it would else be
        less than half as large. Raises ValueError for text that does not fit, or that no font can write.
        """
        paragraphs = [_without_controls(line) for line in text.strip().splitlines()]
        if not any(is_drawn(character) for line in paragraphs for character in line):
            raise ValueError("there is no text to set; type one")
        largest = self._largest(paragraphs, width, height, breaks_han=False)
        found, breaks_han = largest, False
        if any(HAN.search(line) for line in paragraphs):
            broken = self._largest(paragraphs, width, height, breaks_han=True)
            if broken and (not largest or broken.size >= BREAKS_HAN_FROM * largest.size):
                found, breaks_han = broken, True
        if not found:
            size = self.kind.size or MIN_SIZE
            raise ValueError(
                f'"{_short(text)}" does not fit its box of {width}x{height} pixels at {size} pixels an em; '
                + ("use size 0, which fits it, or a larger box" if self.kind.size else "use a larger box")
            )
        return self._balanced(found, paragraphs, height if self.kind.is_vertical else width, breaks_han)

    def draw(self, laid: Laid, width: int, height: int) -> Coverage:
        """Draws laid text in a box of `width` x `height` pixels."""
        stroke = self.kind.stroke(laid.size)
        pad = stroke + laid.size  # ink may reach beyond its advance
        canvas = (width + 2 * pad, height + 2 * pad)
        letters, outline = Image.new("L", canvas), Image.new("L", canvas)
        for glyphs, x, y in self._placed(laid, width, height):
            _draw(letters, glyphs, pad + x, pad + y, 0)
            if stroke:
                _draw(outline, glyphs, pad + x, pad + y, stroke)
        return Coverage(letters, outline if stroke else letters, pad)

    def _placed(self, laid: Laid, width: int, height: int) -> Iterator[tuple[Glyphs, float, float]]:
        """Gives each line's glyphs with the place of its start in the box."""
        across, down = ALIGNMENTS[self.kind.align], VERTICAL_ALIGNMENTS[self.kind.vertical_align]
        step, stroke = self._step(laid.size), self.kind.stroke(laid.size)
        lines = [self._line(line, laid.size) for line in laid.lines]
        x0, y0 = (width - laid.width) * across + stroke, (height - laid.height) * down + stroke
        inner = laid.width - 2 * stroke, laid.height - 2 * stroke
        for i, (glyphs, box) in enumerate(lines):
            if self.kind.is_vertical:
                right = max(box.right for _, box in lines[:1])
                x = x0 + inner[0] - right - i * step
                y = y0 + (inner[1] - (box.bottom - box.top)) * down - box.top
            else:
                x = x0 + (inner[0] - (box.right - box.left)) * across - box.left
                y = y0 - lines[0][1].top + i * step
            for glyph in glyphs:
                yield glyph, x, y

    def _largest(self, paragraphs: Sequence[str], width: int, height: int, breaks_han: bool) -> Laid | None:
        """Lays lines at the size asked for, else at the largest that fits; None where none does."""
        room = height if self.kind.is_vertical else width
        low = self.kind.size or MIN_SIZE
        high, best = self.kind.size or 3 * max(width, height, MIN_SIZE), None
        while low <= high:
            size = (low + high) // 2
            laid = self._laid(self._wrapped(paragraphs, size, room, breaks_han), size)
            if laid.width <= width and laid.height <= height:
                best, low = laid, size + 1
            else:
                high = size - 1
        return best

    def _balanced(self, laid: Laid, paragraphs: Sequence[str], room: int, breaks_han: bool) -> Laid:
        """Makes lines nearly the same length: narrows them for as long as that makes no line more."""
        low = 0 if len(laid.lines) > len(paragraphs) else room
        while room - low > 1:
            middle = (low + room) // 2
            narrow = self._laid(self._wrapped(paragraphs, laid.size, middle, breaks_han), laid.size)
            along = narrow.height if self.kind.is_vertical else narrow.width
            if len(narrow.lines) == len(laid.lines) and along <= middle:
                laid, room = narrow, middle
            else:
                low = middle
        return laid

    def _wrapped(self, paragraphs: Sequence[str], size: int, room: float, breaks_han: bool) -> list[str]:
        lines = []
        for paragraph in paragraphs:
            line = ""
            for piece in _pieces(paragraph, breaks_han):
                if line.strip() and self._along((line + piece).rstrip(), size) > room:
                    lines.append(line.rstrip())
                    line = ""
                line += piece
            lines.append(line.rstrip())
        return lines

    def _along(self, text: str, size: int) -> float:
        box = self._line(text, size)[1]
        length = box.bottom - box.top if self.kind.is_vertical else box.right - box.left
        return length + 2 * self.kind.stroke(size)

    def _laid(self, lines: Sequence[str], size: int) -> Laid:
        boxes = [self._line(line, size)[1] for line in lines]
        step, stroke = self._step(size), self.kind.stroke(size)
        if self.kind.is_vertical:
            width = boxes[0].right - boxes[-1].left + (len(lines) - 1) * step
            height = max(box.bottom - box.top for box in boxes)
        else:
            width = max(box.right - box.left for box in boxes)
            height = boxes[-1].bottom - boxes[0].top + (len(lines) - 1) * step
        return Laid(tuple(lines), size, math.ceil(width) + 2 * stroke, math.ceil(height) + 2 * stroke)

    def _step(self, size: int) -> int:
        return round(self.kind.line_spacing * size)

    def _line(self, text: str, size: int) -> tuple[list[Glyphs], Ink]:
        glyphs = list(self._column(text, size) if self.kind.is_vertical else self._row(text, size))
        boxes = [_ink(glyph) for glyph in glyphs if any(map(is_drawn, glyph.text))]
        if not boxes:
            return glyphs, Ink(0, 0, 0, 0)
        lefts, tops, rights, bottoms = zip(*boxes, strict=True)
        return glyphs, Ink(min(lefts), min(tops), max(rights), max(bottoms))

    def _row(self, text: str, size: int) -> Iterator[Glyphs]:
        pen = 0.0
        for run, face in self.fonts.runs(text, self.kind.faces) if text else ():
            font = self.font_at(face, size)
            for part in _clusters(run) if self.kind.tracking else [run]:
                yield Glyphs(part, font, pen)
                pen += font.getlength(part) + self.kind.tracking * size

    def _column(self, text: str, size: int) -> Iterator[Glyphs]:
        """Sets characters of Chinese upright, one or two digits side by side, other words turned."""
        pen, tracking = 0.0, self.kind.tracking * size
        for part in _column_parts(text):
            form = VERTICAL_FORMS.get(part, part)
            stands = UPRIGHT.match(part) or form != part or (len(part) <= 2 and part.isdigit())
            for run, face in self.fonts.runs(part, self.kind.faces):
                font = self.font_at(face, size)
                if stands:
                    run = form if form != part and self.fonts.has(face, form) else run
                    yield Glyphs(run, font, -font.getlength(run) / 2, pen + SQUARE_ASCENT * size)
                    pen += size + tracking
                else:
                    yield Glyphs(run, font, -LATIN_MIDDLE * size, pen, is_turned=True)
                    pen += font.getlength(run) + tracking


def _load(face: Face, size: int) -> ImageFont.FreeTypeFont:
    return face.at(size, is_shaped=True)


def _ink(glyphs: Glyphs) -> tuple[float, float, float, float]:
    left, top, right, bottom = glyphs.font.getbbox(glyphs.text, anchor="ls")
    if glyphs.is_turned:  # what was up is on the right
        left, top, right, bottom = -bottom, left, -top, right
    return glyphs.x + left, glyphs.y + top, glyphs.x + right, glyphs.y + bottom


def _draw(canvas: Image.Image, glyphs: Glyphs, x: float, y: float, stroke: int) -> None:
    x, y = x + glyphs.x, y + glyphs.y
    # A canvas of its own, since drawn over one another in one canvas, soft edges would be added up.
    if not glyphs.is_turned:
        layer = Image.new("L", canvas.size)
        ImageDraw.Draw(layer).text((x, y), glyphs.text, 255, glyphs.font, anchor="ls", stroke_width=stroke)
        canvas.paste(ImageChops.lighter(canvas, layer))
        return
    left, top, right, bottom = glyphs.font.getbbox(glyphs.text, anchor="ls", stroke_width=stroke)
    layer = Image.new("L", (math.ceil(right - left) + 2, math.ceil(bottom - top) + 2))
    ImageDraw.Draw(layer).text(
        (1 - left, 1 - top), glyphs.text, 255, glyphs.font, anchor="ls", stroke_width=stroke
    )
    turned = layer.transpose(Image.Transpose.ROTATE_270)
    corner = round(x - (layer.height - (1 - top))), round(y + left - 1)
    whole = Image.new("L", canvas.size)
    whole.paste(turned, corner)
    canvas.paste(ImageChops.lighter(canvas, whole))


def _without_controls(line: str) -> str:
    """Makes tabs and other controls spaces, which would be drawn as the sign for a missing character."""
    return "".join(" " if unicodedata.category(c) == "Cc" or c.isspace() else c for c in line).strip()


def _pieces(paragraph: str, breaks_han: bool) -> Iterator[str]:
    """Cuts a paragraph where a line may end; a piece keeps the space behind it."""
    piece = ""
    for i, character in enumerate(paragraph):
        piece += character
        following = paragraph[i + 1 : i + 2]
        is_space = character == " " and following != " "
        between = HAN.match(character) or HAN.match(following) or character in CLOSING
        if is_space or (
            breaks_han
            and between
            and following
            and following != " "
            and character not in OPENING
            and following not in CLOSING
            and not (character.isascii() and following.isascii())
        ):
            yield piece
            piece = ""
    if piece:
        yield piece


def _clusters(text: str) -> Iterator[str]:
    """Cuts a text into what tracking sets apart: a character with its marks, letters that join whole."""
    cluster = ""
    for character in text:
        joins = unicodedata.bidirectional(character) in ("R", "AL") and cluster[-1:].strip()
        extends = unicodedata.combining(character) or not (is_drawn(character) or character.isspace())
        if cluster and not extends and not (joins and unicodedata.bidirectional(cluster[-1]) in ("R", "AL")):
            yield cluster
            cluster = ""
        cluster += character
    if cluster:
        yield cluster


def _column_parts(text: str) -> Iterator[str]:
    """Cuts a column into characters that stand upright and words that do not."""
    stands = f"[{UPRIGHT.pattern[1:-1]}{IN_COLUMNS}]" if HAN.search(text) else UPRIGHT.pattern
    yield from re.findall(f"{stands}|(?:(?!{stands}).)+", text)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 24 else line[:23] + "…"
