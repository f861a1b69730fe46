"""Connects the core's lettering to the linked CLIP's tokenizer and the user's folder."""

import json
from pathlib import Path
from typing import NamedTuple

import folder_paths
from comfy.sd import CLIP

from ....ovis_core.lettering.copy import Composed, compose
from ....ovis_core.lettering.kept import keep_quotes
from ....ovis_core.lettering.layout import place, read_boxes
from ....ovis_core.lettering.lint import check
from ....ovis_core.lettering.lint_report import as_json, report, summary
from ....ovis_core.lettering.meter import Meter
from ....ovis_core.lettering.styles import SHIPPED, all_styles, describe, load_styles
from ....ovis_core.prompt import TOKEN_IDS

LANGUAGES = {"English": "en", "Chinese": "zh"}  # as saved workflows have them -> as the core has them
OTHERWISE = ("error", "the original")
OWN_STYLES = Path("ovis_image", "lettering_styles.json")  # below user/default


class Written(NamedTuple):
    """A prompt and its texts in reading order; in JSON a text may have several lines."""

    prompt: str
    texts: str  # one per line
    texts_json: str


class Checked(NamedTuple):
    """A prompt, fixed on request, and the findings in it."""

    prompt: str
    report: str
    report_json: str
    num_tokens: int


def write_copy(texts: dict[str, str], scene: str, style: str, language: str) -> Written:
    """Writes a prompt from the texts of a poster."""
    return _outputs(compose(texts, scene, style, _code(language)))


def write_copy_fields(body: bytes) -> Written:
    """Writes the prompt of Ovis Copy from its widgets as JSON. Raises ValueError for anything else."""
    fields = json.loads(body)
    if not isinstance(fields, dict) or not all(isinstance(text, str) for text in fields.values()):
        raise ValueError("the fields of Ovis Copy are an object of texts")
    scene, style = fields.pop("scene", ""), fields.pop("style", "")
    return write_copy(fields, scene, style, fields.pop("language", "English"))


def write_layout(elements: list, scene: str, style: str, language: str) -> Written:
    """Writes a prompt from the boxes of Create Bounding Boxes."""
    return _outputs(place(read_boxes(elements), scene, style, _code(language)))


def check_prompt(
    prompt: str, clip: CLIP | None, steps: int, cfg: float, fix: bool, language: str
) -> tuple[str, Checked]:
    """Checks a prompt -> one line to show, and the node's outputs."""
    language = _code(language)
    checked = check(prompt, clip and _meter(clip), steps, cfg, fix)
    num_tokens = checked.reading.num_tokens if checked.reading else 0
    found = Checked(checked.prompt, report(checked, language), as_json(checked, language), num_tokens)
    return summary(checked, language), found


def keep_texts(original: str, rewritten: str, otherwise: str) -> tuple[str, str]:
    """Checks a rewritten prompt -> the one to use, and a report. Raises ValueError if that is asked for."""
    return keep_quotes(original, rewritten, or_original=otherwise == OTHERWISE[1])


def style_names() -> list[str]:
    """Lists the shipped styles and the user's; a broken file of theirs is reported when a style is used."""
    try:
        return list(all_styles(_own_styles()))
    except (OSError, ValueError):
        return list(load_styles(SHIPPED))


def describe_style(name: str, language: str, colour: str) -> str:
    """Describes a shipped style or the user's in a language, with a colour."""
    return describe(all_styles(_own_styles()), name, _code(language), colour)


def _code(language: str) -> str:
    """Gets a language's code. Raises ValueError for an unknown language, which linked text may hold."""
    if language not in LANGUAGES:
        raise ValueError(f"the language is {language!r}; choose one of {', '.join(LANGUAGES)}")
    return LANGUAGES[language]


def _own_styles() -> Path:
    return Path(folder_paths.get_user_directory(), "default", OWN_STYLES)


def _outputs(composed: Composed) -> Written:
    texts = json.dumps(composed.texts, ensure_ascii=False)
    return Written(composed.prompt, "\n".join(composed.texts), texts)


def _meter(clip: CLIP) -> Meter:
    """Chooses a token counter: our CLIP reports what it cut off; any other gives all tokens, padded."""

    def own_tokens(prompt: str) -> tuple[list[int], int]:
        tokens = clip.tokenizer.prompt_tokenizer(prompt)
        return list(tokens.ids), len(tokens.ids) + tokens.num_lost

    def linked_tokens(prompt: str) -> tuple[list[int], int]:
        pairs = next(iter(clip.tokenize(prompt).values()))[0]
        ids = [pair[0] for pair in pairs]
        while ids and isinstance(ids[-1], int) and ids[-1] == TOKEN_IDS["<|endoftext|>"]:
            ids.pop()
        return [token for token in ids if isinstance(token, int)], len(ids)  # an embedding is a tensor

    def decode(ids: list[int]) -> str:
        return clip.tokenizer.decode(ids, skip_special_tokens=False)

    own = hasattr(clip.tokenizer, "prompt_tokenizer")
    return Meter(own_tokens if own else linked_tokens, decode)
