"""Verdicts from what a reader of the test's own has read."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from ovis_core.drawing.fonts import Fonts
from ovis_core.evaluation.legibility import Weakest
from ovis_core.evaluation.ocr import RapidReader, Region
from ovis_core.evaluation.text_metrics import Rules
from ovis_core.evaluation.verify import (
    RIGHT,
    WRONG,
    annotate,
    draw_ranking,
    expected_texts,
    judge,
    measured,
    ranking,
    verify,
)

PICTURE = np.full((64, 96, 3), 128, np.uint8)
TEXTS = st.lists(st.text(st.characters(), max_size=8) | st.text("ab 上", max_size=8), max_size=4)


def read_as(*texts):
    box = ((10, 20), (40, 20), (40, 30), (10, 30))
    return [Region(text, box, 0.9) for text in texts]


def verdict_on(read, texts, count_extra=True, threshold=1.0, **rules):
    return judge(read_as(*read), texts, Rules(**rules), threshold, count_extra)


@pytest.mark.parametrize(
    ("read", "texts", "how", "score", "passed"),
    [
        (["OPEN"], ["OPEN"], {}, 1, True),
        (["OPEM"], ["OPEN"], {}, 3 / 4, False),
        (["OPEM"], ["OPEN"], {"threshold": 0.75}, 3 / 4, True),
        (["OPEN", "ab"], ["OPEN"], {}, 1 / 2, False),
        (["OPEN", "ab"], ["OPEN"], {"count_extra": False}, 1, True),
        (["OPEN", "much too much"], ["OPEN"], {}, 0, False),
        (["开业大古", "全场五折"], ["全场五折", "开业大吉"], {}, 7 / 8, False),
        ([], ["OPEN"], {}, 0, False),
        ([], ["OPEN"], {"threshold": 0.0}, 0, True),
        ([], [], {}, 1, True),
        (["OPEN"], [], {}, 0, False),
        (["OPEN"], [], {"count_extra": False}, 1, True),
        (["open"], ["OPEN"], {"case_sensitive": True}, 0, False),
    ],
)
def test_score_and_verdict(read, texts, how, score, passed):
    verdict = verdict_on(read, texts, **how)
    assert verdict.score == pytest.approx(score)
    assert verdict.passed is passed


@given(TEXTS, TEXTS, st.booleans())
def test_any_texts_have_a_verdict(read, texts, count_extra):
    verdict = verdict_on(read, texts, count_extra)
    assert 0 <= verdict.score <= 1
    assert verdict.passed == (verdict.score == 1)
    assert verdict.passed == (
        verdict.is_exact and (not count_extra or not "".join(p.text for p in verdict.extra))
    )
    details = json.loads(json.dumps(verdict.as_dict()))
    assert [entry["expected"] for entry in details["texts"]] == texts
    assert verdict.report().startswith("passed" if verdict.passed else "failed")


def test_report_names_what_is_wrong():
    report = verdict_on(["OPEM", "24H", "ads"], ["OPEN", "24H", "Tea"]).report()
    assert report.splitlines() == [
        "failed: score 0.300, 1 of 3 texts right",
        '"OPEN" reads "OPEM" (region 1), 1 of 4 wrong',
        '"Tea" was not found, 3 of 3 wrong',
        'extra: "ads" (region 3)',
    ]


class Sizes:
    """A reader that reads well at some sizes only."""

    def __init__(self, **texts):
        self.texts, self.sides = texts, []

    def __call__(self, image):
        self.sides.append(max(image.shape))
        return read_as(self.texts[f"at{max(image.shape)}"])


def test_the_first_look_that_fits_is_the_last():
    reader = Sizes(at384="OPEM", at256="OPEN", at768="never asked")
    assert verify(PICTURE, ["OPEN"], reader).passed
    assert reader.sides == [384, 256]


def test_of_several_looks_the_best_counts():
    reader = Sizes(at384="OPXX", at256="OPEX", at768="O")
    verdict = verify(PICTURE, ["OPEN"], reader)
    assert reader.sides == [384, 256, 768]
    assert (verdict.score, verdict.matches[0].read) == (3 / 4, "OPEX")


def measure(image, region):
    """A measure that finds an X hard to read."""
    return [Weakest(letter, 0.2 if letter == "X" else 0.9) for letter in region.text]


def measured_verdict(*read, texts=("OPEN",), **how):
    return verify(PICTURE, texts, lambda image: read_as(*read), measure=measure, **how)


@pytest.mark.parametrize(
    ("read", "texts", "how", "legibility", "passed"),
    [
        (["OPEN"], ["OPEN"], {}, 0.9, True),
        (["OPEN"], ["OPEN"], {"min_legibility": 0.9}, 0.9, True),
        (["OPEN"], ["OPEN"], {"min_legibility": 0.91}, 0.9, False),
        (["TAXI"], ["TAXI"], {}, 0.2, True),
        (["TAXI"], ["TAXI"], {"min_legibility": 0.5}, 0.2, False),
        (["OPEN", "X"], ["OPEN"], {"min_legibility": 0.5, "count_extra": False}, 0.9, True),
        (["OPEN"], ["OPEN", "TEA"], {"threshold": 0.5}, 0.0, True),
        (["OPEN"], ["OPEN", "TEA"], {"threshold": 0.5, "min_legibility": 0.5}, 0.0, False),
        (["OPEM"], ["OPEN"], {"min_legibility": 0.5}, 0.9, False),
        ([], [], {"min_legibility": 1.0}, 1.0, True),
    ],
)
def test_legibility_is_the_weakest_characters_of_the_texts(read, texts, how, legibility, passed):
    verdict = measured_verdict(*read, texts=texts, **how)
    assert (verdict.legibility, verdict.passed) == (legibility, passed)


def test_report_json_and_frames_say_what_is_hard_to_read():
    verdict = measured(verdict_on(["TAXI"], ["TAXI"]), PICTURE, measure, 0.5)
    assert verdict.report().splitlines() == [
        "failed: score 1.000, 1 of 1 texts right, legibility 0.20",
        '"TAXI" is hard to read at "X" (region 1), legibility 0.20',
    ]
    details = json.loads(json.dumps(verdict.as_dict()))
    assert (details["score"], details["legibility"], details["min_legibility"]) == (1.0, 0.2, 0.5)
    assert (details["texts"][0]["legibility"], details["texts"][0]["weakest"]) == (0.2, "X")
    assert (annotate(PICTURE, verdict)[20, 20:38] == WRONG).all()
    assert verdict_on(["OPEN"], ["OPEN"]).as_dict()["legibility"] is None, "it was not measured"


def test_of_equally_right_pictures_the_more_legible_ranks_first():
    reads = (("TAXI",), ("T AX",), ("OPEN",), ("OPEN",))
    verdicts = [measured_verdict(*read, texts=[read[0]]) for read in reads]
    verdicts[1] = measured_verdict("OPEM")
    assert ranking(verdicts) == [2, 3, 0, 1]


@pytest.fixture(scope="module")
def reader():
    return RapidReader()


@pytest.mark.parametrize("text", ["70 % OFF", "轻记账", "I can't even", "GREEN LIFE", "夜市", "SUMMER BEATS"])
def test_texts_of_a_users_report_pass_where_they_are_right_alone(reader, text):
    ((run, face),) = Fonts().runs(text)
    image = Image.new("RGB", (480, 120), (250, 240, 220))
    ImageDraw.Draw(image).text((30, 30), run, (20, 30, 90), face.at(48))
    right = verify(np.asarray(image), [text], reader)
    assert right.passed
    wrong = text[:-1] + ("了" if text[-1] > "z" else "X")
    verdict = judge(right.regions, [wrong], Rules(), 1.0, True)
    assert (verdict.passed, verdict.matches[0].errors) == (False, 1)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ("OPEN\n\n 24H \r\n", ["OPEN", "24H"]),
        ('["OPEN", "two\\nlines", " "]', ["OPEN", "two\nlines"]),
        ("[SALE]\nnow", ["[SALE]", "now"]),
        ("[1, 2]", ["[1, 2]"]),
        ('["a"', ['["a"']),
        ("[" * 100_000, ["[" * 100_000]),
        ("", []),
        (" \n\t", []),
        ("[]", []),
    ],
)
def test_expected_texts(texts, expected):
    assert expected_texts(texts) == expected


def test_frames_are_drawn_in_the_verdicts_colour():
    picture = annotate(PICTURE, verdict_on(["OPEN"], ["OPEN"]))
    assert picture.shape == PICTURE.shape
    assert (picture[20, 20:38] == RIGHT).all()
    assert (PICTURE == 128).all(), "the picture itself was drawn on"
    assert (picture[40:] == 128).all()


@given(st.lists(st.tuples(st.floats(-50, 200), st.floats(-50, 200)), min_size=4, max_size=4))
def test_frames_anywhere_do_no_harm(box):
    verdict = judge([Region("x", tuple(box), 1.0)], ["x"], Rules(), 1.0, True)
    assert annotate(PICTURE, verdict).shape == PICTURE.shape


def test_ranking_puts_what_passed_first_and_is_stable():
    verdicts = [verdict_on([read], ["OPEN"]) for read in ("OPEM", "OPEN", "XXXX", "OPEM", "OPEN")]
    assert ranking(verdicts) == [1, 4, 0, 3, 2]
    assert ranking([]) == []


@pytest.mark.parametrize("count", [1, 5, 6])
def test_a_ranking_shows_every_picture_best_first(count):
    reads = ["OPEM", "OPEN", "XXXX", "OPEM", "OPEN", "O"][:count]
    pictures = [np.full((50 + 10 * i, 90, 3), 40 * i + 10, np.uint8) for i in range(count)]
    verdicts = [verdict_on([read], ["OPEN"]) for read in reads]
    sheet = draw_ranking(pictures, verdicts)
    height = 50 + 10 * (count - 1)
    columns, rows = min(count, 5), -(-count // 5)
    assert sheet.shape[1] == columns * 98 + 8
    for rank, i in enumerate(ranking(verdicts)):
        x = 8 + rank % 5 * 98
        seen = sheet[:, x : x + 90][sheet.shape[0] // rows * (rank // 5) :]
        assert (seen == 40 * i + 10).all(-1).sum() == 90 * (50 + 10 * i)
        strip = (seen[8 + height :] == (RIGHT if verdicts[i].passed else WRONG)).all(-1)
        assert strip.sum() > 500


def test_a_ranking_of_very_many_pictures_is_made_smaller():
    picture = np.zeros((400, 400, 3), np.uint8)
    verdicts = [verdict_on(["OPEN"], ["OPEN"])] * 700
    assert 380 * 5 > draw_ranking([picture] * 700, verdicts).shape[1] > 300 * 5
