"""Lettering styles by name, described in English and Chinese: those that ship, and the user's own."""

import json
from pathlib import Path

from .copy import LANGUAGES, phrasing_of

SHIPPED = Path(__file__).with_name("styles.json")
COLOUR = {"en": ", in {}", "zh": "，颜色为{}"}
MAX_BYTES = 1 << 20
EXPECTED = '{"my style": {"en": "...", "zh": "..."}}'

Styles = dict[str, dict[str, str]]


def load_styles(path: Path) -> Styles:
    """A file of styles, checked. Raises ValueError for a file that is none, naming the style at fault."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"the styles in {path} take more than {MAX_BYTES} bytes; keep fewer of them")
        styles = json.loads(path.read_text("utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"the styles in {path} are not JSON in UTF-8 ({error}); expected {EXPECTED}"
        ) from error
    if not isinstance(styles, dict):
        raise ValueError(f"the styles in {path} are a {type(styles).__name__}; expected {EXPECTED}")
    for name, style in styles.items():
        if not isinstance(style, dict) or set(style) != set(LANGUAGES):
            raise ValueError(f'the style {name!r} in {path} must have "en" and "zh" and nothing else')
        if not name.strip() or not all(isinstance(text, str) and text.strip() for text in style.values()):
            raise ValueError(f"the style {name!r} in {path} needs a name and two texts that are not empty")
    return styles


def all_styles(own: Path) -> Styles:
    """The shipped styles, and above them the user's, where there is such a file."""
    return load_styles(SHIPPED) | (load_styles(own) if own.is_file() else {})


def describe(styles: Styles, name: str, language: str, colour: str = "") -> str:
    """A style in one language, with a colour if one is wanted. Raises ValueError for an unknown name."""
    phrasing_of(language)
    if name not in styles:
        raise ValueError(
            f"there is no lettering style {name!r}; choose one of {', '.join(sorted(styles)[:5])}, ..."
        )
    text = styles[name][language]
    return text + (COLOUR[language].replace("{}", colour) if colour.strip() else "")
