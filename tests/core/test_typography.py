import dataclasses
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import tiny_model
import torch
from PIL import Image, ImageDraw

from ovis_core.training import typography
from ovis_core.training.captions import caption_characters
from ovis_core.training.fonts import FILES, STYLES, Face, find_fonts
from ovis_core.training.layout import line_breaks
from ovis_core.training.lexicon import CHARACTERS, CHINESE_WORDS, WORDS
from ovis_core.training.palette import COLOURS, PALETTE, contrast, nearest_colour
from ovis_core.training.rendering import CHINESE_ZOOM, Renderer
from ovis_core.training.settings import Typography
from ovis_core.training.wording import Wording, is_for_training, is_held_out, parts_of, words_of

EVERYTHING = Typography(
    sizes=((128, 128), (192, 96), (96, 192)),
    backgrounds={"plain": 1, "frame": 1, "stripe": 1, "two-tone": 1},
    positions=dict.fromkeys(
        ["centre", "top", "bottom", "left", "right", "top left", "top right", "bottom left", "bottom right"],
        1,
    ),
    tilted=0.3,
    num_colours=12,
)


@pytest.fixture(scope="session")
def draw(fonts):
    def draw(count, held_out=False, seed=0, **settings):
        renderer = Renderer(Typography(**settings), fonts, held_out)
        return [renderer(seed, index) for index in range(count)]

    return draw


@pytest.fixture(scope="session")
def various(fonts):
    renderer = Renderer(EVERYTHING, fonts)
    return [renderer(3, index) for index in range(400)]


def pixels(example):
    return np.asarray(example.image).astype(int)


def differs_from(example, colour):
    """Where a picture has another colour: (H, W)."""
    return (pixels(example) != COLOURS[colour].rgb).any(-1)


def fingerprint(examples):
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.image.tobytes() + example.caption.encode())
    return digest.hexdigest()


# Reproducibility


def test_an_example_depends_on_seed_and_index_alone(fonts):
    forward, backward = Renderer(EVERYTHING, fonts), Renderer(EVERYTHING, fonts)
    a = [forward(7, i) for i in range(20)]
    b = [backward(7, i) for i in reversed(range(20))][::-1]
    assert fingerprint(a) == fingerprint(b)
    assert fingerprint(a[:10]) != fingerprint(a[10:])
    assert fingerprint(a) != fingerprint(forward(8, i) for i in range(20))
    assert {example.caption for example in a}.isdisjoint(forward(8, i).caption for i in range(20))


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_draws_the_same(fonts, hash_seed):
    path = next(iter(fonts.values()))[0].path
    code = f"""
import hashlib
from pathlib import Path
from ovis_core.training.fonts import FILES, Face
from ovis_core.training.rendering import Renderer
renderer = Renderer(fonts=dict.fromkeys(FILES, (Face(Path({str(path)!r})),)))
digest = hashlib.sha256()
for index in range(20):
    example = renderer(7, index)
    digest.update(example.image.tobytes() + example.caption.encode())
print(digest.hexdigest())
"""
    env = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tiny_model.ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    renderer = Renderer(fonts=fonts)
    assert done.stdout.strip() == fingerprint(renderer(7, index) for index in range(20))


def test_the_order_in_which_shares_are_written_down_does_not_matter(fonts):
    one = Renderer(Typography(languages={"en": 1, "zh": 2}), fonts)
    other = Renderer(Typography(languages={"zh": 2, "en": 1}), fonts)
    assert fingerprint(one(0, i) for i in range(20)) == fingerprint(other(0, i) for i in range(20))


# Captions


def test_captions_state_the_writing_in_quotes_and_the_colours(various):
    for example in various:
        text = " ".join(example.texts)
        is_chinese = "“" in example.caption
        assert (f"“{text}”" if is_chinese else f'"{text}"') in example.caption
        rest = example.caption.replace(text, "", 1)
        stated = [example.text_colour, example.background_colour]
        stated += [example.decoration[1]] if example.decoration else []
        for colour in PALETTE:
            name = colour.chinese if is_chinese else colour.name
            pattern = {"红": "(?<!粉)红"}.get(name, name if is_chinese else rf"\b{name}\b")
            assert bool(re.search(pattern, rest)) == (colour.name in stated), example.caption


