"""Reads the quotation marks of a prompt, and chooses those that suit a text."""

from dataclasses import dataclass

PAIRS = {'"': '"', "“": "”", "「": "」", "『": "』", "«": "»"}
CLOSERS = {closer: opener for opener, closer in PAIRS.items() if closer != opener}


@dataclass(frozen=True)
class Quoted:
    """A text in quotes: the marks stand at `start` - 1 and at `end`."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Slip:
    """A mark without its partner, or (`expected` not empty) one that closes the other kind's opening."""

    position: int
    mark: str
    expected: str = ""


def parse(prompt: str) -> tuple[list[Quoted], list[Slip]]:
    """Finds the quoted texts from left to right, and the marks that do not match."""
    quoted, slips = [], []
    partners = _partners(prompt)
    i = 0
    while i < len(prompt):
        mark = prompt[i]
        if mark in PAIRS and not _is_inch_mark(prompt, i):
            end = _closing(prompt, i, partners)
            if end is None:
                slips.append(Slip(i, mark))
            else:
                quoted.append(Quoted(i + 1, end, prompt[i + 1 : end]))
                if prompt[end] != PAIRS[mark]:
                    slips.append(Slip(end, prompt[end], PAIRS[mark]))
                i = end
        elif mark in CLOSERS:
            slips.append(Slip(i, mark))
        i += 1
    return quoted, slips


def quoted_texts(prompt: str) -> list[str]:
    """Lists what the prompt asks for in letters, in its order."""
    return [quoted.text for quoted in parse(prompt)[0] if quoted.text.strip()]


def quote(text: str, openers: str, what: str = "the text") -> str:
    """Puts the text, unaltered, into the first kind of quotes that leaves no doubt of it.

    openers: opening marks in order of preference; any other kind comes after them. Raises ValueError for a
    text that no kind can hold.
    """
    for opener in dict.fromkeys([*openers, *PAIRS]):
        candidate = opener + text + PAIRS[opener]
        if parse(candidate) == ([Quoted(1, len(text) + 1, text)], []):
            return candidate
    raise ValueError(
        f"{what} holds quotation marks of every kind ({' '.join(o + c for o, c in PAIRS.items())}), so none "
        "is left to put around it; take one kind out of it"
    )


def _closing(prompt: str, start: int, partners: dict[int, int]) -> int | None:
    """Finds where the text that opens at `start` ends, at a mark of the other kind if that was meant."""
    opener = prompt[start]
    meant = -1
    if opener == '"':
        end = prompt.find('"', start + 1)
        meant = _first_unopened(prompt, start + 1, end if end >= 0 else len(prompt))
    else:
        end = partners.get(start, -1)
        if opener == "“":
            limit = prompt.find(opener, start + 1, end if end >= 0 else len(prompt))
            if limit >= 0 or end < 0:
                meant = prompt.find('"', start + 1, limit if limit >= 0 else len(prompt))
    if meant >= 0:
        return meant
    return end if end >= 0 else None


def _partners(prompt: str) -> dict[int, int]:
    """Finds where each opening mark of a kind with two shapes is closed; marks may nest."""
    partners: dict[int, int] = {}
    waiting: dict[str, list[int]] = {opener: [] for opener in CLOSERS.values()}
    for i, mark in enumerate(prompt):
        if mark in waiting:
            waiting[mark].append(i)
        elif mark in CLOSERS and waiting[CLOSERS[mark]]:
            partners[waiting[CLOSERS[mark]].pop()] = i
    return partners


def _first_unopened(prompt: str, start: int, end: int) -> int:
    """Finds the first ” of a part that no “ of that part has opened, or -1."""
    depth = 0
    for i in range(start, end):
        depth += (prompt[i] == "“") - (prompt[i] == "”")
        if depth < 0:
            return i
    return -1


def _is_inch_mark(prompt: str, i: int) -> bool:
    """Tells whether the mark is that of 27" and opens nothing."""
    return prompt[i] == '"' and prompt[i - 1 : i].isdigit() and not prompt[i + 1 : i + 2].isalnum()
