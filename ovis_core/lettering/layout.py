"""Turns boxes with texts into sentences that say where each stands, in the order of reading."""

import math
from dataclasses import dataclass

from .copy import Composed, Phrasing, assemble, openers_for, phrasing_of
from .quotes import quote

SCALE = 1000  # box coordinates run from 0 to this, in both directions
ROWS = {"en": ("top", "middle", "bottom"), "zh": ("上方", "中部", "下方")}
COLUMNS = {"en": ("left", "centre", "right"), "zh": ("左侧", "中央", "右侧")}
FULL_WIDTH = {"en": ", across the full width", "zh": "，横贯整个画面"}
VERTICAL = {"en": ", set vertically", "zh": "，竖排"}
SIZES = {
    "en": ("very large letters", "large letters", "medium-sized letters", "small letters"),
    "zh": ("特大字", "大字", "中等大小的字", "小字"),
}
SIZE_STEPS = (0.2, 0.1, 0.05)  # height of a line of letters, as a part of the picture's
COLOURS = {
    (0, 0, 0): {"en": "black", "zh": "黑色"},
    (128, 128, 128): {"en": "grey", "zh": "灰色"},
    (255, 255, 255): {"en": "white", "zh": "白色"},
    (255, 0, 0): {"en": "red", "zh": "红色"},
    (128, 0, 0): {"en": "dark red", "zh": "深红色"},
    (255, 128, 0): {"en": "orange", "zh": "橙色"},
    (255, 215, 0): {"en": "golden yellow", "zh": "金黄色"},
    (128, 64, 0): {"en": "brown", "zh": "棕色"},
    (0, 160, 0): {"en": "green", "zh": "绿色"},
    (0, 80, 0): {"en": "dark green", "zh": "深绿色"},
    (0, 200, 200): {"en": "turquoise", "zh": "青绿色"},
    (80, 160, 255): {"en": "light blue", "zh": "浅蓝色"},
    (0, 0, 255): {"en": "blue", "zh": "蓝色"},
    (0, 0, 96): {"en": "dark blue", "zh": "深蓝色"},
    (128, 0, 160): {"en": "purple", "zh": "紫色"},
    (255, 105, 180): {"en": "pink", "zh": "粉色"},
    (245, 235, 210): {"en": "cream", "zh": "米色"},
}


@dataclass(frozen=True)
class Box:
    """A box in thousandths of the picture. Without a text it is a thing, which `description` names."""

    left: float
    top: float
    right: float
    bottom: float
    text: str = ""
    description: str = ""
    colour: tuple[int, int, int] | None = None

    @property
    def is_vertical(self) -> bool:
        return len(self.text.strip()) > 1 and self.bottom - self.top > 2 * (self.right - self.left)


def read_boxes(elements: object) -> list[Box]:
    """Reads the `elements` of ComfyUI's Create Bounding Boxes. Raises ValueError for anything else."""
    if not isinstance(elements, list) or not all(isinstance(element, dict) for element in elements):
        raise ValueError(
            f"elements must be a list of boxes, got {type(elements).__name__}; connect the elements output "
            "of Create Bounding Boxes"
        )
    boxes = [read_box(element, f"box {i}") for i, element in enumerate(elements, 1)]
    return [box for box in boxes if box.text.strip() or box.description.strip()]


def place(boxes: list[Box], scene: str = "", style: str = "", language: str = "en") -> Composed:
    """Writes a prompt that says where each text and thing stands.

    Raises ValueError when no box has a text, and as `copy.compose` does.
    """
    phrasing = phrasing_of(language)
    lettered = reading_order([box for box in boxes if box.text.strip()])
    if not lettered:
        raise ValueError("no box has a text; set a box's type to text and type what it is to say")
    texts = tuple(box.text for box in lettered)
    phrases = [_text_phrase(box, language, phrasing) for box in lettered]
    phrases += [_thing_phrase(box, language) for box in boxes if not box.text.strip()]
    return Composed(assemble(phrases, texts, scene, style, phrasing), texts)


