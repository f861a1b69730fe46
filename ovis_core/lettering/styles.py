"""Describes lettering styles by name, in English and Chinese: those that ship, and the user's own."""

import json
from pathlib import Path

from .copy import LANGUAGES, phrasing_of

SHIPPED = Path(__file__).with_name("styles.json")
COLOUR = {"en": ", in {}", "zh": "，颜色为{}"}
MAX_BYTES = 1 << 20
EXPECTED = '{"my style": {"en": "...", "zh": "..."}}'

Styles = dict[str, dict[str, str]]


def load_styles(path: Path) -> Styles:
    """Reads and checks a file of styles. Raises ValueError that names the style at fault."""
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
    """Reads the shipped styles and the user's own, which go before them."""
    return load_styles(SHIPPED) | (load_styles(own) if own.is_file() else {})


def describe(styles: Styles, name: str, language: str, colour: str = "") -> str:
    """Describes a style in one language, in a colour if one is wanted.

    Raises ValueError for an unknown name.
    """
    phrasing_of(language)
    if name not in styles:
        raise ValueError(
            f"there is no lettering style {name!r}; choose one of {', '.join(sorted(styles)[:5])}, ..."
        )
    text = styles[name][language]
    return text + (COLOUR[language].replace("{}", colour) if colour.strip() else "")
