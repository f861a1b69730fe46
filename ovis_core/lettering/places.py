"""Says where texts go in a picture: into boxes that were drawn, or in place of what was written wrong."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..drawing.contrast import RGB
from ..drawing.placing import Place
from ..drawing.typeset import Corners, Spot
from ..evaluation.wrong import Findings, Wrong
from .layout import SCALE, read_box

LETTERS = 0.75  # of the height of a reader's box
MIN_HEIGHT = 0.08  # of the picture's shorter side: what was written smaller may be set larger
MARGIN = 0.03  # of the picture's sides, which widened text keeps
GAP = 0.3  # of a text's height, to other lettering
MAX_HEIGHT = 0.4  # of the picture, for a text that was not found


@dataclass(frozen=True)
class Frame:
    """A box of the picture, with a text and a colour of its own if it has them."""

    place: Place
    text: str = ""
    colour: RGB | None = None


@dataclass(frozen=True)
class Repairs:
    """What is set, what it covers, and boxes of lettering that stays."""

    spots: tuple[Spot, ...] = ()
    covered: tuple[Corners, ...] = ()
    others: tuple[Corners, ...] = ()


def read_frames(boxes: object, num_pictures: int, size: tuple[int, int]) -> list[list[Frame]]:
    """Reads boxes, in pixels or as elements of Create Bounding Boxes, for each picture.

    size: width and height in pixels. Boxes are those of every picture, or a list of them for each. Raises
    ValueError for anything else.
    """
    listed: list = boxes if isinstance(boxes, list) else [boxes]
    sets = listed if listed and all(isinstance(entry, list) for entry in listed) else [listed]
    if len(sets) not in (1, num_pictures):
        raise ValueError(
            f"there are boxes for {len(sets)} pictures and {num_pictures} pictures; give each its own boxes, "
            "or one list for all"
        )
    frames = [_read_set(entry, size) for entry in sets]
    return frames * num_pictures if len(frames) == 1 else frames


def fill_frames(frames: Sequence[Frame], texts: Sequence[str]) -> list[Spot]:
    """Gives each box its own text, or the next of `texts`; a single box without one takes them all.

    Raises ValueError where the numbers do not agree.
    """
    free = [frame for frame in frames if not frame.text]
    waiting = ["\n".join(texts)] if len(free) == 1 and texts else list(texts)
    if len(waiting) != len(free) and (free or not frames):
        raise ValueError(
            f"there are {len(waiting)} texts for {len(free)} boxes without a text; give each box one, a line "
            "of texts a box"
        )
    rest = iter(waiting)
    return [Spot(frame.text or next(rest), frame.place, frame.colour) for frame in frames]


def repairs(findings: Findings, frames: Sequence[Frame], size: tuple[int, int]) -> Repairs:
    """Plans how the wrong texts of a picture are set anew, each where it stood.

    A text that was not found goes into its own box of `frames`, the one with that text or of its number,
    else into the largest free strip. size: width and height in pixels.
    """
    found = [wrong for wrong in findings.wrong if wrong.boxes]
    spots = [_in_place(wrong, _obstacles(wrong, findings), size) for wrong in found]
    lost = []
    for wrong in findings.wrong:
        if wrong.boxes:
            continue
        frame = _frame_of(wrong, frames, findings.num_texts)
        if frame:
            spots.append(Spot(wrong.text, frame.place, frame.colour, ink=findings.right))
        else:
            lost.append(wrong.text)
    if lost:
        taken = [*findings.right, *(spot.place.corners for spot in spots)]
        spots.append(Spot("\n".join(lost), _free_strip(taken, size), ink=findings.right))
    covered = tuple(dict.fromkeys([*(box for wrong in found for box in wrong.boxes), *findings.extra]))
    return Repairs(tuple(spots), covered, findings.right)


def turned(spot: Spot, angle: float, warp: tuple[tuple[float, float], ...]) -> Spot:
    """Turns a spot by degrees, counterclockwise, and warps it."""
    return replace(spot, place=replace(spot.place, angle=spot.place.angle + angle, warp=warp))


def whole(size: tuple[int, int], margin: float) -> Place:
    """Gives the picture less a margin on each side, of that side."""
    width, height = size
    return Place(width / 2, height / 2, width * (1 - 2 * margin), height * (1 - 2 * margin))


def _read_set(entries: list, size: tuple[int, int]) -> list[Frame]:
    frames, are_texts = [], []
    for i, entry in enumerate(entries, 1):
        if isinstance(entry, dict) and "bbox" in entry:
            box = read_box(entry, f"box {i}")
            across, down = size[0] / SCALE, size[1] / SCALE
            sides = (box.left * across, box.top * down, box.right * across, box.bottom * down)
            frames.append(Frame(_place(*sides), box.text.strip(), box.colour))
            are_texts.append(entry.get("type") == "text")
        else:
            frames.append(Frame(_pixel_place(entry, f"box {i}")))
            are_texts.append(False)
    if any(are_texts):  # the others are things
        frames = [frame for frame, is_text in zip(frames, are_texts, strict=True) if is_text]
    return frames


def _pixel_place(entry: object, what: str) -> Place:
    sides = [entry.get(name) for name in ("x", "y", "width", "height")] if isinstance(entry, dict) else []
    numbers = [float(n) for n in sides if isinstance(n, (int, float)) and math.isfinite(n)]
    if len(numbers) != 4 or numbers[2] <= 0 or numbers[3] <= 0:
        raise ValueError(
            f"{what} is {entry!r}; expected x, y, width and height in pixels, or an element of Create "
            "Bounding Boxes"
        )
    x, y, width, height = numbers
    return _place(x, y, x + width, y + height)


def _place(left: float, top: float, right: float, bottom: float) -> Place:
    return Place((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)


def _in_place(wrong: Wrong, obstacles: Sequence[Corners], size: tuple[int, int]) -> Spot:
    """Puts a text where its boxes are, as high as they are, wider where it needs that and there is room."""
    angle = _angle(wrong.boxes)
    across, down = _axes(angle)
    left, top, right, bottom = _bounds(wrong.boxes, across, down)
    height = max((bottom - top) * LETTERS, MIN_HEIGHT * min(size))
    middle = (left + right) / 2 * across + (top + bottom) / 2 * down
    place = Place(float(middle[0]), float(middle[1]), right - left, height, angle)

    half = place.width / 2
    reach = [math.inf, math.inf]
    for box in obstacles:
        near, above, far, below = _bounds([box], across, down)
        if above < bottom and below > top:
            centre, gap = (left + right) / 2, GAP * height
            if (near + far) / 2 < centre:
                reach[0] = min(reach[0], centre - far - gap)
            else:
                reach[1] = min(reach[1], near - centre - gap)
    left_free = min(max(reach[0], half), _to_edge(middle, -across, size))
    right_free = min(max(reach[1], half), _to_edge(middle, across, size))
    return Spot(wrong.text, place, reach=(left_free, right_free), ink=wrong.boxes)


def _obstacles(wrong: Wrong, findings: Findings) -> list[Corners]:
    others = [box for other in findings.wrong if other is not wrong for box in other.boxes]
    return [*findings.right, *others]


def _frame_of(wrong: Wrong, frames: Sequence[Frame], num_texts: int) -> Frame | None:
    """Finds the box that is drawn for a text."""
    for frame in frames:
        if frame.text == wrong.text:
            return frame
    if len(wrong.numbers) == 1 and len(frames) == num_texts:
        frame = frames[wrong.numbers[0]]
        return None if frame.text else frame
    return None


def _free_strip(taken: Sequence[Corners], size: tuple[int, int]) -> Place:
    """Finds the highest strip across the picture without lettering."""
    width, height = size
    edge = MARGIN * height
    spans = sorted((min(y for _, y in box) - edge, max(y for _, y in box) + edge) for box in taken)
    best, top = (edge, edge + 1), edge
    for start, end in [*spans, (height - edge, height)]:
        best = max(best, (top, start), key=lambda span: span[1] - span[0])
        top = max(top, end)
    middle, room = (best[0] + best[1]) / 2, min(best[1] - best[0], MAX_HEIGHT * height)
    return Place(width / 2, middle, width * (1 - 4 * MARGIN), room)


def _angle(boxes: Sequence[Corners]) -> float:
    """Gives the direction of the upper edges, in degrees, counterclockwise; 0 for what is nearly level."""
    edges = sum((np.subtract(box[1], box[0]) for box in boxes), np.zeros(2))
    angle = -math.degrees(math.atan2(edges[1], edges[0]))
    return angle if abs(angle) >= 2 else 0.0


def _axes(angle: float) -> tuple[np.ndarray, np.ndarray]:
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.array((cos, -sin)), np.array((sin, cos))


def _bounds(
    boxes: Sequence[Corners], across: np.ndarray, down: np.ndarray
) -> tuple[float, float, float, float]:
    points = np.array([point for box in boxes for point in box], float)
    u, v = points @ across, points @ down
    return float(u.min()), float(v.min()), float(u.max()), float(v.max())


def _to_edge(start: np.ndarray, direction: np.ndarray, size: tuple[int, int]) -> float:
    """Measures how far it is from a point to the picture's margin."""
    reach = math.inf
    for position, step, side in zip(start, direction, size, strict=True):
        if abs(step) > 1e-6:
            edge = side * (1 - MARGIN) if step > 0 else side * MARGIN
            reach = min(reach, float((edge - position) / step))
    return max(reach, 0.0)
