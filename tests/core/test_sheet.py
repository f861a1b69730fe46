"""Sheets, their shapes, and fonts found by the characters that they have."""

import numpy as np
import pytest
import tiny_model  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ovis_core.drawing import sheet as module
from ovis_core.drawing.fonts import Fonts
from ovis_core.drawing.sheet import Letterer, Look, draw_sheet, grid_shape

FONTS = Fonts()
RED = (255, 0, 0)


def pictures(*sizes: tuple[int, int], color=RED) -> list[Image.Image]:
    return [Image.new("RGB", size, color) for size in sizes]


def pixels(sheet: Image.Image, color) -> int:
    return int((np.asarray(sheet) == color).all(-1).sum())


def shape_of(pictures, columns, labels, across, down):
    counts = {"num_labels": labels, "num_column_labels": across, "num_row_labels": down}
    return grid_shape(pictures, columns, **counts)


@given(st.integers(1, 60), st.integers(0, 12))
def test_a_shape_holds_all_pictures_without_an_empty_row(count, columns):
    width, height = grid_shape(count, columns)
    assert width * height >= count > width * (height - 1)
    if columns:
        assert width == columns


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ((6, 0, 6, 3, 2), (3, 2)),
        ((6, 0, 0, 0, 2), (3, 2)),
        ((5, 2, 0, 0, 3), (2, 3)),
        ((1, 0, 1, 0, 0), (1, 1)),
        ((10, 0, 0, 0, 0), (4, 3)),
    ],
)
def test_shapes(arguments, shape):
    assert shape_of(*arguments) == shape


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 0, 0, 0, 0), "there are no pictures"),
        ((3, 0, 2, 0, 0), "there are 2 labels for 3 pictures"),
        ((6, 2, 0, 3, 0), "there are 3 column labels for 2 columns"),
        ((6, 3, 0, 0, 3), r"there are 3 row labels for 2 rows \(6 pictures in 3 columns\)"),
    ],
)
def test_numbers_that_do_not_agree_are_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        shape_of(*arguments)


def test_every_picture_is_there_whole():
    sheet = draw_sheet(pictures((40, 20), (10, 30), (40, 40)), columns=2)
    assert pixels(sheet, RED) == 40 * 20 + 10 * 30 + 40 * 40
    assert sheet.size[0] < 120


def test_large_pictures_are_made_smaller_and_small_ones_left():
    sheet = draw_sheet(pictures((400, 200), (20, 20)), look=Look(cell_size=100))
    assert pixels(sheet, RED) == 100 * 50 + 20 * 20


def test_a_label_stands_below_its_picture():
    without = draw_sheet(pictures((100, 100)))
    sheet = draw_sheet(pictures((100, 100)), ["SALE"])
    assert sheet.size[0] == without.size[0]
    ink = np.argwhere((np.asarray(sheet) < 128).all(-1))
    red = np.argwhere((np.asarray(sheet) == RED).all(-1))
    assert len(ink) > 20
    assert ink[:, 0].min() > red[:, 0].max()
    assert red[:, 1].min() <= ink[:, 1].min() <= ink[:, 1].max() <= red[:, 1].max()


def test_a_label_may_stand_on_a_strip_of_a_colour():
    green, blue, dark = (0, 160, 60), (0, 0, 255), (32, 32, 32)
    look = Look(paper=dark, strips=[green, blue])
    sheet = np.asarray(draw_sheet(pictures((100, 100), (80, 80)), ["right", "wrong"], columns=1, look=look))
    assert (sheet[0] == dark).all()
    for strip, picture in ((green, 0), (blue, 1)):
        rows, columns = np.nonzero((sheet == strip).all(-1))
        assert columns.max() - columns.min() == 99
        assert (sheet[rows.min() - 51 - 10 * picture, 50] == RED).all()
        label = sheet[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (label > 200).all(-1).sum() > 20


def test_column_labels_stand_above_and_row_labels_on_the_left():
    sheet = np.asarray(
        draw_sheet(pictures(*[(64, 64)] * 4), column_labels=["a", "b"], row_labels=["one", "two"])
    )
    red = np.argwhere((sheet == RED).all(-1))
    ink = np.argwhere((sheet < 128).all(-1))
    top, left = red.min(0)
    assert all(y < top or x < left for y, x in ink)
    assert any(y < top for y, x in ink)
    assert sum(x < left for y, x in ink) > 20


def test_a_long_label_is_wrapped_and_cut():
    letterer = Letterer(Fonts(), 16)
    lines = letterer.lines("a picture of a very long sentence " * 9 + "x" * 50, 100)
    assert len(lines) == module.MAX_LINES
    assert all(line.width <= 100 for line in lines)
    assert lines[-1].runs[-1][0].endswith("...")
    assert ["".join(text for text, _ in line.runs) for line in letterer.lines("SALE\ntoday only", 300)] == [
        "SALE",
        "today only",
    ]


@given(st.text("ab c", max_size=40), st.integers(10, 200))
def test_wrapping_loses_no_word(text, width):
    lines = list(Letterer(FONTS, 16)._wrap(text.strip(), width))
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_a_sheet_too_large_is_refused():
    with pytest.raises(ValueError, match="the sheet would be .* at most 100 megapixels"):
        draw_sheet(pictures((12000, 10000)), look=Look(cell_size=0))


def test_spaces_and_joiners_are_drawn_as_nothing():
    assert draw_sheet(pictures((50, 50)), ["a \t\n\u200d\ufe0f\u3000b"])
