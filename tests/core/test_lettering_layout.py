"""Boxes -> placement sentences and reading order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovis_core.lettering.layout import Box, place, read_boxes, reading_order
from ovis_core.lettering.quotes import quoted_texts


def element(bbox, text="A", kind="text", **more) -> dict:
    return {"type": kind, "bbox": bbox, "text": text, "desc": "", **more}


ELEMENTS = [
    element([850, 100, 900, 900], "Oslo, 5 May"),
    element([50, 50, 350, 950], "SUMMER", color_palette=["#F01010"]),
    {"type": "obj", "bbox": [400, 700, 800, 1000], "desc": "a sailing boat"},
    element([450, 50, 520, 300], "$9.99", desc="in a yellow star"),
]


def test_english():
    composed = place(read_boxes(ELEMENTS), "the sea", "bold serif", "en")
    assert composed.texts == ("SUMMER", "$9.99", "Oslo, 5 May")
    assert composed.prompt == (
        "Lettering: bold serif. Text from top to bottom: "
        '"SUMMER" in red very large letters at the top centre, across the full width, '
        "“$9.99” in medium-sized letters at the middle left, in a yellow star, "
        '"Oslo, 5 May" in medium-sized letters at the bottom centre, across the full width, '
        "a sailing boat at the middle right. Scene: the sea"
    )


def test_chinese():
    boxes = read_boxes([element([0, 400, 900, 500], "春风十里"), element([0, 700, 900, 800], "不如你")])
    composed = place(boxes, "水墨山水", "", "zh")
    assert composed.texts == ("不如你", "春风十里")
    assert composed.prompt == (
        "画面文字从上到下：画面中部右侧是大字“不如你”，竖排，画面中部中央是大字“春风十里”，竖排。画面：水墨山水"
    )


def test_reading_order_beside_each_other():
    a, b, c = Box(500, 0, 900, 100, "b"), Box(0, 40, 400, 140, "a"), Box(0, 120, 900, 220, "c")
    assert [box.text for box in reading_order([c, a, b])] == ["a", "b", "c"]


SPANS = st.tuples(st.integers(0, 900), st.integers(1, 100)).map(lambda span: (span[0], sum(span)))
BOXES = st.tuples(SPANS, SPANS).map(lambda spans: [n for pair in zip(*spans, strict=True) for n in pair])


@given(
    st.lists(
        st.tuples(BOXES, st.sampled_from(["A", '5" b', "“双11”", "{0}\n\\", "x, y"])), min_size=1, max_size=6
    )
)
def test_every_text_is_in_the_prompt_in_reading_order(given_boxes):
    boxes = read_boxes([element(bbox, text) for bbox, text in given_boxes])
    for language in ("en", "zh"):
        composed = place(boxes, language=language)
        assert quoted_texts(composed.prompt) == list(composed.texts)
        assert sorted(composed.texts) == sorted(text for _, text in given_boxes)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ("text", "must be a list of boxes, got str"),
        ([1], "must be a list of boxes"),
        ([{"type": "text", "text": "A"}], "box 1 has the bbox None"),
        ([element([0, 0, 1, 1]), element([0, 0, 2000, 1])], "box 2 has the bbox"),
        ([element([0, 0, "a", 1])], "box 1 has the bbox"),
        ([element([5, 0, 5, 10])], "has no area"),
        ([element([0, 0, 5, 10], text=5)], "not a string"),
        ([element([0, 0, 5, 10], color_palette=["red"])], "expected one like #FF8800"),
        ([element([0, 0, 5, 10], color_palette=[5])], "expected one like #FF8800"),
        ([], "no box has a text"),
        ([element([0, 0, 5, 10], text=" ")], "no box has a text"),
    ],
)
def test_wrong_boxes_are_one_sentence(elements, message):
    with pytest.raises(ValueError, match=message):
        place(read_boxes(elements))
