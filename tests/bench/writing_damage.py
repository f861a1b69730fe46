"""Damages the renderer's writing in known steps, as models do: melted, broken, swapped for look-alikes.

Melted and broken is one spot of a line, one or two characters wide: a step is the share of its ink that is no
longer where it was. Swapped is the text, before it is drawn: a step is the number of characters.
"""

from collections.abc import Callable
from random import Random

import numpy as np
import torch
from PIL import Image, ImageDraw

from ovis_core.typography.layout import Rect
from ovis_core.typography.palette import COLOURS
from ovis_core.typography.rendering import Example, Renderer

STEPS = {"slight": 0.15, "clear": 0.3, "heavy": 0.5}
SPOT = 1.3  # em
GRAIN = 0.16  # em between the points that a melting moves by themselves
CUTS = 4  # of a spot
SUPERSAMPLING = 4
BISECTIONS = 12
# What a reader completes, and what anybody who looks sees: no l and I, no O and 0.
LOOKALIKES = dict(zip("SBZGOEATPQCDUNMWVRHKXYF", "58260F4IRO6OVHNVUPKXYVE", strict=True)) | dict(
    zip("abcdeghiklmnopqrstuvwxyz", "obeocqnjhtnhcqpvzlvuvyvs", strict=True)
)
LOOKALIKES |= dict(
    zip(
        "大人土未天木王口日上千问今米手目白石右早午休体清晴话请花红快",
        "太入士末夫本玉曰目土干间令来毛日自右石旱牛体休请睛活清化江块",
        strict=True,
    )
)


class Swapping:
    """The wording of a renderer, with some characters replaced by look-alikes; nothing else changes."""

    def __init__(self, wording, rng: Random, count: int) -> None:
        self.wording, self.rng, self.count = wording, rng, count
        self.swapped = 0  # in the text that was written last

    def kind(self, rng: Random) -> str:
        return self.wording.kind(rng)

    def text(self, rng: Random, language: str, kind: str) -> str:
        """Draws a text, and swaps up to `count` characters that have look-alikes."""
        text = list(self.wording.text(rng, language, kind))
        places = [i for i, character in enumerate(text) if character in LOOKALIKES]
        places = self.rng.sample(places, min(self.count, len(places)))
        for i in places:
            text[i] = LOOKALIKES[text[i]]
        self.swapped = len(places)
        return "".join(text)


def swap(renderer: Renderer, seed: int, index: int, count: int) -> tuple[Example, Image.Image] | None:
    """Draws an example and the same scene with `count` look-alikes; None where it has not so many."""
    wording, original = renderer.wording, renderer(seed, index)
    renderer.wording = swapping = Swapping(wording, Random(f"swap/{seed}/{index}"), count)
    try:
        changed = renderer(seed, index)
    finally:
        renderer.wording = wording
    differences = sum(a != b for a, b in zip("".join(original.texts), "".join(changed.texts), strict=False))
    is_same_scene = len("".join(original.texts)) == len("".join(changed.texts)) and differences == count
    return (original, changed.image) if is_same_scene and swapping.swapped == count else None


def damage(example: Example, kind: str, share: float, rng: Random) -> Image.Image:
    """Melts or breaks a spot until `share` of its ink is elsewhere or gone."""
    pixels = np.asarray(example.image).astype(np.float32)
    ground, ink = (
        np.array(COLOURS[name].rgb, np.float32) for name in (example.background_colour, example.text_colour)
    )
    spot = _spot(example, pixels, ground, rng)
    harm = {"melted": _melted, "broken": _broken}[kind](pixels, spot, example.font_size, ground, rng)
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        strength = (low + high) / 2
        if _lost(pixels, harm(strength), spot, ground, ink) < share:
            low = strength
        else:
            high = strength
    return Image.fromarray(harm(high).round().clip(0, 255).astype(np.uint8))