def test_captions_state_style_place_size_lines_and_tilt_where_they_are_not_short(draw):
    settings = {"crossed_captions": 0, "languages": {"en": 1}, "tilted": 0.5, "kinds": {"phrase": 1}}
    for example in draw(100, short_captions=0, **settings):
        stated = example.caption.split('"')[2]
        assert f", {STYLES[example.style]}, " in stated
        assert ("bold" in stated) == (example.style == "bold")
        assert ("centred" in stated) == (example.position == "centre")
        assert ("on the" in stated) == (example.position in ("left", "right"))
        assert ("on two lines" in stated) == (len(example.texts) == 2)
        assert ("tilted" in stated) == (example.angle != 0)
        assert ("small letters" in stated) == (example.scale == "small")


def test_short_captions_are_short(draw):
    plain = {"kinds": {"word": 1}, "backgrounds": {"plain": 1}}
    lengths = [len(e.caption) for e in draw(300, short_captions=1, **plain)]
    assert max(lengths) <= 80
    full = [len(e.caption) for e in draw(300, short_captions=0, **plain)]
    assert sum(lengths) < 0.7 * sum(full)


def test_large_writing_is_larger_than_small_writing(draw):
    examples = draw(300, languages={"en": 1}, kinds={"word": 1})
    sizes = {scale: [e.font_size for e in examples if e.scale == scale] for scale in ("large", None, "small")}
    assert min(sizes["large"]) > max(sizes[None]) >= min(sizes[None]) > max(sizes["small"])


def test_a_tokenizer_can_know_every_character_of_a_caption(various):
    characters = set(caption_characters())
    assert all(c.isascii() or c in characters for example in various for c in example.caption)
    assert not any(c.isascii() for c in characters)
    assert len(characters) == len(caption_characters())


# Pixels


def test_writing_has_the_stated_colour_on_the_stated_background(draw):
    for example in draw(200, backgrounds={"plain": 1}, num_colours=12):
        outside = np.ones((128, 128), bool)
        for left, top, right, bottom in example.boxes:
            outside[top:bottom, left:right] = False
            ink = ~differs_from(example, example.text_colour)[top:bottom, left:right]
            assert ink.sum() > 3, example.caption
        assert not differs_from(example, example.background_colour)[outside].any()
        inside = pixels(example)[~outside]
        assert nearest_colour(tuple(np.median(pixels(example)[outside], 0))).name == example.background_colour
        assert (inside != COLOURS[example.background_colour].rgb).any()


