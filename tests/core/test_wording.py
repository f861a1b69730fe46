"""What the pictures say, and the words that training never shows."""

from random import Random

import pytest

from ovis_core.typography.lexicon import CHARACTERS, CHINESE_WORDS, WORDS
from ovis_core.typography.settings import Typography
from ovis_core.typography.wording import Wording, is_for_training, is_held_out, parts_of, words_of


def test_lists_are_what_they_say():
    assert len(WORDS) == len(set(WORDS)) > 500
    assert all(word.isalpha() and word.isascii() and word.islower() and 2 <= len(word) <= 9 for word in WORDS)
    assert len(CHARACTERS) == len(set(CHARACTERS)) >= 60
    assert len(CHINESE_WORDS) == len(set(CHINESE_WORDS)) > 100
    assert all(set(word) <= set(CHARACTERS) and 2 <= len(word) <= 4 for word in CHINESE_WORDS)


@pytest.mark.parametrize("words", [WORDS, CHINESE_WORDS])
def test_one_word_in_twenty_is_held_out(words):
    assert 0.035 < sum(map(is_held_out, words)) / len(words) < 0.065


def test_what_is_held_out_does_not_change():
    assert [w for w in WORDS if is_held_out(w)][:3] == ["by", "eat", "cafe"]
    assert not is_for_training("BIG Cafe!")
    assert not any(map(is_held_out, CHARACTERS + "abc123"))


def test_words_and_parts():
    assert words_of('Big "SALE" & 50% 24H 9:30!') == ["big", "sale", "50", "24h", "9:30"]
    assert parts_of("新品上 茶") == {"新品上", "新品", "品上", "茶"}


def test_no_held_out_word_is_ever_trained():
    config = Typography(punctuation=0.3, digits=0.3)
    trained, tested = set(), set()
    for held_out, seen, draws in ((False, trained, 40_000), (True, tested, 4_000)):
        wording = Wording(config, held_out)
        rng = Random(int(held_out))
        for i in range(draws):
            text = wording.text(rng, ("en", "zh")[i % 2], wording.kind(rng))
            seen |= set(words_of(text)) if held_out else parts_of(text)
    assert len(trained) > 10_000
    assert len(tested) > 1_000
    assert not any(map(is_held_out, trained))
    assert all(map(is_held_out, tested))
    assert trained.isdisjoint(tested)


def test_held_out_pictures_show_held_out_words(draw):
    for example in draw(150, held_out=True):
        assert example.kind != "character"
        assert all(map(is_held_out, words_of(" ".join(example.texts))))
    assert all(is_for_training(" ".join(example.texts)) for example in draw(300))
