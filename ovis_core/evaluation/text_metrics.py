"""Measures how well what was read fits what was asked for: characters, and whole texts in any order.

Everything here is total: any two texts have a score between 0 and 1, empty ones too.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

# One drawn sign, several code points, which NFKC leaves apart.
SIGNS = str.maketrans(
    {
        **dict.fromkeys("“”„‟″〝〞", '"'),
        **dict.fromkeys("‘’‚‛′", "'"),
        **dict.fromkeys("‐‑‒–—―−", "-"),
        **dict.fromkeys("·•・‧", "·"),
    }
)


@dataclass(frozen=True)
class Rules:
    """What counts as a difference. Spaces and line breaks never do: nobody sees them reliably."""

    case_sensitive: bool = False
    width_sensitive: bool = False  # full-width and half-width forms, and typographic and plain quotes


def fold(text: str, rules: Rules) -> str:
    """Prepares a text to be compared: without spaces and the differences that do not count."""
    if rules.width_sensitive:
        text = unicodedata.normalize("NFC", text)
    else:
        text = unicodedata.normalize("NFKC", text).translate(SIGNS)
    if not rules.case_sensitive:
        text = unicodedata.normalize("NFC" if rules.width_sensitive else "NFKC", text.casefold())
    return "".join(text.split())


def edit_distance(a: str, b: str) -> int:
    """Counts the characters to insert, delete or replace (Levenshtein).

    The rows of the usual table as bits of two integers, after Myers (1999) and Hyyrö (2003): long texts are
    compared with many regions.
    """
    if not a:
        return len(b)
    places: dict[str, int] = {}
    for i, character in enumerate(a):
        places[character] = places.get(character, 0) | 1 << i
    every, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    rises, falls, distance = every, 0, len(a)  # down the column
    for character in b:
        same = places.get(character, 0)
        diagonal = ((((same & rises) + rises) ^ rises) | same | falls) & every
        rises_across = falls | (every & ~(diagonal | rises))
        falls_across = diagonal & rises
        distance += bool(rises_across & last) - bool(falls_across & last)
        rises_across = (rises_across << 1 | 1) & every
        rises = (falls_across << 1 & every) | (every & ~(diagonal | rises_across))
        falls = rises_across & diagonal
    return distance


def similarity(a: str, b: str, rules: Rules | None = None) -> float:
    """Gives 1 for texts that are equal by the rules, 0 for those with nothing in common; symmetric."""
    return _alike(*(fold(text, rules or Rules()) for text in (a, b)))


def _alike(a: str, b: str) -> float:
    return 1 - edit_distance(a, b) / max(len(a), len(b), 1)


def character_error_rate(expected: str, read: str, rules: Rules | None = None) -> float:
    """Counts wrong, missing and extra characters for each expected one, at most 1."""
    expected, read = (fold(text, rules or Rules()) for text in (expected, read))
    return error_rate(edit_distance(expected, read), len(expected))


def error_rate(errors: int, characters: int) -> float:
    """Divides errors by the expected characters, at most 1; with none expected, any error is all wrong."""
    return min(1.0, errors / characters) if characters else float(errors > 0)


@dataclass(frozen=True)
class Match:
    """An expected text and what was read of it."""

    expected: str
    read: str
    regions: tuple[int, ...]  # that it was read from
    errors: int  # at most the expected characters
    characters: int  # expected
    similarity: float

    @property
    def is_exact(self) -> bool:
        return self.errors == 0

    @property
    def error_rate(self) -> float:
        return error_rate(self.errors, self.characters)


@dataclass(frozen=True)
class Piece:
    """A region, or the words of one that another text is not made of."""

    text: str
    region: int


def match_texts(
    expected: Sequence[str], regions: Sequence[str], rules: Rules | None = None
) -> tuple[list[Match], list[Piece]]:
    """Assigns regions to the expected texts, in any order -> a match for each text, and what is left.

    Best pairs go first. A text may have been read as several regions, which then stand in reading order, and
    a region may hold several texts between spaces.
    """
    rules = rules or Rules()
    wanted = [fold(text, rules) for text in expected]
    pieces = [piece for i, text in enumerate(regions) for piece in _split(Piece(text, i), wanted, rules)]
    folded = [fold(piece.text, rules) for piece in pieces]

    taken = _best_pairs(wanted, folded)
    free = {i for i, text in enumerate(folded) if text} - {i for chain in taken.values() for i in chain}
    for i, chain in taken.items():
        if folded[chain[0]] != wanted[i]:
            _grow(chain, wanted[i], folded, free)

    matches = []
    for i, text in enumerate(expected):
        chain = taken.get(i, [])
        read = "".join(folded[j] for j in chain)
        distance = edit_distance(wanted[i], read)
        matches.append(
            Match(
                expected=text,
                read=" ".join(pieces[j].text for j in chain),
                regions=tuple(dict.fromkeys(pieces[j].region for j in chain)),
                errors=min(distance, len(wanted[i])),
                characters=len(wanted[i]),
                similarity=1 - distance / max(len(wanted[i]), len(read), 1),
            )
        )
    return matches, [pieces[j] for j in sorted(free)]


def _split(piece: Piece, wanted: Sequence[str], rules: Rules) -> list[Piece]:
    """Cuts a region where some of its words are exactly an expected text."""
    words = piece.text.split()
    folded = [fold(word, rules) for word in words]
    if "".join(folded) in wanted:
        return [piece]
    for text in sorted(filter(None, set(wanted)), key=lambda text: (-len(text), text)):
        for start in range(len(words)):
            for end in range(start + 1, len(words) + 1):
                if "".join(folded[start:end]) == text:
                    parts = (words[:start], words[start:end], words[end:])
                    return [
                        found
                        for part in parts
                        if part
                        for found in _split(Piece(" ".join(part), piece.region), wanted, rules)
                    ]
    return [piece]


def _best_pairs(wanted: Sequence[str], folded: Sequence[str]) -> dict[int, list[int]]:
    """Gives each text a piece of its own, the most similar pairs first."""
    pairs = []
    for i, text in enumerate(wanted):
        for j, piece in enumerate(folded):
            alike = _alike(text, piece)
            if alike > 0 and text:
                pairs.append((-alike, i, j))
    taken: dict[int, list[int]] = {}
    used = set()
    for _, i, j in sorted(pairs):
        if i not in taken and j not in used:
            taken[i] = [j]
            used.add(j)
    return dict(sorted(taken.items()))


def _grow(chain: list[int], text: str, folded: Sequence[str], free: set[int]) -> None:
    """Adds free pieces, in reading order, for as long as that makes fewer errors."""
    shared = {j: SequenceMatcher(None, text, folded[j], autojunk=False).find_longest_match() for j in free}
    distance = edit_distance(text, "".join(folded[j] for j in chain))
    for j in sorted(free, key=lambda j: (-shared[j].size, j)):
        longer = sorted([*chain, j])
        closer = edit_distance(text, "".join(folded[j] for j in longer))
        if closer < distance:
            distance, chain[:] = closer, longer
            free.remove(j)