def test_decorations_have_the_stated_colours_in_the_stated_places(various):
    where = {
        "top stripe": (0.5, 0.05),
        "bottom stripe": (0.5, 0.95),
        "bottom half": (0.02, 0.98),
        "right half": (0.98, 0.02),
    }
    seen = Counter()
    for example in various:
        width, height = example.image.size
        name, colour = example.decoration or ("plain", example.background_colour)
        x, y = where.get(name, (0, 0))
        at = example.image.getpixel((int(x * width), int(y * height)))
        assert nearest_colour(at).name == (example.background_colour if name == "frame" else colour)
        if name == "frame":
            assert example.image.getpixel((width // 2, 5)) == COLOURS[colour].rgb
        seen[name] += 1
    assert len(seen) == 6
    assert min(seen.values()) > 20


def test_writing_contrasts_with_all_that_it_lies_on(various):
    for example in various:
        ink = COLOURS[example.text_colour].rgb
        assert contrast(ink, COLOURS[example.background_colour].rgb) >= EVERYTHING.min_contrast
        if example.decoration and "half" in example.decoration[0]:
            assert contrast(ink, COLOURS[example.decoration[1]].rgb) >= EVERYTHING.min_contrast


def test_writing_lies_whole_inside_the_picture(various, fonts):
    for example in various:
        width, height = example.image.size
        for text, (left, top, right, bottom) in zip(example.texts, example.boxes, strict=True):
            assert 5 <= left < right <= width - 5
            assert 5 <= top < bottom <= height - 5
            if not example.angle:
                face = fonts[example.language, example.style][0]
                free = Image.new("L", (400, 400))
                ImageDraw.Draw(free).text((100, 100), text, 255, face.at(example.font_size))
                ink = free.getbbox()
                assert (right - left, bottom - top) == (ink[2] - ink[0], ink[3] - ink[1])


def test_positions_are_seen(various):
    for example in various:
        width, height = example.image.size
        left, top = (min(box[i] for box in example.boxes) for i in (0, 1))
        right, bottom = (max(box[i] for box in example.boxes) for i in (2, 3))
        spare = (left - (width - right), top - (height - bottom))
        for axis, before, after, side in ((0, "left", "right", width), (1, "top", "bottom", height)):
            room = 0.12 * side
            stripe = (
                bool(example.decoration and "stripe" in example.decoration[0])
                * axis
                * 0.17
                * min(width, height)
            )
            if before in example.position:
                assert spare[axis] < -room + stripe
            elif after in example.position:
                assert spare[axis] > room - stripe
            else:
                assert abs(spare[axis]) <= 2 + stripe


def test_phrases_break_where_both_lines_are_most_alike():
    assert line_breaks("BIG SALE NOW") == [("BIG SALE NOW",), ("BIG", "SALE NOW")]
    assert line_breaks("FISH & CHIPS") == [("FISH & CHIPS",), ("FISH &", "CHIPS")]
    assert line_breaks("OPEN") == [("OPEN",)]


# Words


def test_lists_are_what_they_say():
    assert len(WORDS) == len(set(WORDS)) > 500
    assert all(word.isalpha() and word.isascii() and word.islower() and 2 <= len(word) <= 9 for word in WORDS)
    assert len(CHARACTERS) == len(set(CHARACTERS)) >= 60
    assert len(CHINESE_WORDS) == len(set(CHINESE_WORDS)) > 100
    assert all(set(word) <= set(CHARACTERS) and 2 <= len(word) <= 4 for word in CHINESE_WORDS)


@pytest.mark.parametrize("words", [WORDS, CHINESE_WORDS])
def test_one_word_in_twenty_is_held_out(words):
    assert 0.035 < sum(map(is_held_out, words)) / len(words) < 0.065


def test_what_is_held_out_does_not_change():
    assert [w for w in WORDS if is_held_out(w)][:3] == ["by", "eat", "cafe"]
    assert not is_for_training("BIG Cafe!")
    assert not any(map(is_held_out, CHARACTERS + "abc123"))


def test_words_and_parts():
    assert words_of('Big "SALE" & 50% 24H 9:30!') == ["big", "sale", "50", "24h", "9:30"]
    assert parts_of("新品上 茶") == {"新品上", "新品", "品上", "茶"}


def test_no_held_out_word_is_ever_trained():
    config = Typography(punctuation=0.3, digits=0.3)
    trained, tested = set(), set()
    for held_out, seen, draws in ((False, trained, 40_000), (True, tested, 4_000)):
        wording = Wording(config, held_out)
        rng = Random(int(held_out))
        for i in range(draws):
            text = wording.text(rng, ("en", "zh")[i % 2], wording.kind(rng))
            seen |= set(words_of(text)) if held_out else parts_of(text)
    assert len(trained) > 10_000
    assert len(tested) > 1_000
    assert not any(map(is_held_out, trained))
    assert all(map(is_held_out, tested))
    assert trained.isdisjoint(tested)


def test_held_out_pictures_show_held_out_words(draw):
    for example in draw(150, held_out=True):
        assert example.kind != "character"
        assert all(map(is_held_out, words_of(" ".join(example.texts))))
    assert all(is_for_training(" ".join(example.texts)) for example in draw(300))


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
    "styles": ({"styles": {"serif": 1}}, lambda e: e.style == "serif"),
    "tilted": ({"tilted": 1}, lambda e: abs(e.angle) >= 4),
    "max_tilt": ({"tilted": 1, "max_tilt": 5}, lambda e: 4 <= abs(e.angle) <= 5),
    "short_captions": (
        {"short_captions": 1},
        lambda e: STYLES[e.style] not in e.caption and "体" not in e.caption,
    ),
    "crossed_captions": ({"crossed_captions": 0}, lambda e: ("“" in e.caption) == (e.language == "zh")),
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Typography)])
def test_every_setting_has_an_effect(name, draw):
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


def test_missing_fonts_are_named_with_their_packages(tmp_path):
    with pytest.raises(ValueError, match="Chinese serif in .*apt-get install fonts-noto-cjk$"):
        find_fonts([("zh", "serif")], [tmp_path])
    with pytest.raises(
        ValueError, match="Latin sans-serif, .*apt-get install fonts-dejavu-core fonts-noto-cjk$"
    ):
        find_fonts(folders=[tmp_path, tmp_path / "none"])
    with pytest.raises(ValueError, match="fonts has no face for .'zh', 'bold'."):
        Renderer(fonts={key: (Face(Path("a.ttf")),) for key in FILES if key != ("zh", "bold")})


