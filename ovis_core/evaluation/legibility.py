"""Measures how legible writing is: its strokes beside those of the same characters in plain fonts.

A reader completes what it expects, and is sure of it. So it is not asked: each character is cut out of its
line and compared, by the directions of its edges, with the glyphs of plain fonts of this system.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..drawing.fonts import BUILT_IN, ENDINGS, FOLDERS, SIMPLIFIED, Face, Fonts
from .ocr import Region

# File names of plain faces: sans, serif and monospace, regular and bold.
PLAIN = {
    *("dejavusans", "dejavusans-bold", "dejavuserif", "dejavuserif-bold", "dejavusansmono-bold"),
    *("liberationsans-regular", "liberationsans-bold", "liberationserif-regular", "liberationserif-bold"),
    *("liberationmono-regular", "liberationmono-bold", "arial", "arialbd", "times", "timesbd", "cour"),
    *("courbd", "georgia", "georgiab", "segoeui", "segoeuib", "helvetica", "times new roman", "courier new"),
    *("notosanscjk-regular", "notosanscjk-bold", "notoserifcjk-regular", "notoserifcjk-bold", "simsun"),
    *("wqy-microhei", "msyh", "msyhbd", "simhei", "pingfang", "hiragino sans gb", "songti"),
}
LINE = 48  # pixels of a line's height
SIDE, MARGIN = 32, 4  # pixels of a character, and around it
NARROW = 0.6  # of a character's sides: beyond, it is not stretched to a square, so that I is no block
CELLS, DIRECTIONS = 5, 8
FAINT, FULL = 0.15, 0.85  # coverage that counts for none, and for all: the ground is never quite even
STROKE = 0.3  # coverage from which a pixel belongs to a stroke
FLATTEN = 0.7  # power of the histogram: small edges, where a stroke breaks, count for more than their share
RING = LINE // 6  # pixels along a line's edges: mostly ground, and what lies beside the writing
FILLED = 0.8  # of a row or column of the ring with ink: an edge of the ground, no writing
SMALL = 0.3  # em of a character's longer side: what is smaller, as a full stop, has no strokes to compare
FEW = 2  # characters: a box round so few is often slanted where they are not
TALL = 1.5  # of height to width: from there a region of several characters is set vertically
CAPITAL = 0.75  # of a line's height
SHARPNESS = (8, 12, 16, 24, 32, 48)  # pixels of a capital's height, to which the glyphs are drawn alike
HALF = 0.05  # of difference, 0 to 1, with which legibility halves


@dataclass(frozen=True)
class Weakest:
    """The character of a text that is hardest to read, and its legibility, 0 to 1."""

    character: str
    legibility: float


# A picture, uint8 (height, width, 3), and a region of it -> its characters that could be compared.
Measure = Callable[[np.ndarray, Region], list[Weakest]]


def plain_faces(folders: Iterable[str | Path] = FOLDERS) -> list[Face]:
    """Finds the plain fonts of some folders; Pillow's own, which has Latin letters, is always there."""
    found: dict[str, Face] = {}
    for folder in folders:
        for path in sorted(Path(folder).expanduser().rglob("*")):
            name = path.stem.lower()
            if name in PLAIN and path.suffix.lower() in ENDINGS:
                found.setdefault(name, Face(path, SIMPLIFIED if "cjk" in name else 0))
    return [BUILT_IN, *found.values()]


