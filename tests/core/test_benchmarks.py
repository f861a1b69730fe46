"""The benchmarks' scores beside plain computations of their definitions, written out here."""

import difflib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovis_core.evaluation import benchmarks

LETTERS = "a-zA-Z0-9àâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ"
TEXTS = st.lists(st.text("abAB é上下, ,!", max_size=12) | st.text(st.characters(), max_size=8), max_size=4)
READINGS = st.lists(st.tuples(TEXTS, TEXTS), max_size=3)


def distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def common(a, b):
    """How many items of a are in b, each item of b once."""
    b = list(b)
    count = 0
    for item in a:
        if item in b:
            b.remove(item)
            count += 1
    return count


def reference_cvtg(readings):
    right = total = 0
    neds = []
    for expected, read in readings:
        predicted = [word for line in read for word in line.lower().split()] or [""]
        for word in [word for text in expected for word in text.lower().split()]:
            total += 1
            right += word in predicted
            closest = max((difflib.SequenceMatcher(None, p, word).ratio(), p) for p in predicted)[1]
            neds.append(1 - distance(word, closest) / (max(len(word), len(closest)) + 1e-5))
    return (right / total, sum(neds) / total) if total else (0.0, 0.0)


def reference_longtext(readings):
    right = total = 0
    for expected, read in readings:
        truth, found = " ".join(expected), " ".join(read)
        if re.search("[\u4e00-\u9fff]", truth):
            truth, found = (re.findall(f"[\u4e00-\u9fa5{LETTERS}]", text) for text in (truth, found))
        else:
            truth, found = (
                re.sub(rf"[^\u4e00-\u9fa5{LETTERS}\s]", "", text).lower().split() for text in (truth, found)
            )
        right += common(truth, found)
        total += len(truth)
    return right / total if total else 0.0


def reference_oneig(readings, limit):
    if not readings:
        return 0.0
    right = total = 0
    distances = []
    for expected, read in readings:
        cleaned = []
        for text in (" ".join(expected), " ".join(read)):
            kept = "".join(c for c in text if re.match(rf"[\u4e00-\u9fa5{LETTERS}\s]", c))
            if re.search("[\u4e00-\u9fff]", kept):
                kept = re.sub(r"\s", "", kept)
            cleaned.append(re.sub(r"\s+", " ", kept).strip())
        truth, found = cleaned
        distances.append(distance(truth, found))
        if re.search("[\u4e00-\u9fff]", truth):
            right, total = right + common(truth, found), total + len(truth)
        else:
            right, total = right + common(truth.split(), found.split()), total + len(truth.split())
    mean = sum(distances) / len(distances)
    completed = sum(d == 0 for d in distances) / len(distances)
    return 1 - min(limit, mean) * (1 - completed) * (1 - (right / total if total else 0)) / limit


@given(READINGS)
def test_cvtg_2k(readings):
    accuracy, ned = reference_cvtg(readings)
    assert benchmarks.cvtg_word_accuracy(readings) == pytest.approx(accuracy)
    assert benchmarks.cvtg_ned(readings) == pytest.approx(ned)


@given(READINGS)
def test_longtext_bench(readings):
    assert benchmarks.longtext_bench(readings) == pytest.approx(reference_longtext(readings))


@given(READINGS)
@pytest.mark.parametrize(("language", "limit"), [("en", 100), ("zh", 50)])
def test_oneig(language, limit, readings):
    assert benchmarks.oneig_text(readings, language) == pytest.approx(reference_oneig(readings, limit))


def test_known_values():
    """By hand: one of two words, one letter of four wrong; three of four characters."""
    english, chinese = (["OPEN Late"], ["open", "lake"]), (["开业大吉"], ["开业大古！"])
    assert benchmarks.cvtg_word_accuracy([english]) == 0.5
    assert benchmarks.cvtg_ned([english]) == pytest.approx((1 + 0.75) / 2, abs=1e-5)
    assert benchmarks.longtext_bench([english]) == 0.5
    assert benchmarks.longtext_bench([english, chinese]) == 4 / 6
    assert benchmarks.oneig_text([chinese], "zh") == pytest.approx(1 - 1 * 1 * (1 / 4) / 50)
    assert benchmarks.oneig_text([(["Open"], ["Open"])], "en") == 1
    assert benchmarks.oneig_text([], "en") == 0


@given(TEXTS, TEXTS)
def test_scores_are_shares_for_any_text(expected, read):
    values = benchmarks.scores(expected, read)
    assert list(values) == ["cvtg_2k_word_accuracy", "cvtg_2k_ned", "longtext_bench", "oneig_text"]
    assert all(0 <= value <= 1 for value in values.values())
