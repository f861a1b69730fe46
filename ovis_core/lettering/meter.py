"""Counts the model's tokens of a prompt, and finds what is lost and what has no token of its own."""

import unicodedata
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os.path import commonprefix

from ..prompt import MAX_TOKENS, SYSTEM

REPLACEMENT = "\ufffd"  # what bytes decode to that are only part of a character
MAX_BYTE_TOKENS = 8  # no character takes more


@dataclass(frozen=True)
class Meter:
    """A tokenizer as seen from outside.

    tokens: prompt -> its token ids within the template (whole, or cut at MAX_TOKENS) and how many there are
    uncut. decode: token ids -> text, control tokens included.
    """

    tokens: Callable[[str], tuple[list[int], int]]
    decode: Callable[[list[int]], str]


@dataclass(frozen=True)
class Reading:
    """A prompt as the tokenizer reads it.

    num_tokens: with the template's. num_template: the empty prompt's, 39 with the released tokenizer. kept:
    how many of the prompt's characters reach the model. in_bytes: characters without a token, in order of
    appearance. split: those that have one but are read as bytes here, because a space before them merges
    with their first byte. pieces: the text of every token.
    """

    num_tokens: int
    num_template: int
    kept: int
    in_bytes: tuple[str, ...]
    split: tuple[str, ...]
    pieces: frozenset[str]

    @property
    def num_lost(self) -> int:
        return max(0, self.num_tokens - MAX_TOKENS)


def read(prompt: str, meter: Meter) -> Reading:
    """Reads a prompt as the model does.

    Raises ValueError for a tokenizer whose empty prompt is not Ovis-Image's template.
    """
    template, num_template = meter.tokens("")
    if SYSTEM.rstrip() not in meter.decode(template):
        raise ValueError(
            "this CLIP does not put prompts into Ovis-Image's template; connect the CLIP of the Ovis-Image "
            "Loader, or of a CLIPLoader with the type ovis"
        )
    ids, num_tokens = meter.tokens(prompt)
    kept = len(prompt)
    if num_tokens > MAX_TOKENS:
        seen = meter.decode(ids[:MAX_TOKENS]).partition(SYSTEM.rstrip())[2].lstrip(" ").rstrip(REPLACEMENT)
        # The tokenizer composes accents, and the template's space merges with the prompt's own.
        whole = unicodedata.normalize("NFC", prompt)
        leading = len(whole) - len(whole.lstrip(" "))
        kept = leading + len(commonprefix([seen, whole.lstrip(" ")]))
        if whole != prompt:
            composed = partial(_composed_length, prompt)
            kept = bisect_right(range(len(prompt) + 1), kept, key=composed) - 1
    in_bytes = _in_bytes(ids, meter)
    rare = tuple(char for char in in_bytes if char in _in_bytes(meter.tokens("\n" + char)[0], meter))
    split = tuple(char for char in in_bytes if char not in rare)
    return Reading(
        num_tokens, num_template, kept, rare, split, frozenset(meter.decode([i]) for i in set(ids))
    )


def _composed_length(prompt: str, end: int) -> int:
    return len(unicodedata.normalize("NFC", prompt[:end]))


def _in_bytes(ids: list[int], meter: Meter) -> tuple[str, ...]:
    """Finds the characters of which no token holds the whole."""
    found: dict[str, None] = {}
    group: list[int] = []
    for token in ids:
        if not group and REPLACEMENT not in meter.decode([token]):
            continue
        group.append(token)
        text = meter.decode(group)
        if REPLACEMENT not in text:
            found.update(dict.fromkeys(char for char in text if not char.isascii()))
            group = []
        elif len(group) > MAX_BYTE_TOKENS:
            group = []
    return tuple(found)