class Legibility:
    """A Measure by some faces, default the plain ones of the system; it keeps the glyphs that it drew."""

    def __init__(self, faces: Sequence[Face] | None = None) -> None:
        self.faces = plain_faces() if faces is None else list(faces)
        self.fonts = Fonts([])
        self.loaded = {face: face.at(2 * SIDE) for face in self.faces}
        self.boxes: dict[tuple[Face, str], tuple[int, ...]] = {}
        self.glyphs: dict[tuple[Face, str, int], np.ndarray | None] = {}

    def __call__(self, image: np.ndarray, region: Region) -> list[Weakest]:
        """Measures the characters of a region, without spaces, small signs and those that no face has."""
        text = [character for character in region.text if self._faces(character)]
        region = _upright(region) if len(text) <= FEW else region
        ink = _ink(_line(image, region))
        if not text or not (ink > STROKE).any():
            return [Weakest(character, 0.0) for character in text if self._is_large(character)]
        is_vertical = len(text) > 1 and ink.shape[0] > TALL * ink.shape[1]
        ink = ink.T if is_vertical else _one_line(ink)
        sharpness = _sharpness(region)
        ways = []
        for borders in {tuple(self._borders(text, ink, face)) for face in self._faces(text[0])}:
            parts = [ink[:, left:right] for left, right in zip(borders, borders[1:], strict=False)]
            seen = [_edges(part.T if is_vertical else part) for part in parts]
            ways.append([self._alike(*pair, sharpness) for pair in zip(text, seen, strict=True)])
        best = zip(text, max(ways, key=sum), strict=True)
        return [
            Weakest(character, 0.5 ** ((1 - alike) / HALF))
            for character, alike in best
            if self._is_large(character)
        ]

    def _faces(self, character: str) -> list[Face]:
        if character.isspace():
            return []
        return [face for face in self.faces if self.fonts.has(face, character)]

    def _is_large(self, character: str) -> bool:
        left, top, right, bottom = self._box(self._faces(character)[0], character)
        return max(right - left, bottom - top) >= SMALL * 2 * SIDE

    def _box(self, face: Face, character: str) -> tuple[int, ...]:
        """Finds a glyph's ink: left, top, right, bottom in pixels from where it is drawn."""
        key = face, character
        if key not in self.boxes:
            box = self._draw(face, character).getbbox() or (2 * SIDE,) * 4
            self.boxes[key] = tuple(side - 2 * SIDE for side in box)
        return self.boxes[key]

    def _draw(self, face: Face, character: str) -> Image.Image:
        picture = Image.new("L", (6 * SIDE, 6 * SIDE))  # room for accents and for what hangs over
        ImageDraw.Draw(picture).text((2 * SIDE, 2 * SIDE), character, 255, self.loaded[face])
        return picture

    def _alike(self, character: str, seen: np.ndarray | None, sharpness: int) -> float:
        """Compares with the face that fits best, 0 to 1."""
        if seen is None:
            return 0.0
        glyphs = (self._glyph(face, character, sharpness) for face in self._faces(character))
        return min(1.0, max((float(seen @ glyph) for glyph in glyphs if glyph is not None), default=0.0))

    def _glyph(self, face: Face, character: str, sharpness: int) -> np.ndarray | None:
        key = face, character, sharpness
        if key not in self.glyphs:
            picture = self._draw(face, character)
            small = round(picture.width * sharpness / (2 * SIDE))
            coarse = picture.resize((small, small), Image.Resampling.BOX)
            picture = coarse.resize(picture.size, Image.Resampling.BICUBIC)
            self.glyphs[key] = _edges(_contrast(np.asarray(picture) / 255))
        return self.glyphs[key]

    def _borders(self, text: Sequence[str], ink: np.ndarray, face: Face) -> Iterator[int]:
        """Cuts a line between its characters: about where the face would, and where there is least ink."""
        columns = ink.sum(0)
        inked = np.flatnonzero((ink > STROKE).any(0))
        start, end = int(inked[0]), int(inked[-1]) + 1
        font = self.loaded[face]
        pens = np.cumsum([0.0, *(font.getlength(character) for character in text[:-1])])
        boxes = np.array([self._box(face, character) for character in text], float)
        lefts, rights = pens + boxes[:, 0], pens + boxes[:, 2]
        scale = (end - start) / max(rights[-1] - lefts[0], 1)
        widths = np.maximum((rights - lefts) * scale, 1)
        expected = start + ((rights[:-1] + lefts[1:]) / 2 - lefts[0]) * scale
        border = start
        yield border
        for i in range(len(text) - 1):
            first = max(int(expected[i] - widths[i] / 2), border + 1)
            last = max(int(expected[i] + widths[i + 1] / 2), first)
            near = np.arange(first, last + 1).clip(0, len(columns) - 1)
            cost = columns[near] + np.abs(near - expected[i]) / min(widths[i], widths[i + 1])
            border = int(near[cost.argmin()])
            yield border
        yield end


def _line(image: np.ndarray, region: Region) -> np.ndarray:
    """Cuts a region out and sets it upright, its shorter side LINE pixels."""
    width, height = _sides(region)
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = region.corners
    line = Image.fromarray(image).transform(
        (round(width), round(height)),
        Image.Transform.QUAD,
        (x0, y0, x3, y3, x2, y2, x1, y1),
        Image.Resampling.BICUBIC,
    )
    scale = LINE / min(width, height)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    return np.asarray(line.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC))


