"""What a verification found wrong, and where each text goes."""

import json

import pytest

from ovis_core.evaluation.ocr import Region
from ovis_core.evaluation.text_metrics import Rules
from ovis_core.evaluation.verify import judge
from ovis_core.evaluation.wrong import Findings, read_findings
from ovis_core.lettering.places import fill_frames, read_frames, repairs

SIZE = (400, 200)


def region(text: str, left: float, top: float, width: float = 100, height: float = 20) -> Region:
    right, bottom = left + width, top + height
    return Region(text, ((left, top), (right, top), (right, bottom), (left, bottom)), 1.0)


def found(texts: list[str], *regions: Region, **how) -> Findings:
    verdict = judge(list(regions), texts, Rules(), **{"threshold": 1.0, "count_extra": True} | how)
    (findings,) = read_findings(json.dumps([verdict.as_dict()]))
    return findings


OPEN, LATE = region("OPEN", 50, 20), region("LATX", 50, 100)


def test_only_what_is_wrong_is_set_in_place():
    findings = found(["OPEN", "LATE"], OPEN, LATE)
    assert [wrong.text for wrong in findings.wrong] == ["LATE"]
    assert findings.right == (OPEN.corners,)
    planned = repairs(findings, [], SIZE)
    (spot,) = planned.spots
    assert (spot.place.x, spot.place.y) == (100, 110)
    assert spot.place.height <= 20
    assert planned.covered == (LATE.corners,)
    assert planned.others == (OPEN.corners,)


def test_nothing_is_set_where_nothing_is_wrong():
    extra = region("xx", 0, 180)
    for findings in (
        found(["OPEN"], OPEN),
        found(["LATE"], LATE, threshold=0.5),
        found(["OPEN"], OPEN, extra, count_extra=False),
    ):
        assert not findings.wrong
        assert not findings.extra
    assert found(["OPEN"], OPEN, extra).extra == (extra.corners,), "covered where it counts"
    assert found(["OPEN", "LATE"], OPEN, LATE, extra, count_extra=False).extra == ()


def test_texts_of_one_box_are_set_together_in_their_order():
    findings = found(["LATE", "OPEN"], region("OPEN LATX", 50, 20))
    assert [(wrong.text, wrong.numbers) for wrong in findings.wrong] == [("OPEN LATE", (1, 0))]


def test_a_text_that_was_not_found_takes_its_box_or_free_space():
    findings = found(["OPEN", "$9.99"], OPEN)
    (spot,) = repairs(findings, [], SIZE).spots
    assert spot.place.y - spot.place.height / 2 >= 40, "below what is there"
    assert spot.place.y + spot.place.height / 2 <= 200
    (own,) = read_frames(
        [{"type": "text", "bbox": [500, 0, 750, 500], "text": "$9.99", "color_palette": ["#ff0000"]}], 1, SIZE
    )
    (spot,) = repairs(findings, own, SIZE).spots
    assert (spot.place.x, spot.place.y, spot.place.width, spot.place.height) == (100, 125, 200, 50)
    assert spot.colour == (255, 0, 0)
    (numbered,) = read_frames([{"x": i, "y": 90, "width": 50, "height": 20} for i in (0, 300)], 1, SIZE)
    (spot,) = repairs(findings, numbered, SIZE).spots
    assert spot.place.x == 325


def test_a_longer_text_reaches_to_its_neighbours():
    findings = found(["SUMMER BEATS", "OPEN"], region("SUMM", 150, 50), region("OPEN", 300, 50, width=80))
    (spot,) = repairs(findings, [], SIZE).spots
    left, right = spot.reach
    assert spot.place.x - left == pytest.approx(0.03 * 400)
    assert 280 < spot.place.x + right < 300


def test_a_turned_text_stays_turned():
    corners = ((50.0, 100.0), (150.0, 60.0), (157.0, 79.0), (57.0, 119.0))
    findings = found(["LATE"], Region("LATX", corners, 1.0))
    (spot,) = repairs(findings, [], SIZE).spots
    assert spot.place.angle == pytest.approx(21.8, abs=0.1)
    assert (spot.place.x, spot.place.y) == pytest.approx((103.5, 89.5), abs=0.1)


def test_boxes_take_the_texts_in_their_order():
    def texts(boxes, lines, pictures=1):
        return [[s.text for s in fill_frames(f, lines)] for f in read_frames(boxes, pictures, SIZE)]

    box = {"x": 10, "y": 10, "width": 50, "height": 20}
    own = {"type": "text", "bbox": [0, 0, 500, 500], "text": "own"}
    thing = {"type": "obj", "bbox": [0, 0, 500, 500], "desc": "a cat"}
    assert texts([box, box], ["a", "b"]) == [["a", "b"]]
    assert texts(box, ["a", "b"]) == [["a\nb"]]
    assert texts([own, thing], []) == [["own"]]
    assert texts([thing], ["a"]) == [["a"]]
    assert texts([[box], [box]], ["a"], 2) == [["a"], ["a"]]
    for boxes, lines, pictures, message in (
        ([box, box], ["a"], 1, "1 texts for 2 boxes"),
        ([[box], [box]], ["a"], 3, "boxes for 2 pictures and 3 pictures"),
        ([{**box, "width": 0}], ["a"], 1, "box 1 is"),
        ("no box", ["a"], 1, "expected x, y, width and height in pixels"),
    ):
        with pytest.raises(ValueError, match=message):
            texts(boxes, lines, pictures)


@pytest.mark.parametrize("verified", ["", "[]", "{}", '[{"texts": []}]', "[1]", '{"verdict": 3}'])
def test_anything_but_a_verification_is_refused(verified):
    with pytest.raises(ValueError, match="connect the json output of Ovis Text Verify"):
        read_findings(verified)
