"""Sheets, their shapes, and fonts found by the characters that they have."""

import numpy as np
import pytest
import tiny_model  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ovis_core.drawing import sheet as module
from ovis_core.drawing.fonts import Fonts
from ovis_core.drawing.sheet import Letterer, draw_grid, grid_shape

FONTS = Fonts()
RED = (255, 0, 0)


def pictures(*sizes: tuple[int, int], color=RED) -> list[Image.Image]:
    return [Image.new("RGB", size, color) for size in sizes]


def pixels(sheet: Image.Image, color) -> int:
    return int((np.asarray(sheet) == color).all(-1).sum())


@given(st.integers(1, 60), st.integers(0, 12))
def test_a_shape_holds_all_pictures_without_an_empty_row(count, columns):
    width, height = grid_shape(count, 0, columns, 0, 0)
    assert width * height >= count > width * (height - 1)
    if columns:
        assert width == columns


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ((6, 6, 0, 3, 2), (3, 2)),
        ((6, 0, 0, 0, 2), (3, 2)),
        ((5, 0, 2, 0, 3), (2, 3)),
        ((1, 1, 0, 0, 0), (1, 1)),
        ((10, 0, 0, 0, 0), (4, 3)),
    ],
)
def test_shapes(arguments, shape):
    assert grid_shape(*arguments) == shape


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((0, 0, 0, 0, 0), "there are no pictures"),
        ((3, 2, 0, 0, 0), "there are 2 labels for 3 pictures"),
        ((6, 0, 2, 3, 0), "there are 3 column labels for 2 columns"),
        ((6, 0, 3, 0, 3), r"there are 3 row labels for 2 rows \(6 pictures in 3 columns\)"),
    ],
)
def test_numbers_that_do_not_agree_are_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        grid_shape(*arguments)


def test_every_picture_is_there_whole():
    sheet = draw_grid(pictures((40, 20), (10, 30), (40, 40)), columns=2)
    assert pixels(sheet, RED) == 40 * 20 + 10 * 30 + 40 * 40
    assert sheet.size[0] < 120


def test_large_pictures_are_made_smaller_and_small_ones_left():
    sheet = draw_grid(pictures((400, 200), (20, 20)), cell_size=100)
    assert pixels(sheet, RED) == 100 * 50 + 20 * 20


def test_a_label_stands_below_its_picture():
    without = draw_grid(pictures((100, 100)))
    sheet = draw_grid(pictures((100, 100)), ["SALE"])
    assert sheet.size[0] == without.size[0]
    ink = np.argwhere((np.asarray(sheet) < 128).all(-1))
    red = np.argwhere((np.asarray(sheet) == RED).all(-1))
    assert len(ink) > 20
    assert ink[:, 0].min() > red[:, 0].max()
    assert red[:, 1].min() <= ink[:, 1].min() <= ink[:, 1].max() <= red[:, 1].max()


def test_column_labels_stand_above_and_row_labels_on_the_left():
    sheet = np.asarray(draw_grid(pictures(*[(64, 64)] * 4), [], 0, ["a", "b"], ["one", "two"]))
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
        draw_grid(pictures((12000, 10000)), cell_size=0)


def test_spaces_and_joiners_are_drawn_as_nothing():
    assert draw_grid(pictures((50, 50)), ["a \t\n\u200d\ufe0f\u3000b"])
