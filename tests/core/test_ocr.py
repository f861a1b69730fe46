"""Reading at several sizes with a reader of the test's own; rapidocr itself on pictures of known writing."""

import builtins

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from ovis_core.evaluation.ocr import RapidReader, Region, looks, reading_order


def region(text, left, top, right, bottom):
    return Region(text, ((left, top), (right, top), (right, bottom), (left, bottom)), 1.0)


def whole(image):
    """A reader that finds one region, as large as the picture."""
    height, width = image.shape[:2]
    return [region(f"{width}x{height}", 0, 0, width, height)]


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((1024, 1024), ["768x768", "256x256", "1536x1536"]),
        ((512, 256), ["512x256", "256x128", "1024x512"]),
        ((128, 128), ["384x384", "256x256", "768x768"]),
        ((100, 4000), ["19x768", "6x256", "38x1536"]),
        ((1, 1), ["384x384", "256x256", "768x768"]),
        ((2, 80), ["10x384", "6x256", "19x768"]),
    ],
)
def test_a_picture_is_looked_at_in_three_sizes(size, sizes):
    seen = list(looks(np.zeros((size[1], size[0], 3), np.uint8), whole))
    assert [regions[0].text for regions in seen] == sizes
    for regions in seen:
        assert regions[0].corners[2] == pytest.approx(size)


def test_a_look_is_taken_when_it_is_asked_for():
    calls = []
    next(looks(np.zeros((64, 64, 3), np.uint8), lambda image: calls.append(1) or []))
    assert len(calls) == 1


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (1, 100, 3), (100, 1, 3)])
def test_no_room_for_writing_is_nothing_read(shape):
    assert list(looks(np.zeros(shape, np.uint8), whole)) == [[]]


def test_reading_order_is_rows_from_the_left():
    boxes = [(0, 0, 50, 30), (60, 8, 90, 40), (5, 35, 40, 60), (45, 44, 80, 70), (0, 90, 9, 99)]
    regions = [region(name, *box) for name, box in zip("abcde", boxes, strict=True)]
    for order in ([4, 3, 2, 1, 0], [1, 3, 0, 2, 4]):
        assert "".join(r.text for r in reading_order([regions[i] for i in order])) == "abcde"


@given(st.lists(st.tuples(*[st.floats(-1e4, 1e4)] * 4), max_size=8))
def test_reading_order_loses_nothing(boxes):
    regions = [region(str(i), *box) for i, box in enumerate(boxes)]
    assert sorted(reading_order(regions), key=lambda r: r.text) == regions


@pytest.fixture(scope="module")
def reader():
    return RapidReader()


def test_rapidocr_reads_known_writing_and_where_it_is(reader):
    image = Image.new("RGB", (400, 200), "white")
    draw = ImageDraw.Draw(image)
    draw.text((40, 20), "Coffee", fill="black", font=ImageFont.load_default(50))
    draw.text((200, 120), "50% OFF", fill=(200, 0, 0), font=ImageFont.load_default(40))
    (first, second) = next(looks(np.asarray(image), reader))
    assert (first.text, second.text.replace(" ", "")) == ("Coffee", "50%OFF")
    assert (first.left, first.top) == pytest.approx((40, 30), abs=15)
    assert (second.left, second.bottom) == pytest.approx((200, 160), abs=15)
    assert 0.8 < first.score <= 1


def test_rapidocr_sees_colours_the_right_way_round(reader):
    """Blue on red has the brightness of red on blue; the reader itself is handed RGB and must pass on BGR."""
    seen = []

    class Engine:
        def __call__(self, image):
            seen.append(image[0, 0].tolist())
            return reader.engine(image)

    copy = RapidReader.__new__(RapidReader)
    copy.engine = Engine()
    assert copy(np.full((64, 64, 3), (250, 100, 5), np.uint8)) == []
    assert seen == [[5, 100, 250]]


@pytest.mark.parametrize("shape", [(1, 1), (75, 3000), (3000, 75), (1, 41)])
def test_rapidocr_takes_any_picture(reader, shape):
    for regions in looks(np.full((*shape, 3), 255, np.uint8), reader):
        assert regions == []


@pytest.mark.parametrize("package", ["rapidocr", "onnxruntime"])
def test_without_the_package_one_sentence_says_what_to_install(monkeypatch, package):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=rf"{package} is missing.*pip install rapidocr onnxruntime"):
        RapidReader()
