"""The distribution's settings: each has its effect, and nonsense is refused."""

import dataclasses
import json

import pytest

from ovis_core.drawing.contrast import contrast
from ovis_core.drawing.fonts import STYLES
from ovis_core.typography.lexicon import CHARACTERS
from ovis_core.typography.palette import COLOURS
from ovis_core.typography.rendering import CHINESE_ZOOM, Renderer
from ovis_core.typography.settings import Typography
from ovis_core.typography.wording import words_of


def test_shares_are_kept(draw):
    examples = draw(1500, languages={"en": 3, "zh": 1}, kinds={"word": 0.5, "letters": 0.5}, short_captions=1)
    assert 0.71 < sum(e.language == "en" for e in examples) / 1500 < 0.79
    assert 0.45 < sum(e.kind == "word" for e in examples) / 1500 < 0.55
    chinese = ["“" in e.caption for e in examples]
    crossed = sum(c != (e.language == "zh") for c, e in zip(chinese, examples, strict=True)) / 1500
    assert 0.16 < crossed < 0.24


# Settings

LETTERS = {"languages": {"en": 1}, "kinds": {"letters": 1}}
EFFECTS = {
    "sizes": ({"sizes": ((96, 64),)}, lambda e: e.image.size == (96, 64)),
    "languages": ({"languages": {"zh": 1}}, lambda e: e.language == "zh"),
    "kinds": ({"kinds": {"character": 1}}, lambda e: len(e.texts[0]) == 1),
    "lengths": ({"lengths": (2, 3), "punctuation": 0} | LETTERS, lambda e: len(e.texts[0]) <= 3),
    "chinese_lengths": (
        {"chinese_lengths": (4, 4), "kinds": {"word": 1}, "languages": {"zh": 1}},
        lambda e: len(e.texts[0].strip("！？")) == 4,
    ),
    "phrase_words": (
        {"phrase_words": (3, 3), "kinds": {"phrase": 1}, "languages": {"en": 1}},
        lambda e: len(words_of(" ".join(e.texts))) == 3,
    ),
    "num_characters": (
        {"num_characters": 30, "kinds": {"letters": 1}, "languages": {"zh": 1}},
        lambda e: set(e.texts[0].strip("！？")) <= set(CHARACTERS[:30]),
    ),
    "cases": ({"cases": {"lower": 1}}, lambda e: e.kind == "number" or e.texts[0] == e.texts[0].lower()),
    "digits": ({"digits": 1} | LETTERS, lambda e: any(c.isdigit() for c in e.texts[0])),
    "punctuation": (
        {"punctuation": 1, "kinds": {"word": 1, "phrase": 1}},
        lambda e: e.texts[-1][-1] in "!?.！？",
    ),
    "num_colours": (
        {"num_colours": 3, "backgrounds": {"plain": 1}},
        lambda e: {e.text_colour, e.background_colour} <= {"white", "black", "red"},
    ),
    "min_contrast": (
        {"min_contrast": 7},
        lambda e: contrast(COLOURS[e.text_colour].rgb, COLOURS[e.background_colour].rgb) >= 7,
    ),
    "backgrounds": ({"backgrounds": {"frame": 1}}, lambda e: e.decoration and e.decoration[0] == "frame"),
    "positions": ({"positions": {"top left": 1}}, lambda e: e.position == "top left"),
    "scales": ({"scales": {"small": 1}}, lambda e: e.scale == "small"),
    "min_font_size": (
        {"min_font_size": 24},
        lambda e: e.font_size >= 24 * (1, CHINESE_ZOOM)[e.language == "zh"],
    ),
    "grid_sizes": (
        {"grid_sizes": {"en": 14, "zh": 18}, "kinds": {"letters": 1}},
        lambda e: e.font_size == {"en": 14, "zh": 18}[e.language],
    ),
    "styles": ({"styles": {"serif": 1}}, lambda e: e.style == "serif"),
    "chinese_styles": (
        {"styles": {"bold": 1}, "chinese_styles": {"serif": 1}},
        lambda e: e.style == {"en": "bold", "zh": "serif"}[e.language],
    ),
    "tilted": ({"tilted": 1}, lambda e: abs(e.angle) >= 4),
    "max_tilt": ({"tilted": 1, "max_tilt": 5}, lambda e: 4 <= abs(e.angle) <= 5),
    "short_captions": (
        {"short_captions": 1},
        lambda e: STYLES[e.style] not in e.caption and "体" not in e.caption,
    ),
    "short_forms": (
        {"short_captions": 1, "short_forms": 1, "crossed_captions": 0},
        lambda e: e.caption[0] in '"“',
    ),
    "crossed_captions": ({"crossed_captions": 0}, lambda e: ("“" in e.caption) == (e.language == "zh")),
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Typography)])
def test_every_setting_has_an_effect(name, draw, fonts):
    if name == "max_faces":  # an example does not tell its face
        two_faces = {key: faces * 2 for key, faces in fonts.items()}
        for number in (1, 2):
            kept = Renderer(Typography(max_faces=number), two_faces).faces
            assert {len(faces) for faces in kept.values()} == {number}
        return
    settings, holds = EFFECTS[name]
    assert all(map(holds, draw(60, **settings)))
    others = {key: value for key, value in settings.items() if key not in (name, "sizes")}
    assert not all(map(holds, draw(60, **others)))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"sizes": ()}, r"sizes is \(\); at least one"),
        ({"sizes": ((16, 128),)}, "sizes holds .16, 128.; a width and a height from 32"),
        ({"languages": {"fr": 1}}, "languages has 'fr'; there are: en, zh"),
        ({"languages": {"en": 0}}, "languages has no share above 0"),
        ({"kinds": {"word": -1}}, "kinds gives word the share -1"),
        ({"kinds": "word"}, "kinds is 'word'; a share for each"),
        ({"lengths": (5, 3)}, r"lengths is \(5, 3\); two numbers from 2 to 12"),
        ({"digits": 2}, "digits is 2; from 0 to 1"),
        ({"num_colours": 2.5}, "num_colours is 2.5; from 2"),
        ({"styles": {"mono": 1}}, "no Chinese font is monospace"),
        ({"chinese_styles": {"thin": 1}}, "chinese_styles has 'thin'; there are: sans, bold"),
        ({"grid_sizes": {"fr": 20}}, "grid_sizes gives 'fr' 20; en or zh and 6 to 1000"),
        ({"max_faces": 0}, "max_faces is 0; from 1 to 8"),
    ],
)
def test_impossible_settings_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Typography(**settings)


def test_settings_that_leave_nothing_to_draw_are_refused(draw):
    with pytest.raises(ValueError, match="characters only, which are never held out"):
        draw(1, held_out=True, kinds={"character": 1})
    with pytest.raises(ValueError, match="no en word of the lengths is for training"):
        draw(1, lengths=(12, 12), languages={"en": 1})
    with pytest.raises(ValueError, match="the first 2 colours have no two-tone background"):
        draw(1, num_colours=2)
    with pytest.raises(ValueError, match="no zh phrase of 200 fits pictures of 32 pixels"):
        draw(1, sizes=((32, 32),), languages={"zh": 1}, kinds={"phrase": 1})


def test_settings_are_read_from_json_values():
    settings = Typography.from_dict(json.loads('{"sizes": [[64, 64]], "lengths": [2, 4]}'))
    assert settings == Typography(sizes=((64, 64),), lengths=(2, 4))
    assert Typography.from_dict(json.loads(json.dumps(dataclasses.asdict(settings)))) == settings
    with pytest.raises(ValueError, match="there is no setting 'colour'; there are: sizes, languages"):
        Typography.from_dict({"colour": 3})
    with pytest.raises(ValueError, match="got list"):
        Typography.from_dict([])


# Fonts
