"""Computes the text scores of three benchmarks, under their names, on what any reader has read.

Definitions only: a benchmark's published figures come from its own prompts and its own reader (PaddleOCR, or
the vision-language model Qwen2.5-VL-7B), so compare a figure of these with others read the same way.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from .text_metrics import edit_distance

CHINESE = re.compile("[\u4e00-\u9fff]")
# What LongText-Bench and OneIG keep of a text; the second leaves out spaces too.
DROPPED = re.compile(r"[^\u4e00-\u9fa5a-zA-Z0-9\sàâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ]")
ONEIG_MAX_DISTANCE = {"en": 100, "zh": 50}


class Reading(NamedTuple):
    """The texts that a picture should show, and those that were recognised, in reading order."""

    expected: Sequence[str]
    recognised: Sequence[str]


def language_of(texts: Sequence[str]) -> str:
    """Gives `zh` where there is a Chinese character, else `en`."""
    return "zh" if CHINESE.search(" ".join(texts)) else "en"


def cvtg_word_accuracy(readings: Iterable[Reading]) -> float:
    """Computes CVTG-2K's Word Accuracy: the share of expected words that were recognised, without case.

    Source: TextCrafter (arXiv 2503.23461), its evaluation script for CVTG-2K.
    """
    found = [word in read for words, read in map(_words, readings) for word in words]
    return sum(found) / max(len(found), 1)


def cvtg_ned(readings: Iterable[Reading]) -> float:
    """Computes CVTG-2K's NED, the mean over all expected words of 1 minus a normalized edit distance.

    The distance is that to the closest recognised word, as difflib finds it, by the longer's length.

    Source: as `cvtg_word_accuracy`; the 1e-5 in the divisor is the script's.
    """
    scores = []
    for words, read in map(_words, readings):
        for word in words:
            (closest,) = get_close_matches(word, read or [""], n=1, cutoff=0)
            longer = max(len(word), len(closest))
            scores.append(1 - edit_distance(word, closest) / (longer + 1e-5))
    return sum(scores) / max(len(scores), 1)


def _words(reading: Reading) -> tuple[list[str], list[str]]:
    expected, read = (" ".join(texts).lower().split() for texts in reading)
    return expected, read


def longtext_bench(readings: Iterable[Reading]) -> float:
    """Computes LongText-Bench's Text Score: the share of expected words that were recognised.

    In Chinese, of characters. Each counts as often as it is there, without case and signs, over all pictures
    together.

    Source: X-Omni (arXiv 2507.22058), its textbench scripts.
    """
    matched = total = 0
    for expected, read in readings:
        texts = (DROPPED.sub("", " ".join(reading)) for reading in (expected, read))
        if language_of(expected) == "zh":
            wanted, found = ("".join(text.split()) for text in texts)
        else:
            wanted, found = (text.lower().split() for text in texts)
        matched += (Counter(wanted) & Counter(found)).total()
        total += len(wanted)
    return matched / max(total, 1)


def oneig_text(readings: Iterable[Reading], language: str) -> float:
    """Computes OneIG-Bench's text score, 1 - min(M, ED) (1 - CR) (1 - WAC) / M.

    M is 100 for `en`, 50 for `zh`. ED is the mean edit distance, CR the share of pictures without one, WAC
    the share of expected words (in Chinese, characters) that were found. Of the same readings at once, as the
    benchmark does: the score of a set is not the mean of its pictures' scores. Source: OneIG-Bench (arXiv
    2506.07977), scripts/text of OneIG-Bench/OneIG-Benchmark.
    """
    distances, matched, total = [], 0, 0
    for expected, read in readings:
        wanted, found = (_plain(" ".join(texts)) for texts in (expected, read))
        distances.append(edit_distance(found, wanted))
        units = (wanted, found) if CHINESE.search(wanted) else (wanted.split(), found.split())
        matched += (Counter(units[0]) & Counter(units[1])).total()
        total += len(units[0])
    if not distances:
        return 0.0
    distance = sum(distances) / len(distances)
    completed = distances.count(0) / len(distances)
    accuracy = matched / max(total, 1)
    limit = ONEIG_MAX_DISTANCE[language]
    return 1 - min(limit, distance) * (1 - completed) * (1 - accuracy) / limit


def _plain(text: str) -> str:
    """Keeps letters, digits and Chinese characters, and single spaces where none is Chinese."""
    text = DROPPED.sub("", text)
    return ("" if CHINESE.search(text) else " ").join(text.split())


def scores(expected: Sequence[str], read: Sequence[str]) -> dict[str, float]:
    """Computes all of them for one picture."""
    reading = [Reading(expected, read)]
    return {
        "cvtg_2k_word_accuracy": cvtg_word_accuracy(reading),
        "cvtg_2k_ned": cvtg_ned(reading),
        "longtext_bench": longtext_bench(reading),
        "oneig_text": oneig_text(reading, language_of(expected)),
    }
