"""Type set into pictures: read back as typed, where it was put, and nothing else is touched."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ovis_core.drawing.fonts import Fonts
from ovis_core.drawing.ground import ground_behind, ink_of, readable
from ovis_core.drawing.placing import Place, homography, read_warp
from ovis_core.drawing.setting import HAN, Type, Typesetter
from ovis_core.drawing.typeset import Layer, Look, Spot, grown, typeset
from ovis_core.evaluation.text_metrics import Rules
from ovis_core.evaluation.verify import verify

FONTS = Fonts()
BOLD, SERIF = FONTS.named("bold"), FONTS.named("serif")
PLACE = Place(240, 160, 400, 200)
GROUND = (40, 80, 150)
PLAIN = Look(Type(BOLD))
needs_chinese = pytest.mark.skipif(
    not any(HAN.match("夜") and FONTS.has(face, "夜") for face in BOLD),
    reason="needs Debian's fonts-noto-cjk",
)
EXAMPLES = {  # of the report that asked for them, each set another way
    "70 % OFF": (
        Look(Type(BOLD, outline=0.06), (255, 220, 40), shadow_distance=0.06, shadow_blur=0.04),
        PLACE,
    ),
    "轻记账": (PLAIN, PLACE),
    "I can't even": (Look(Type(SERIF)), replace(PLACE, height=120, angle=15)),
    "GREEN LIFE": (
        Look(Type(BOLD, tracking=0.05)),
        replace(PLACE, warp=read_warp("0 0 100 20 100 80 0 100")),
    ),
    "夜市": (Look(Type(BOLD, is_vertical=None)), replace(PLACE, width=120, height=300)),
    "SUMMER BEATS": (Look(Type(BOLD, size=48, align="right", vertical_align="bottom"), None), PLACE),
}


@pytest.fixture(scope="module")
def reader():
    if not all(importlib.util.find_spec(name) for name in ("rapidocr", "onnxruntime")):
        pytest.skip("not tested, reading pictures needs: pip install rapidocr onnxruntime")
    from ovis_core.evaluation.ocr import RapidReader

    return RapidReader()


def flat(colour=GROUND, size=(480, 320)) -> np.ndarray:
    return np.full((size[1], size[0], 3), colour, np.uint8)


def laid(picture: np.ndarray, layer: Layer) -> np.ndarray:
    mixed = picture * (1 - layer.alpha[..., None]) + layer.colours * 255
    return mixed.round().clip(0, 255).astype(np.uint8)


def ink(layer: Layer) -> tuple[int, int, int, int]:
    return Image.fromarray(layer.alpha > 0.5).getbbox()


@needs_chinese
@pytest.mark.parametrize("text", EXAMPLES)
def test_a_set_text_is_read_as_typed(reader, text):
    look, place = EXAMPLES[text]
    layer = typeset(flat(), [Spot(text, place)], look, FONTS)
    verdict = verify(laid(flat(), layer), [text], reader, Rules(case_sensitive=True))
    assert verdict.is_exact, verdict.report()
    assert layer.alpha.min() == 0
    assert layer.alpha.max() == 1
    if text == "夜市":
        left, top, right, bottom = ink(layer)
        assert bottom - top > 1.8 * (right - left), "the column is not vertical"


def test_type_fills_its_box_and_stands_where_it_was_aligned():
    left, top, right, bottom = ink(typeset(flat(), [Spot("WIDE WORD", PLACE)], PLAIN, FONTS))
    assert 40 <= left <= right <= 440
    assert 60 <= top <= bottom <= 260
    assert max((right - left) / 400, (bottom - top) / 200) > 0.95
    corner = Look(Type(BOLD, size=20, align="right", vertical_align="bottom"))
    left, top, right, bottom = ink(typeset(flat(), [Spot("A\nlonger", PLACE)], corner, FONTS))
    assert (right, bottom) == pytest.approx((440, 260), abs=2)
    assert left > 300


@needs_chinese
def test_lines_break_where_a_reader_expects_it():
    def lines(text: str, width: int, height: int, **kind) -> tuple[str, ...]:
        return Typesetter(FONTS, Type(BOLD, **kind)).lay(text, width, height).lines

    assert lines("SUMMER BEATS", 300, 200) == ("SUMMER", "BEATS")
    assert lines("SUMMER BEATS", 800, 60) == ("SUMMER BEATS",)
    assert lines("轻记账", 200, 200) == ("轻记账",), "a word of Chinese is not broken for a little more size"
    body = lines("这是一段比较长的正文，用来测试换行。标点不在行首。", 200, 200)
    assert len(body) > 2
    assert not any(line[0] in "，。" for line in body)
    assert lines("one two three four five", 110, 300, size=20) == ("one two", "three", "four five")


@needs_chinese
def test_columns_run_from_right_to_left_with_their_own_marks():
    setter = Typesetter(FONTS, Type(BOLD, is_vertical=True))
    laid = setter.lay("双11，SALE\n夜", 300, 300)
    assert laid.lines == ("双11，SALE", "夜")
    placed = [(glyphs, x) for glyphs, x, _ in setter._placed(laid, 300, 300)]
    assert [glyphs.text for glyphs, _ in placed] == ["双", "11", "︐", "SALE", "夜"]
    assert [glyphs.is_turned for glyphs, _ in placed] == [False, False, False, True, False]
    assert placed[-1][1] < placed[0][1]


@needs_chinese
def test_other_fonts_help_out_and_a_missing_glyph_is_one_sentence():
    latin = BOLD[:1]
    runs = FONTS.runs("夜市 SALE", latin)
    assert {face in latin for _, face in runs} == {True, False}
    assert FONTS.runs("SALE", latin) == [("SALE", latin[0])]
    with pytest.raises(
        ValueError, match=r"^no font of this system has \U000e01f0 \(.*\); install one, as [^.]*"
    ):
        typeset(flat(), [Spot("A\U000e01f0", PLACE)], PLAIN, FONTS)
    with pytest.raises(
        ValueError, match=r"there is no font 'gone.ttf' that can be opened; choose one of sans"
    ):
        FONTS.named("gone.ttf")


def test_what_does_not_fit_or_says_nothing_is_an_error():
    with pytest.raises(ValueError, match=r'"SUMMER BEATS" does not fit its box of 40x20 .* use size 0'):
        Typesetter(FONTS, Type(BOLD, size=40)).lay("SUMMER BEATS", 40, 20)
    with pytest.raises(ValueError, match="use a larger box"):
        Typesetter(FONTS, Type(BOLD)).lay("SUMMER BEATS", 10, 4)
    with pytest.raises(ValueError, match="there is no text to set"):
        Typesetter(FONTS, Type(BOLD)).lay(" \n", 100, 100)


def test_corners_go_where_they_are_sent():
    place = Place(100, 50, 200, 100, warp=read_warp("10 0; 90 20; 100 100; 0 80"))
    assert np.allclose(place.corners, ((20, 0), (180, 20), (200, 100), (0, 80)))
    a, b, c, d, e, f, g, h = homography(((0, 0), (1, 0), (1, 1), (0, 1)), place.corners)
    for (x, y), corner in zip(((0, 0), (1, 0), (1, 1), (0, 1)), place.corners, strict=True):
        w = g * x + h * y + 1
        assert ((a * x + b * y + c) / w, (d * x + e * y + f) / w) == pytest.approx(corner)
    assert read_warp(" ") == ()
    for folded in ("0 0 100 0 0 100 100 100", "1 2 3", "a b c d e f g h"):
        with pytest.raises(ValueError, match="the corners"):
            read_warp(folded)


def test_wrong_lettering_is_covered_and_gives_its_colour():
    """On a ground that runs from one colour to another, as a sky does."""
    across = np.linspace(0, 1, 480)[None, :, None]
    picture = (across * (200, 60, 20) + (1 - across) * (20, 30, 120) + np.zeros((320, 1, 1))).astype(np.uint8)
    old = typeset(picture, [Spot("WRONG", PLACE)], Look(Type(BOLD), (255, 240, 60)), FONTS)
    drawn = laid(picture, old)
    left, top, right, bottom = ink(old)
    box = ((left, top), (right, top), (right, bottom), (left, bottom))
    layer = typeset(drawn, [], PLAIN, FONTS, covered=[box])
    assert np.abs(laid(drawn, layer).astype(int) - picture).max() <= 12

    new = laid(
        drawn, typeset(drawn, [Spot("RIGHT", PLACE, ink=(box,))], Look(Type(BOLD), None), FONTS, [box])
    )
    hidden = np.zeros((320, 480), bool)
    hidden[top - 9 : bottom + 9, left - 9 : right + 9] = True
    assert ink_of(new, ground_behind(new, hidden), hidden) == pytest.approx((255, 240, 60), abs=3)
    assert np.array_equal(new[:20], picture[:20])


def test_a_colour_that_would_not_be_read_is_black_or_white():
    ground, where = flat(), np.ones((320, 480), bool)
    assert readable((50, 90, 160), ground, where) == (255, 255, 255)
    assert readable(None, flat((240, 240, 200)), where) == (0, 0, 0)
    assert readable((255, 220, 40), ground, where) == (255, 220, 40)
    assert ink_of(ground, ground.astype(np.float32), where) is None


def test_text_widens_within_its_reach_alone():
    spot = Spot("A MUCH LONGER TEXT", Place(100, 100, 60, 30), reach=(80, 300))
    left, _, right, _ = ink(typeset(flat(), [spot], PLAIN, FONTS))
    assert left >= 19
    assert right <= 401
    assert right - left > 200
    old = ((70, 85), (130, 85), (130, 115), (70, 115))
    layer = typeset(flat(), [spot], PLAIN, FONTS, covered=[old])
    assert layer.alpha[100, left:right].min() == 1, "a scrap beside the old letters would show"
    stays = ((70, 117), (130, 117), (130, 140), (70, 140))
    layer = typeset(flat(), [], PLAIN, FONTS, covered=[old], others=[stays])
    assert layer.alpha[117:140, 70:130].max() == 0
    assert layer.alpha[115, 100] == 1
    wide, tall = np.ptp(np.array(grown(((0, 0), (100, 0), (100, 20), (0, 20)))), axis=0)
    assert (wide, tall) == (110, 30)