def reading_order(boxes: list[Box]) -> list[Box]:
    """Sorts from top to bottom and from left to right, but vertical columns from right to left."""
    rows: list[list[Box]] = []
    for box in sorted(boxes, key=lambda box: (box.top, box.left)):
        row = next((row for row in rows if _side_by_side(row[0], box)), None)
        if row is None:
            rows.append([box])
        else:
            row.append(box)
    ordered = []
    for row in rows:
        columns = all(box.is_vertical for box in row)
        ordered += sorted(row, key=lambda box: -box.left if columns else box.left)
    return ordered


def _side_by_side(first: Box, second: Box) -> bool:
    """Tells whether they share at least half of the lower one's height."""
    shared = min(first.bottom, second.bottom) - max(first.top, second.top)
    return shared >= 0.5 * min(first.bottom - first.top, second.bottom - second.top)


def _text_phrase(box: Box, language: str, phrasing: Phrasing) -> str:
    quoted = quote(box.text, openers_for(box.text, phrasing), "a box's text")
    vertical = VERTICAL[language] if box.is_vertical else ""
    letters = _letters(box, language)
    if language == "zh":
        colour = f"，{_colour(box.colour, language)}" if box.colour else ""
        description = f"，{box.description}" if box.description.strip() else ""
        return f"{_where(box, language)}是{letters}{quoted}{colour}{vertical}{description}"
    colour = f"{_colour(box.colour, language)} " if box.colour else ""
    description = f", {box.description}" if box.description.strip() else ""
    return f"{quoted} in {colour}{letters} {_where(box, language)}{vertical}{description}"


def _thing_phrase(box: Box, language: str) -> str:
    where = _where(box, language)
    return f"{where}是{box.description}" if language == "zh" else f"{box.description} {where}"


def _where(box: Box, language: str) -> str:
    row = ROWS[language][_third((box.top + box.bottom) / 2)]
    column = COLUMNS[language][_third((box.left + box.right) / 2)]
    wide = FULL_WIDTH[language] if box.right - box.left >= 0.8 * SCALE else ""
    if language == "zh":
        return f"画面{row}{column}{wide}"
    spot = "in the centre" if (row, column) == ("middle", "centre") else f"at the {row} {column}"
    return spot + wide


def _third(position: float) -> int:
    return min(2, int(position * 3 / SCALE))


def _letters(box: Box, language: str) -> str:
    lines = box.text.strip().count("\n") + 1
    across = box.right - box.left
    size = across if box.is_vertical else (box.bottom - box.top) / lines
    step = sum(size / SCALE < limit for limit in SIZE_STEPS)
    return SIZES[language][step]


def _colour(colour: tuple[int, int, int], language: str) -> str:
    nearest = min(COLOURS, key=lambda known: math.dist(known, colour))
    return COLOURS[nearest][language]


def read_box(element: dict, what: str) -> Box:
    """Reads one element. Raises ValueError for one that is no box."""
    bbox = element.get("bbox")
    sides = bbox if isinstance(bbox, list) else []
    if len(sides) != 4 or not all(isinstance(n, (int, float)) and 0 <= n <= SCALE for n in sides):
        raise ValueError(
            f"{what} has the bbox {bbox!r}; expected [top, left, bottom, right], each from 0 to {SCALE}"
        )
    top, left, bottom, right = sides
    if top >= bottom or left >= right:
        raise ValueError(f"{what} has the bbox {bbox!r}, which has no area; draw it larger")
    text = element.get("text", "") if element.get("type") == "text" else ""
    description = element.get("desc", "")
    if not isinstance(text, str) or not isinstance(description, str):
        raise ValueError(f"{what} has a text or desc that is not a string; type it in the box's fields")
    return Box(left, top, right, bottom, text, description, _read_colour(element, what))


def _read_colour(element: dict, what: str) -> tuple[int, int, int] | None:
    """Reads the first colour of the palette."""
    palette = element.get("color_palette") or []
    if not palette:
        return None
    colour = palette[0]
    try:
        red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"{what} has the colour {colour!r}; expected one like #FF8800") from None
    return red, green, blue
