"""Draws pictures of writing with captions, each a function of a seed and an index."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from random import Random

from PIL import Image, ImageFont

from ..drawing.fonts import FILES, Face, Fonts, StyledFaces
from .captions import Facts, caption
from .grounds import Grounds, draw_ground, writing_area
from .layout import Block, Rect, set_block, set_on_grid
from .settings import Typography, pick, positive
from .wording import Wording

# Pixels an em, of the shorter side. A caption calls writing large or small by what it became, not by what was
# asked for: long words end up smaller.
SCALES = {"large": (0.30, 0.44), "medium": (0.20, 0.28), "small": (0.14, 0.17)}
LARGE_FROM, SMALL_TO = 0.29, 0.175
CHARACTER_ZOOM = 1.7  # a single character may fill the picture
CHINESE_ZOOM = 1.25  # it has more strokes an em
MIN_TILT = 4.0  # degrees; less is not seen
MAX_DRAFTS = 200


@dataclass(frozen=True, kw_only=True)
class Example(Facts):
    """A picture, its caption, and everything that the caption may state."""

    image: Image.Image  # RGB
    caption: str
    boxes: tuple[Rect, ...]  # of each line's ink
    font_size: int  # pixels an em


class Renderer:
    """Draws examples of a distribution; with `held_out`, of words that the others never show.

    faces: those to choose from; default, those installed. Raises ValueError when fonts are missing or the
    config leaves nothing to draw.
    """

    def __init__(
        self, config: Typography | None = None, faces: StyledFaces | None = None, held_out: bool = False
    ) -> None:
        self.config = config or Typography()
        self.held_out = held_out
        self.wording = Wording(self.config, held_out)
        self.grounds = Grounds(self.config)
        self.styles = {
            language: _styles(self.config, language) for language in positive(self.config.languages)
        }
        wanted = [(language, style) for language, shares in self.styles.items() for style in shares]
        faces = Fonts().of_style(wanted) if faces is None else faces
        for key in wanted:
            if not faces.get(key):
                raise ValueError(f"faces has none for {key}; add one, or leave it out of the config")
        self.faces = {key: faces[key][: self.config.max_faces] for key in wanted}

    def size_of(self, index: int) -> tuple[int, int]:
        """Gives the width and height of a picture before it is drawn: batches need pictures of one size."""
        width, height = self.config.sizes[index % len(self.config.sizes)]
        return width, height

    def __call__(self, seed: int, index: int) -> Example:
        """Draws a picture: the same one for the same config, faces, seed and index, wherever it is drawn."""
        # Hashed by the generator itself, so that neighbouring seeds and indices have nothing in common.
        rng = Random(f"{seed}/{index}/{int(self.held_out)}")
        size = self.size_of(index)
        ground = self.grounds(rng)
        writing, block = self._write(rng, min(size), writing_area(size, ground))
        facts = Facts(
            **writing,
            texts=block.lines,
            text_colour=ground.ink.name,
            background_colour=ground.colour.name,
            decoration=(ground.decoration[0], ground.decoration[1].name) if ground.decoration else None,
        )

        image = draw_ground(size, ground)
        image.paste(ground.ink.rgb, block.box, block.mask)
        return Example(
            **vars(facts),
            image=image,
            caption=self._caption(rng, facts),
            boxes=block.boxes,
            font_size=block.size,
        )

    def _write(self, rng: Random, side: int, area: Rect) -> tuple[dict, Block]:
        """Chooses how the writing is set, and sets it. side: the picture's shorter one in pixels."""
        language = pick(rng, self.config.languages)
        kind = self.wording.kind(rng)
        style = pick(rng, self.styles[language])
        font_at = partial(_load, rng.choice(self.faces[language, style]))
        angle = self._angle(rng)
        zoom = (CHINESE_ZOOM if language == "zh" else 1) * (CHARACTER_ZOOM if kind == "character" else 1)
        min_size = round(self.config.min_font_size * (CHINESE_ZOOM if language == "zh" else 1))
        for _ in range(MAX_DRAFTS):
            text = self.wording.text(rng, language, kind)
            position = pick(rng, self.config.positions)
            if language in self.config.grid_sizes:
                block = set_on_grid(text, font_at, area, position, self.config.grid_sizes[language])
            else:
                size = round(side * zoom * rng.uniform(*SCALES[pick(rng, self.config.scales)]))
                block = set_block(text, font_at, area, position, max(size, min_size), min_size, angle)
            if block:
                scale = _scale(block.size / side / zoom)
                return dict(
                    language=language, kind=kind, style=style, angle=angle, position=position, scale=scale
                ), block
        raise ValueError(
            f"no {language} {kind} of {MAX_DRAFTS} fits pictures of {side} pixels with writing of {min_size} "
            "pixels; use larger sizes, shorter lengths or a smaller min_font_size"
        )

    def _angle(self, rng: Random) -> float:
        if rng.random() >= self.config.tilted:
            return 0.0
        return rng.choice((-1, 1)) * rng.uniform(MIN_TILT, self.config.max_tilt)

    def _caption(self, rng: Random, facts: Facts) -> str:
        is_crossed = rng.random() < self.config.crossed_captions
        is_short = rng.random() < self.config.short_captions
        language = {"en": "zh", "zh": "en"}[facts.language] if is_crossed else facts.language
        # What is the same in every picture need not be said.
        has_place = len(positive(self.config.positions)) > 1
        return caption(rng, facts, language, is_short, self.config.short_forms, has_place)


@lru_cache(maxsize=1024)
def _load(face: Face, size: int) -> ImageFont.FreeTypeFont:
    return face.at(size)


def _styles(config: Typography, language: str) -> Mapping[str, float]:
    """Gives the shares of the styles that a language has."""
    shares = config.styles_of(language)
    return {style: shares[style] for style in positive(shares) if (language, style) in FILES}


def _scale(size: float) -> str | None:
    """Says what a caption calls the size, from the pixels an em per pixel of the shorter side."""
    return "large" if size >= LARGE_FROM else "small" if size <= SMALL_TO else None
