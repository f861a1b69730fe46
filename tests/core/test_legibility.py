"""Legibility of writing that is drawn by a font and then damaged; the regions are given, nothing is read."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from ovis_core.drawing.fonts import BUILT_IN
from ovis_core.evaluation.legibility import Legibility, plain_faces
from ovis_core.evaluation.ocr import Region

PAPER, INK = (250, 240, 220), (20, 30, 90)


@pytest.fixture(scope="module")
def measure():
    return Legibility([BUILT_IN])


def written(text: str, size: int = 60) -> tuple[Image.Image, Region]:
    """A picture of one line, and the region that a reader would find."""
    font = BUILT_IN.at(size)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("RGB", (right - left + 40, bottom - top + 40), PAPER)
    ImageDraw.Draw(image).text((20 - left, 20 - top), text, INK, font)
    return image, around(image, text)


def around(image: Image.Image, text: str) -> Region:
    right, bottom = image.width - 14, image.height - 14
    return Region(text, ((14, 14), (right, 14), (right, bottom), (14, bottom)), 0.99)


def lowest(measure, image: Image.Image, region: Region) -> float:
    return min(found.legibility for found in measure(np.asarray(image), region))


@pytest.mark.parametrize("size", [14, 60, 200])
def test_sound_writing_is_legible_at_any_size(measure, size):
    found = measure(
        *(np.asarray(part) if i == 0 else part for i, part in enumerate(written("SUMMER BEATS", size)))
    )
    assert "".join(weakest.character for weakest in found) == "SUMMERBEATS"
    assert min(weakest.legibility for weakest in found) > 0.5


def test_damage_lowers_it_where_it_is(measure):
    image, region = written("OPEN")
    sound = lowest(measure, image, region)
    broken = image.copy()
    draw = ImageDraw.Draw(broken)
    middle = image.height // 2
    draw.line((20, middle - 20, 60, middle + 20), PAPER, 8)  # through the O
    found = measure(np.asarray(broken), region)
    worst = min(found, key=lambda weakest: weakest.legibility)
    assert worst.character == "O"
    assert worst.legibility < 0.7 * sound
    assert found[-1].legibility == pytest.approx(measure(np.asarray(image), region)[-1].legibility, abs=0.05)


def test_more_damage_is_less_legible(measure):
    image, region = written("OPEN")
    values = []
    for share in (0, 0.04, 0.12):
        melted = np.array(image)
        for x in range(melted.shape[1]):  # a wave that bends every upright stroke
            melted[:, x] = np.roll(melted[:, x], round(60 * share * np.sin(x / 4)), axis=0)
        values.append(lowest(measure, Image.fromarray(melted), region))
    assert values == sorted(values, reverse=True)
    assert values[2] < 0.5 * values[0]


def test_a_look_alike_is_not_what_was_read(measure):
    image, _ = written("5TOP")
    assert lowest(measure, image, around(image, "STOP")) < lowest(measure, image, around(image, "5TOP"))


def test_colours_blur_and_contrast_are_no_damage(measure):
    image, region = written("COFFEE")
    sound = lowest(measure, image, region)
    for changed in (
        Image.eval(image, lambda value: 255 - value),
        Image.blend(image, Image.new("RGB", image.size, PAPER), 0.6),
        image.filter(ImageFilter.GaussianBlur(1)),
    ):
        assert lowest(measure, changed, region) > 0.8 * sound


def test_what_no_font_has_is_left_out_and_no_ink_is_illegible(measure):
    image, region = written("AB")
    found = measure(np.asarray(image), around(image, "A\U0010fffeB 夜"))
    assert [weakest.character for weakest in found] == ["A", "B"]
    blank = Image.new("RGB", image.size, PAPER)
    assert [weakest.legibility for weakest in measure(np.asarray(blank), region)] == [0, 0]


@pytest.mark.parametrize(
    "corners", [((0, 0),) * 4, ((-9, -9), (999, -9), (999, 5), (-9, 5)), ((5, 0), (6, 0), (6, 40), (5, 40))]
)
def test_any_region_has_a_value(measure, corners):
    image, _ = written("AB")
    assert all(
        0 <= weakest.legibility <= 1 for weakest in measure(np.asarray(image), Region("AB", corners, 1.0))
    )


def test_writing_from_top_to_bottom(measure):
    image = Image.new("RGB", (80, 260), PAPER)
    for i, character in enumerate("TEA"):
        ImageDraw.Draw(image).text((20, 20 + 70 * i), character, INK, BUILT_IN.at(60))
    corners = ((10, 15), (70, 15), (70, 240), (10, 240))
    assert lowest(measure, image, Region("TEA", corners, 1.0)) > 0.4


def test_plain_faces_are_found_by_their_names(tmp_path):
    for name in ("Arial.ttf", "NotoSansCJK-Bold.ttc", "Fancy.ttf", "arial.txt"):
        (tmp_path / name).touch()
    faces = plain_faces([tmp_path])
    assert [face.path and (face.path.name, face.number) for face in faces] == [
        None,
        ("Arial.ttf", 0),
        ("NotoSansCJK-Bold.ttc", 2),
    ]