def _upright(region: Region) -> Region:
    """Gives the region the upright box round its corners."""
    left, right = (edge(x for x, _ in region.corners) for edge in (min, max))
    top, bottom = (edge(y for _, y in region.corners) for edge in (min, max))
    return Region(region.text, ((left, top), (right, top), (right, bottom), (left, bottom)), region.score)


def _sides(region: Region) -> tuple[float, float]:
    """Gives the longer of the two widths and heights in pixels, at least 1."""
    a, b, c, d = region.corners
    return max(math.dist(a, b), math.dist(d, c), 1.0), max(math.dist(a, d), math.dist(b, c), 1.0)


def _sharpness(region: Region) -> int:
    """Finds how large a capital is in the picture: small writing is coarse, and that is no damage."""
    capital = CAPITAL * min(_sides(region))
    return min(SHARPNESS, key=lambda pixels: abs(math.log(pixels / capital)))


def _ink(line: np.ndarray) -> np.ndarray:
    """Computes the coverage, 0 to 1, from the distance to the colour that is most of the edges'."""
    pixels = line.astype(float)
    inside = np.zeros(line.shape[:2], bool)
    inside[RING:-RING, RING:-RING] = True
    distance = np.abs(pixels - np.median(pixels[~inside], axis=0)).sum(-1)
    strongest = float(np.percentile(distance[inside] if inside.any() else distance, 97))
    ink = _contrast(distance / max(strongest, 1.0))
    for side in (ink, ink[::-1], ink.T, ink.T[::-1]):  # a frame's line, or where the ground ends
        filled = np.flatnonzero((side[:RING] > STROKE).mean(1) > FILLED)
        if len(filled):
            side[: filled[-1] + 2] = 0  # with its blurred edge
    return ink


def _contrast(coverage: np.ndarray) -> np.ndarray:
    return ((coverage - FAINT) / (FULL - FAINT)).clip(0, 1)


def _one_line(ink: np.ndarray) -> np.ndarray:
    """Blanks parts of other lines: those at the border, beyond a row without ink."""
    rows = np.concatenate(([False], (ink > STROKE).any(1), [False]))
    bands = np.flatnonzero(rows[1:] != rows[:-1]).reshape(-1, 2)
    main = max(bands, key=lambda band: ink[band[0] : band[1]].sum())
    ink = ink.copy()
    for top, bottom in bands:
        if top != main[0] and (top == 0 or bottom == len(ink)):
            ink[top:bottom] = 0
    return ink


def _edges(ink: np.ndarray) -> np.ndarray | None:
    """Describes a character by the directions of its edges in CELLS x CELLS places; None without ink.

    A histogram of oriented gradients (Dalal and Triggs, 2005), flattened, with the length 1.
    """
    rows, columns = (np.flatnonzero((ink > STROKE).any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    square = _square(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    down, across = np.gradient(square)
    strength = np.hypot(down, across)
    angle = np.arctan2(down, across) % np.pi / np.pi * DIRECTIONS
    spread = _spread(len(square))
    planes = []
    for direction in range(DIRECTIONS):
        apart = np.abs(angle - direction)
        share = (1 - np.minimum(apart, DIRECTIONS - apart)).clip(0)
        planes.append(spread @ (strength * share) @ spread.T)
    described = np.stack(planes).ravel() ** FLATTEN
    return described / max(float(np.linalg.norm(described)), 1e-9)


def _square(ink: np.ndarray) -> np.ndarray:
    """Stretches a character to SIDE, less where it is narrow or flat, in the middle of a square."""
    height, width = ink.shape
    longer = max(height, width)
    size = [max(round(SIDE * min(1.0, side / (NARROW * longer))), 3) for side in (width, height)]
    how = Image.Resampling.BICUBIC if height < SIDE else Image.Resampling.BOX
    stretched = np.asarray(Image.fromarray((ink * 255).astype(np.uint8)).resize(size, how)) / 255
    square = np.zeros((SIDE + 2 * MARGIN, SIDE + 2 * MARGIN))
    top, left = ((len(square) - side) // 2 for side in stretched.shape)
    square[top : top + stretched.shape[0], left : left + stretched.shape[1]] = stretched
    return square


@lru_cache(maxsize=1)
def _spread(side: int) -> np.ndarray:
    """Makes the weights (CELLS, side) by which a row of pixels counts for the two cells nearest to each."""
    places = (np.arange(side) + 0.5) / side * CELLS - 0.5
    return (1 - np.abs(places - np.arange(CELLS)[:, None])).clip(0)
