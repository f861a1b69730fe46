"""Chooses what is written: words, made-up words, phrases and numbers; some are held out.

A word is held out by what it is, whatever the run: the hash of its letters decides.
"""

import re
import zlib
from collections.abc import Callable, Iterable
from random import Random

from .lexicon import CHARACTERS, CHINESE_WORDS, CODAS, NO_CODA, ONSETS, VOWELS, WORDS
from .settings import Typography, pick, positive

HELD_OUT_ONE_IN = 20
SALT = "2936:"  # one that holds out about 5 % of each list, of every length
MAX_DRAWS = 2000  # for one word of the right side; one in 20 is held out, so that 2000 never fail by chance
CHINESE = re.compile("[\u4e00-\u9fff]+")


def words_of(text: str) -> list[str]:
    """Lists the words of a text, without case and the punctuation around them."""
    words = (re.sub(r"^[\W_]+|[\W_]+$", "", word) for word in text.casefold().split())
    return [word for word in words if word]


def parts_of(text: str) -> set[str]:
    """Lists the words of a text, and all parts of its Chinese ones of two characters or more."""
    parts = set(words_of(text))
    for run in CHINESE.findall(text):
        parts |= {run[i:j] for i in range(len(run)) for j in range(i + 2, len(run) + 1)}
    return parts


def is_held_out(word: str) -> bool:
    """Tells whether training never sees this word. Single characters are never held out."""
    return len(word) > 1 and zlib.crc32((SALT + word).encode()) % HELD_OUT_ONE_IN == 0


def is_for_training(text: str) -> bool:
    """Tells whether nothing in the text is held out."""
    return not any(map(is_held_out, parts_of(text)))


def is_for_testing(text: str) -> bool:
    """Tells whether every word of the text is held out."""
    return all(map(is_held_out, words_of(text)))


class Wording:
    """Draws texts of one side of the split. Raises ValueError when the config leaves it nothing to draw."""

    def __init__(self, config: Typography, held_out: bool = False):
        self.config = config
        self.is_allowed = is_for_testing if held_out else is_for_training
        self.kinds = {kind: share for kind, share in config.kinds.items() if share > 0}
        if held_out:
            self.kinds.pop("character", None)
            if not self.kinds:
                raise ValueError("kinds has characters only, which are never held out; add another kind")
        characters = set(CHARACTERS[: config.num_characters])
        self.words = {
            "en": self._words(WORDS, config.lengths),
            "zh": self._words((w for w in CHINESE_WORDS if characters.issuperset(w)), config.chinese_lengths),
        }
        for language in positive(config.languages):
            if "word" in self.kinds and not self.words[language]:
                side = "held out" if held_out else "for training"
                raise ValueError(
                    f"no {language} word of the lengths is {side}; allow more lengths, or leave out kind word"
                )

    def _words(self, words: Iterable[str], lengths: tuple[int, int]) -> list[str]:
        return [word for word in words if lengths[0] <= len(word) <= lengths[1] and self.is_allowed(word)]

    def kind(self, rng: Random) -> str:
        return pick(rng, self.kinds)

    def text(self, rng: Random, language: str, kind: str) -> str:
        """Draws one text; of several words, with spaces between them."""
        draws = {
            "character": self._character,
            "letters": self._letters,
            "word": self._listed,
            "phrase": self._phrase,
            "number": self._number,
        }
        text = draws[kind](rng, language)
        if kind in ("character", "number") or rng.random() >= self.config.punctuation:
            return text
        return text + rng.choice("！？" if language == "zh" else "!?.")

    def _allowed(self, draw: Callable[[], str]) -> str:
        for _ in range(MAX_DRAWS):
            text = draw()
            if self.is_allowed(text):
                return text
        raise ValueError("no text of the asked length is on this side of the split; allow more lengths")

    def _cased(self, rng: Random, text: str) -> str:
        case = pick(rng, self.config.cases)
        return {"upper": text.upper(), "lower": text, "capital": text.title()}[case]

    def _character(self, rng: Random, language: str) -> str:
        if rng.random() < self.config.digits:
            return rng.choice("0123456789")
        if language == "zh":
            return rng.choice(CHARACTERS[: self.config.num_characters])
        return self._cased(rng, rng.choice("abcdefghijklmnopqrstuvwxyz"))

    def _letters(self, rng: Random, language: str) -> str:
        if language == "zh":
            return self._allowed(lambda: self._characters(rng))
        has_digits = rng.random() < self.config.digits
        return self._cased(rng, self._allowed(lambda: self._syllables(rng, has_digits)))

    def _characters(self, rng: Random) -> str:
        count = rng.randint(*self.config.chinese_lengths)
        return "".join(rng.sample(CHARACTERS[: self.config.num_characters], count))

    def _syllables(self, rng: Random, has_digits: bool) -> str:
        count = rng.randint(*self.config.lengths)
        text = ""
        while len(text) < count:
            coda = "" if rng.random() < NO_CODA else rng.choice(CODAS)
            text += (rng.choice(ONSETS) if rng.random() < 0.85 or text else "") + rng.choice(VOWELS) + coda
        text = text[:count]
        # No 0 or 1, which nobody tells from letters.
        return text[:-1] + rng.choice("23456789") if has_digits else text

    def _listed(self, rng: Random, language: str) -> str:
        word = rng.choice(self.words[language])
        return word if language == "zh" else self._cased(rng, word)

    def _phrase(self, rng: Random, language: str) -> str:
        if language == "zh":
            return " ".join(self._part(rng, language) for _ in range(2))
        words = [self._part(rng, language).lower() for _ in range(rng.randint(*self.config.phrase_words))]
        if rng.random() < self.config.punctuation:
            words.insert(-1, rng.choice("&+"))
        return self._cased(rng, " ".join(words))

    def _part(self, rng: Random, language: str) -> str:
        """Draws a word of a phrase, mostly a listed one."""
        listed = self.words[language] and rng.random() < 0.7
        return self._listed(rng, language) if listed else self._letters(rng, language)

    def _number(self, rng: Random, language: str) -> str:
        return self._allowed(lambda: rng.choice(NUMBERS[language])(rng))


def _clock(rng: Random) -> str:
    return f"{rng.randint(1, 23)}:{rng.randrange(0, 60, 5):02d}"


NUMBERS: dict[str, tuple[Callable[[Random], str], ...]] = {
    "en": (
        _clock,
        lambda rng: f"{rng.randint(1, 99)}%",
        lambda rng: f"${rng.randint(1, 999)}",
        lambda rng: f"${rng.randint(1, 99)}.{rng.choice(('50', '95', '99'))}",
        lambda rng: f"{rng.randint(1, 72)}H",
        lambda rng: f"#{rng.randint(1, 999)}",
        lambda rng: f"{rng.randint(1950, 2049)}",
    ),
    "zh": (
        _clock,
        lambda rng: f"{rng.randint(1, 99)}%",
        lambda rng: f"¥{rng.randint(1, 999)}",
        lambda rng: f"{rng.randint(1, 9)}.{rng.randint(1, 9)}折",
        lambda rng: f"{rng.randint(1, 12)}月{rng.randint(1, 28)}日",
        lambda rng: f"{rng.randint(2000, 2049)}年",
    ),
}
