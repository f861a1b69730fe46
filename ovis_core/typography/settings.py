"""Describes what synthetic pictures of writing may look like, in a few numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from random import Random
from typing import Any

from ..drawing.fonts import STYLES
from .lexicon import CHARACTERS
from .palette import PALETTE

Shares = Mapping[str, float]  # of each choice; they need not add up to 1, and what is left out is never drawn

CHOICES: dict[str, tuple[str, ...]] = {
    "languages": ("en", "zh"),
    "kinds": ("character", "letters", "word", "phrase", "number"),
    "cases": ("upper", "capital", "lower"),
    "backgrounds": ("plain", "frame", "stripe", "two-tone"),
    "positions": (
        *("centre", "top", "bottom", "left", "right"),
        *("top left", "top right", "bottom left", "bottom right"),
    ),
    "scales": ("large", "medium", "small"),
    "styles": tuple(STYLES),
}


def _shares(**shares: float) -> Shares:
    return field(default_factory=lambda: shares)


@dataclass(frozen=True)
class Typography:
    """The distribution. Every mapping holds shares of the choices in CHOICES.

    kinds: what is written. `character` is one letter, digit or Chinese character, `letters` a made-up word
    (in Chinese any 2 to 4 of the characters), `word` a word of the lexicon, `phrase` some of both, `number` a
    price, time or the like.
    Raises ValueError for numbers that make no picture.
    """

    sizes: tuple[tuple[int, int], ...] = ((128, 128),)  # (width, height) in pixels; picture i has the i-th
    languages: Shares = _shares(en=0.6, zh=0.4)  # of what is drawn
    kinds: Shares = _shares(character=0.1, letters=0.25, word=0.35, phrase=0.2, number=0.1)

    lengths: tuple[int, int] = (2, 8)  # letters of an English word
    chinese_lengths: tuple[int, int] = (2, 4)  # characters of a Chinese one
    phrase_words: tuple[int, int] = (2, 3)  # in Chinese always 2
    num_characters: int = len(CHARACTERS)  # Chinese ones in use, the first of CHARACTERS
    cases: Shares = _shares(upper=0.5, capital=0.25, lower=0.25)
    digits: float = 0.1  # share of single characters and made-up words that are or carry digits
    punctuation: float = 0.1  # share of words and phrases that carry some

    num_colours: int = 10  # the first of PALETTE
    min_contrast: float = 3.7  # of the writing and all that it lies on
    backgrounds: Shares = field(
        default_factory=lambda: {"plain": 0.7, "frame": 0.1, "stripe": 0.1, "two-tone": 0.1}
    )
    positions: Shares = _shares(centre=0.5, top=0.15, bottom=0.15, left=0.1, right=0.1)
    scales: Shares = _shares(large=0.5, medium=0.35, small=0.15)
    min_font_size: int = 17  # pixels an em; Chinese gets a quarter more
    grid_sizes: Mapping[str, int] = field(default_factory=dict)  # language -> pixels an em, see `layout`
    styles: Shares = _shares(sans=0.3, bold=0.4, serif=0.2, mono=0.1)  # there is no Chinese mono
    chinese_styles: Shares = field(default_factory=dict)  # in place of `styles`, if given
    max_faces: int = 8  # of each style, the first that are listed
    tilted: float = 0.0  # share of pictures with tilted writing
    max_tilt: float = 12.0  # degrees

    short_captions: float = 0.4  # share of captions that state less
    short_forms: int = 3  # of the sentences that short captions are made of
    crossed_captions: float = 0.2  # share of captions in the other language than the writing

    def __post_init__(self):
        for name, choices in CHOICES.items():
            _check_shares(name, getattr(self, name), choices)
        if self.chinese_styles:
            _check_shares("chinese_styles", self.chinese_styles, CHOICES["styles"])
        for name in ("digits", "punctuation", "tilted", "short_captions", "crossed_captions"):
            _check(self, name, 0, 1)
        for name, low, high in (("lengths", 2, 12), ("chinese_lengths", 2, 4), ("phrase_words", 2, 3)):
            _check_range(name, getattr(self, name), low, high)
        _check_sizes(self.sizes)
        _check(self, "num_characters", 20, len(CHARACTERS), int)
        _check(self, "num_colours", 2, len(PALETTE), int)
        _check(self, "min_font_size", 6, 1000, int)
        _check(self, "max_faces", 1, 8, int)
        _check(self, "short_forms", 1, 3, int)
        for language, size in self.grid_sizes.items():
            if language not in CHOICES["languages"] or not isinstance(size, int) or not 6 <= size <= 1000:
                raise ValueError(f"grid_sizes gives {language!a} {size!a}; en or zh and 6 to 1000 pixels fit")
        _check(self, "min_contrast", 1.2, 10)
        _check(self, "max_tilt", 4, 30)
        if "zh" in positive(self.languages) and positive(self.styles_of("zh")) == ["mono"]:
            raise ValueError(
                "styles has mono only, and no Chinese font is monospace; add another style, or leave zh out "
                "of languages"
            )

    def styles_of(self, language: str) -> Shares:
        return self.chinese_styles if language == "zh" and self.chinese_styles else self.styles

    @classmethod
    def from_dict(cls, values: Mapping) -> "Typography":
        """Replaces some of the defaults, as read from JSON. Raises ValueError for unknown names."""
        names = [entry.name for entry in fields(cls)]
        if not isinstance(values, Mapping):
            raise ValueError(f"settings are an object of names and values; got {type(values).__name__}")
        for name in values:
            if name not in names:
                raise ValueError(f"there is no setting {name!a}; there are: {', '.join(names)}")
        return cls(**{name: _tuples(value) for name, value in values.items()})


def positive(shares: Shares) -> list[str]:
    """Lists the choices that are ever drawn, in an order that does not depend on how they were written."""
    return sorted(name for name, share in shares.items() if share > 0)


def pick(rng: Random, shares: Shares) -> str:
    names = positive(shares)
    return rng.choices(names, [shares[name] for name in names])[0]


def _tuples(value: Any) -> Any:
    """Turns JSON's lists into the tuples that they were, so that settings read back equal those written."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _check_shares(name: str, shares: object, choices: tuple[str, ...]) -> None:
    if not isinstance(shares, Mapping):
        raise ValueError(f"{name} is {shares!a}; a share for each of {', '.join(choices)} is needed")
    for choice, share in shares.items():
        if choice not in choices:
            raise ValueError(f"{name} has {choice!a}; there are: {', '.join(choices)}")
        if not isinstance(share, int | float) or not 0 <= share < math.inf:
            raise ValueError(f"{name} gives {choice} the share {share!a}; 0 or more is needed")
    if not positive(shares):
        raise ValueError(f"{name} has no share above 0; give one to at least one of {', '.join(choices)}")


def _check_sizes(sizes: object) -> None:
    if not isinstance(sizes, tuple | list) or not sizes:
        raise ValueError(f"sizes is {sizes!a}; at least one (width, height) is needed")
    for size in sizes:
        match size:
            case (int(width), int(height)) if min(width, height) >= 32 and max(width, height) <= 4096:
                continue
        raise ValueError(f"sizes holds {size!a}; a width and a height from 32 to 4096 are needed")


def _check(config: Typography, name: str, low: float, high: float, kind: type = float) -> None:
    value = getattr(config, name)
    if not isinstance(value, int | kind) or not low <= value <= high:
        raise ValueError(f"{name} is {value!a}; from {low} to {high} is possible")


def _check_range(name: str, value: object, low: int, high: int) -> None:
    match value:
        case (int(first), int(last)) if low <= first <= last <= high:
            return
    raise ValueError(f"{name} is {value!a}; two numbers from {low} to {high}, the smaller first, are needed")
