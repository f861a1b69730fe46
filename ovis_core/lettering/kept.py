"""Checks that a rewritten prompt asks for the same texts as the one that it was made of."""

from collections import Counter
from dataclasses import dataclass

from .quotes import quoted_texts

SHOWN = 5  # texts in a sentence


@dataclass(frozen=True)
class Kept:
    """What became of the quoted texts: none lost and none added is as it must be."""

    num_texts: int  # in the original
    lost: tuple[str, ...]
    added: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        return not (self.lost or self.added)

    def report(self) -> str:
        """Says it in a sentence."""
        if self.is_whole:
            return f"all {self.num_texts} quoted texts are kept"
        parts = [f"lost {_listed(self.lost)}"] * bool(self.lost)
        parts += [f"added {_listed(self.added)}"] * bool(self.added)
        return f"the rewritten prompt {' and '.join(parts)} in quotes"


def compare_quotes(original: str, rewritten: str) -> Kept:
    """Compares the texts in quotes, by character; their order and the kind of quotes may change."""
    wanted, found = Counter(quoted_texts(original)), Counter(quoted_texts(rewritten))
    return Kept(wanted.total(), tuple((wanted - found).elements()), tuple((found - wanted).elements()))


def keep_quotes(original: str, rewritten: str, or_original: bool = False) -> tuple[str, str]:
    """Passes a rewritten prompt on where every quoted text is kept -> the prompt and a report.

    or_original: gives the original where one is not; else ValueError is raised that names them.
    """
    kept = compare_quotes(original, rewritten)
    is_empty = bool(original.strip()) and not rewritten.strip()
    if kept.is_whole and not is_empty:
        return rewritten, kept.report()
    report = "the rewritten prompt is empty" if is_empty else kept.report()
    if or_original:
        return original, f"{report}; the original is used"
    raise ValueError(
        f"{report}; ask the text generation to keep what is in double quotes as it is, change its seed, or "
        'set otherwise to "the original"'
    )


def _listed(texts: tuple[str, ...]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(f"“{text}”" for text in texts[:SHOWN]) + more