def test_fonts_are_found_in_folders_below_and_the_first_folder_wins(tmp_path):
    for folder in ("a/deep", "b"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "DejaVuSans.ttf").touch()
    found = find_fonts([("en", "sans")], [tmp_path / "a", tmp_path / "b"])
    assert found == {("en", "sans"): (Face(tmp_path / "a" / "deep" / "DejaVuSans.ttf"),)}


@pytest.mark.parametrize("key", FILES, ids=" ".join)
def test_installed_fonts_have_a_glyph_for_every_character(key):
    try:
        faces = find_fonts([key])[key]
    except ValueError as error:
        pytest.skip(f"not tested, the real glyphs need the system's fonts: {error}")
    characters = CHARACTERS + "！？¥" if key[0] == "zh" else ""
    characters += "ABCXYZabcxyz0123456789!?.&+%$#:"
    for face in faces:
        font = face.at(32)
        nothing = bytes(font.getmask("\uffff"))
        glyphs = {character: bytes(font.getmask(character)) for character in characters}
        assert [character for character, glyph in glyphs.items() if glyph == nothing or not any(glyph)] == []
        assert len(set(glyphs.values())) == len(glyphs)


# The dataset


def test_dataset_has_uint8_pictures_and_captions(fonts):
    dataset = typography.TypographyDataset(5, seed=2, fonts=fonts)
    assert len(dataset) == len([*dataset]) == 5
    assert dataset[1]["image"].dtype == torch.uint8
    example = Renderer(fonts=fonts)(2, 1)
    assert dataset[1]["caption"] == example.caption
    assert torch.equal(dataset[1]["image"], torch.tensor(pixels(example)).permute(2, 0, 1))
    assert pickle.loads(pickle.dumps(dataset))[1]["caption"] == example.caption
    with pytest.raises(IndexError):
        dataset[5]


def test_sizes_are_known_before_drawing(fonts):
    renderer = Renderer(EVERYTHING, fonts)
    assert (
        {renderer(0, index).image.size for index in range(1, 30, 3)} == {renderer.size_of(1)} == {(192, 96)}
    )


@pytest.fixture
def command(fonts, monkeypatch):
    monkeypatch.setattr("ovis_core.training.rendering.find_fonts", lambda wanted: fonts)

    def command(*arguments):
        typography.main([str(argument) for argument in arguments])

    return command


def test_command_writes_pictures_captions_and_a_contact_sheet(command, fonts, tmp_path):
    settings = tmp_path / "settings.json"
    settings.write_text('{"languages": {"zh": 1}}', "utf-8")
    out, sheet = tmp_path / "out", tmp_path / "sheet.png"
    command("--out", out, "--count", 9, "--seed", 4, "--config", settings, "--contact-sheet", sheet)
    lines = [json.loads(line) for line in (out / "captions.jsonl").read_text("utf-8").splitlines()]
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"{i:06d}.png" for i in range(9)),
        "captions.jsonl",
    ]
    renderer = Renderer(Typography(languages={"zh": 1}), fonts)
    for index, line in enumerate(lines):
        example = renderer(4, index)
        assert line["caption"] == example.caption
        assert line["texts"] == list(example.texts)
        assert (pixels(example) == np.asarray(Image.open(out / line["file_name"]))).all()
    assert Image.open(sheet).size == (8 * 132 + 4, 2 * 132 + 4)


def test_command_refuses_what_cannot_be_done(command, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    (tmp_path / "bad.json").write_text("{")
    for arguments, sentence in (
        (("--out", tmp_path / "full", "--count", 1), "is not an empty folder"),
        (("--out", tmp_path / "a", "--count", 0), "at least 1 is needed"),
        (("--out", tmp_path / "a", "--count", 1, "--config", tmp_path / "none"), "No such file"),
        (("--out", tmp_path / "a", "--count", 1, "--config", tmp_path / "bad.json"), "error: "),
    ):
        with pytest.raises(SystemExit, match=sentence):
            command(*arguments)
    assert not (tmp_path / "a").exists()


def test_captions_are_written_whole_or_not_at_all(fonts, tmp_path, monkeypatch):
    monkeypatch.setattr(typography, "describe", lambda example: {}[example.caption])
    with pytest.raises(KeyError):
        typography.write_dataset(tmp_path / "out", Renderer(fonts=fonts), 3, 0)
    assert not (tmp_path / "out" / "captions.jsonl").exists()
