"""The core's lettering with what ComfyUI knows: the linked CLIP's tokenizer, the user's folder."""

import json
from pathlib import Path

import folder_paths

from ....ovis_core.lettering.copy import LANGUAGES, Composed, compose, wording_of
from ....ovis_core.lettering.layout import place, read_boxes
from ....ovis_core.lettering.lint import check
from ....ovis_core.lettering.lint_report import as_json, report, summary
from ....ovis_core.lettering.meter import Meter
from ....ovis_core.lettering.styles import SHIPPED, all_styles, describe, load_styles
from ....ovis_core.prompt import TOKEN_IDS

__all__ = ["LANGUAGES", "check_prompt", "describe_style", "style_names", "write_copy", "write_layout"]

OWN_STYLES = Path("ovis_image", "lettering_styles.json")  # below user/default


def write_copy(texts: dict[str, str], scene: str, style: str, language: str) -> tuple[str, str, str]:
    """-> the prompt, the texts one per line, and the texts as JSON, where a line break is not a border."""
    return _outputs(compose(texts, scene, style, language))


def write_layout(elements: list, scene: str, style: str, language: str) -> tuple[str, str, str]:
    """Boxes -> what `write_copy` gives."""
    return _outputs(place(read_boxes(elements), scene, style, language))


def check_prompt(
    prompt: str, clip, steps: int, cfg: float, fix: bool, language: str
) -> tuple[str, tuple[str, str, str, int]]:
    """-> one line, and (the prompt, the report, the report as JSON, the number of tokens)."""
    wording_of(language)
    checked = check(prompt, clip and _meter(clip), steps, cfg, fix)
    num_tokens = checked.reading.num_tokens if checked.reading else 0
    outputs = checked.prompt, report(checked, language), as_json(checked, language), num_tokens
    return summary(checked, language), outputs


def style_names() -> list[str]:
    """The shipped styles and the user's; a broken file of theirs is told of when a style is used."""
    try:
        return list(all_styles(_own_styles()))
    except (OSError, ValueError):
        return list(load_styles(SHIPPED))


def describe_style(name: str, language: str, colour: str) -> str:
    return describe(all_styles(_own_styles()), name, language, colour)


def _own_styles() -> Path:
    return Path(folder_paths.get_user_directory(), "default", OWN_STYLES)


def _outputs(composed: Composed) -> tuple[str, str, str]:
    return composed.prompt, "\n".join(composed.texts), json.dumps(composed.texts, ensure_ascii=False)


def _meter(clip) -> Meter:
    """Ours tells what it cut off; every other CLIP gives all tokens, padded."""

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
