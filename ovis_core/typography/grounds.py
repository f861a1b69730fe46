"""Draws what writing lies on: a plain colour, or one with a frame, a stripe or a second half."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

from ..drawing.contrast import contrast
from .layout import Rect
from .palette import PALETTE, Colour
from .settings import Typography, pick, positive

# Of the shorter side.
MARGIN = 0.07
FRAME_INSET, FRAME_WIDTH, FRAME_MARGIN = 0.03, 0.035, 0.115
STRIPE = 0.16
VISIBLE = 1.8  # contrast of a frame, stripe or half with the background

DECORATIONS = {
    "plain": (),
    "frame": ("frame",),
    "stripe": ("top stripe", "bottom stripe"),
    "two-tone": ("bottom half", "right half"),
}


@dataclass(frozen=True)
class Ground:
    """A background and the colour of what is written on it."""

    colour: Colour
    ink: Colour
    decoration: tuple[str, Colour] | None  # what, and its colour


class Grounds:
    """Draws backgrounds. Raises ValueError when the colours leave no readable one."""

    def __init__(self, config: Typography):
        self.config = config
        self.pairs = {name: self._pairs(name) for name in positive(config.backgrounds)}

    def _pairs(self, name: str) -> dict[Colour, dict[Colour, list[Colour | None]]]:
        """Maps every colour of a background to those to write in, and these to those of its decoration."""
        colours = PALETTE[: self.config.num_colours]

        def are_readable(a: Colour, b: Colour) -> bool:
            return contrast(a.rgb, b.rgb) >= self.config.min_contrast

        def seconds(ground: Colour, ink: Colour) -> list[Colour | None]:
            if name == "plain":
                return [None]
            visible = [c for c in colours if contrast(c.rgb, ground.rgb) >= VISIBLE]
            return [c for c in visible if name != "two-tone" or are_readable(c, ink)]

        pairs = {
            ground: {ink: s for ink in colours if are_readable(ground, ink) and (s := seconds(ground, ink))}
            for ground in colours
        }
        pairs = {ground: inks for ground, inks in pairs.items() if inks}
        if not pairs:
            raise ValueError(
                f"the first {len(colours)} colours have no {name} background with a contrast of "
                f"{self.config.min_contrast}; raise num_colours or lower min_contrast"
            )
        return pairs

    def __call__(self, rng: Random) -> Ground:
        name = pick(rng, self.config.backgrounds)
        colour = rng.choice([*self.pairs[name]])
        ink = rng.choice([*self.pairs[name][colour]])
        second = rng.choice(self.pairs[name][colour][ink])
        return Ground(colour, ink, (rng.choice(DECORATIONS[name]), second) if second else None)


def draw_ground(size: tuple[int, int], ground: Ground) -> Image.Image:
    """Draws a background of `size`, width and height in pixels."""
    image = Image.new("RGB", size, ground.colour.rgb)
    if ground.decoration:
        name, colour = ground.decoration
        DRAW[name](ImageDraw.Draw(image), size, colour.rgb)
    return image


def writing_area(size: tuple[int, int], ground: Ground) -> Rect:
    """Gives where writing may lie: inside the margins, beside stripes, within frames, across halves."""
    width, height = size
    name = ground.decoration[0] if ground.decoration else None
    margin = round(min(size) * (FRAME_MARGIN if name == "frame" else MARGIN))
    stripe = round(min(size) * STRIPE)
    top = margin + (stripe if name == "top stripe" else 0)
    bottom = height - margin - (stripe if name == "bottom stripe" else 0)
    return Rect(margin, top, width - margin, bottom)


def _draw_frame(draw: ImageDraw.ImageDraw, size: tuple[int, int], rgb: tuple[int, int, int]) -> None:
    inset, width = round(min(size) * FRAME_INSET), max(2, round(min(size) * FRAME_WIDTH))
    draw.rectangle((inset, inset, size[0] - 1 - inset, size[1] - 1 - inset), outline=rgb, width=width)


def _draw_stripe(draw: ImageDraw.ImageDraw, size: tuple[int, int], rgb: tuple[int, int, int], y: int) -> None:
    draw.rectangle((0, y, size[0] - 1, y + round(min(size) * STRIPE) - 1), fill=rgb)


DRAW: dict[str, Callable[[ImageDraw.ImageDraw, tuple[int, int], tuple[int, int, int]], None]] = {
    "frame": _draw_frame,
    "top stripe": lambda draw, size, rgb: _draw_stripe(draw, size, rgb, 0),
    "bottom stripe": lambda draw, size, rgb: _draw_stripe(
        draw, size, rgb, size[1] - round(min(size) * STRIPE)
    ),
    "bottom half": lambda draw, size, rgb: draw.rectangle((0, size[1] // 2, *size), fill=rgb),
    "right half": lambda draw, size, rgb: draw.rectangle((size[0] // 2, 0, *size), fill=rgb),
}
