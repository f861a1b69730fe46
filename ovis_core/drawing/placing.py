"""Puts drawn coverage where it belongs in a picture: a box, turned, or with its four corners moved."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

SUPERSAMPLED = 2  # where a mask is turned or warped, its edges stay as smooth as they were

Point = tuple[float, float]


@dataclass(frozen=True)
class Place:
    """A box in pixels of the picture, by its middle. angle: degrees, counterclockwise.

    warp: how far each corner is moved, in widths and heights of the box, from the top left one clockwise.
    """

    x: float
    y: float
    width: float
    height: float
    angle: float = 0.0
    warp: tuple[Point, ...] = ()

    @property
    def corners(self) -> tuple[Point, ...]:
        """Gives the corners in pixels, from the top left one clockwise."""
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        signs, moves = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)), self.warp or ((0.0, 0.0),) * 4
        points = []
        for (across, down), (dx, dy) in zip(signs, moves, strict=True):
            u, v = (across + dx) * self.width, (down + dy) * self.height
            points.append((self.x + u * cos + v * sin, self.y - u * sin + v * cos))
        return tuple(points)

    @property
    def is_straight(self) -> bool:
        return not self.angle and not any(n for move in self.warp for n in move)


def read_warp(corners: str) -> tuple[Point, ...]:
    """Reads the four corners of a box in percent of it, as "0 0, 100 10, 100 90, 0 100" -> Place's warp.

    Clockwise from the top left one; empty leaves the box as it is. Raises ValueError for anything else, and
    for corners whose box would be folded.
    """
    if not corners.strip():
        return ()
    try:
        numbers = [float(number) for number in corners.replace(",", " ").replace(";", " ").split()]
    except ValueError:
        numbers = []
    if len(numbers) != 8 or not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"the corners are {corners!r}; expected four points in percent of the box, clockwise from the "
            'top left one, as "0 0, 100 10, 100 90, 0 100"'
        )
    points = [(numbers[i] / 100, numbers[i + 1] / 100) for i in (0, 2, 4, 6)]
    if not _is_convex(points):
        raise ValueError(f"the corners {corners!r} fold the box; give them clockwise from the top left one")
    return tuple(
        (x - i, y - j) for (x, y), (i, j) in zip(points, ((0, 0), (1, 0), (1, 1), (0, 1)), strict=True)
    )


def project(mask: Image.Image, pad: int, place: Place, size: tuple[int, int]) -> np.ndarray:
    """Lays coverage (mode L, its box `pad` pixels inside) into a place -> (height, width), 0 to 1.

    size: width and height of the picture; what is beyond it is cut off.
    """
    if place.is_straight:
        whole = Image.new("L", size)
        left, top = place.corners[0]
        whole.paste(mask, (round(left) - pad, round(top) - pad))
        return np.asarray(whole, np.float32) / 255

    box = (mask.width - 2 * pad, mask.height - 2 * pad)
    source = [(pad, pad), (pad + box[0], pad), (pad + box[0], pad + box[1]), (pad, pad + box[1])]
    target = [(x * SUPERSAMPLED, y * SUPERSAMPLED) for x, y in place.corners]
    large = (size[0] * SUPERSAMPLED, size[1] * SUPERSAMPLED)
    warped = mask.transform(
        large, Image.Transform.PERSPECTIVE, homography(target, source), Image.Resampling.BICUBIC
    )
    return np.asarray(warped.reduce(SUPERSAMPLED), np.float32) / 255


def homography(start: Sequence[Point], end: Sequence[Point]) -> list[float]:
    """Solves for the eight numbers of the projection that takes four points to four others."""
    rows, values = [], []
    for (x, y), (u, v) in zip(start, end, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return [float(n) for n in np.linalg.solve(np.array(rows, float), np.array(values, float))]


def _is_convex(points: Sequence[Point]) -> bool:
    turns = []
    for i in range(4):
        (ax, ay), (bx, by), (cx, cy) = points[i], points[(i + 1) % 4], points[(i + 2) % 4]
        turns.append((bx - ax) * (cy - by) - (by - ay) * (cx - bx))
    return all(turn > 1e-6 for turn in turns)