def _spot(example: Example, pixels: np.ndarray, ground: np.ndarray, rng: Random) -> Rect:
    """Chooses a place on a line that holds as much ink as a character."""
    width = round(SPOT * example.font_size)
    places = []
    for box in example.boxes:
        for left in range(box.left, max(box.right - width, box.left) + 1):
            places.append(Rect(left, box.top, min(left + width, box.right), box.bottom))
    distance = np.abs(pixels - ground).sum(-1)
    ink = [distance[p.top : p.bottom, p.left : p.right].sum() for p in places]
    full = [place for place, amount in zip(places, ink, strict=True) if amount >= 0.7 * np.median(ink)]
    return rng.choice(full)


def _lost(before: np.ndarray, after: np.ndarray, spot: Rect, ground: np.ndarray, ink: np.ndarray) -> float:
    """Measures the share of the spot's ink that is no longer there."""
    direction = (ink - ground) / ((ink - ground) ** 2).sum()
    old, new = (
        ((picture[spot.top : spot.bottom, spot.left : spot.right] - ground) @ direction).clip(0, 1)
        for picture in (before, after)
    )
    return float((old - new).clip(0).sum() / old.sum())


def _melted(
    pixels: np.ndarray, spot: Rect, size: int, ground: np.ndarray, rng: Random
) -> Callable[[float], np.ndarray]:
    """Moves the spot's points at random, neighbours alike, by at most an em times the strength."""
    height, width = pixels.shape[:2]
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    grid = [max(round(side / (GRAIN * size)), 2) for side in (spot.height + size, spot.width + size)]
    moves = torch.randn(1, 2, *grid, generator=generator)
    area = Rect(
        max(spot.left - size // 4, 0),
        max(spot.top - size // 4, 0),
        min(spot.right + size // 4, width),
        min(spot.bottom + size // 4, height),
    )
    moves = torch.nn.functional.interpolate(
        moves, (area.height, area.width), mode="bicubic", align_corners=True
    )
    fade = max(size / 8, 1)  # pixels from the spot's edge on
    across, down = (
        (torch.minimum(torch.arange(a, b) - low, high - torch.arange(a, b)) / fade + 1).clamp(0, 1)
        for a, b, low, high in (
            (area.left, area.right, spot.left, spot.right),
            (area.top, area.bottom, spot.top, spot.bottom),
        )
    )
    moves = moves[0] * across * down[:, None]  # (2, height, width)
    rows, columns = torch.meshgrid(
        torch.arange(area.top, area.bottom), torch.arange(area.left, area.right), indexing="ij"
    )
    source = torch.from_numpy(pixels).permute(2, 0, 1)[None]

    def at(strength: float) -> np.ndarray:
        x, y = columns + strength * size * moves[0], rows + strength * size * moves[1]
        places = torch.stack((x / (width - 1), y / (height - 1)), -1) * 2 - 1
        seen = torch.nn.functional.grid_sample(
            source, places[None].float(), align_corners=True, padding_mode="border"
        )
        melted = pixels.copy()
        melted[area.top : area.bottom, area.left : area.right] = seen[0].permute(1, 2, 0).numpy()
        return melted

    return at


def _broken(
    pixels: np.ndarray, spot: Rect, size: int, ground: np.ndarray, rng: Random
) -> Callable[[float], np.ndarray]:
    """Cuts gaps through the spot's strokes, as wide as the strength, an em at most."""
    height, width = pixels.shape[:2]
    cuts = []
    for i in range(CUTS):
        x = spot.left + spot.width * (i + rng.random()) / CUTS
        y = rng.uniform(spot.top, spot.bottom)
        angle = rng.uniform(0, np.pi)
        cuts.append((x, y, np.cos(angle) * size, np.sin(angle) * size))

    def at(strength: float) -> np.ndarray:
        mask = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
        draw = ImageDraw.Draw(mask)
        for x, y, dx, dy in cuts:
            ends = [SUPERSAMPLING * float(v) for v in (x - dx, y - dy, x + dx, y + dy)]
            draw.line(ends, fill=255, width=max(round(strength * size * SUPERSAMPLING), 1))
        outside = np.ones((height, width), bool)
        outside[spot.top : spot.bottom, spot.left : spot.right] = False
        cover = np.asarray(mask.resize((width, height), Image.Resampling.BOX)).astype(np.float32) / 255
        cover[outside] = 0
        return pixels + cover[..., None] * (ground - pixels)

    return at
