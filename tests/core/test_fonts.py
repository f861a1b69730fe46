"""Fonts of the system: by their characters, by language and style, and named when missing."""

from pathlib import Path

import pytest

from ovis_core.drawing.fonts import BUILT_IN, FILES, Face, Fonts, is_drawn
from ovis_core.typography.lexicon import CHARACTERS
from ovis_core.typography.rendering import Renderer

LATIN = "/usr/share/fonts/truetype/dejavu"
CJK = Path("/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc")
FONTS = Fonts()


@pytest.mark.parametrize("text", ["SALE €9.99", "Größe Straße", "Привет", "Καλημέρα"])
def test_scripts_are_drawn_with_glyphs(text):
    assert all(FONTS.has(face, c) for run, face in FONTS.runs(text) for c in run if is_drawn(c))


@pytest.mark.skipif(not CJK.is_file(), reason="needs Debian's fonts-noto-cjk")
def test_chinese_is_drawn_with_glyphs_of_its_own():
    ((_, face),) = FONTS.runs("双11狂欢 SALE")
    assert face.at(20).getname()[0].endswith(" SC")
    glyphs = [bytes(face.at(20).getmask(character)) for character in "双狂"]
    assert glyphs[0] != glyphs[1]


def test_one_font_writes_a_label_where_one_has_it_all():
    assert len(FONTS.runs("SALE 50% off")) == 1


def test_a_font_knows_what_it_lacks():
    fonts = Fonts([LATIN])
    ((_, face),) = fonts.runs("SALE")
    assert fonts.has(face, "S")
    assert not fonts.has(face, "双")
    with pytest.raises(ValueError, match=r"no font of this system has 双 \(CJK UNIFIED IDEOGRAPH-53CC\), 狂"):
        fonts.runs("SALE 双狂")
    assert fonts.replace_missing("SALE 双\u200d狂") == "SALE ?\u200d?"


def test_pieces_of_a_label_take_different_fonts(monkeypatch):
    fonts = Fonts([LATIN])
    only = {"a": "DejaVuSans.ttf", "b": "DejaVuSans-Bold.ttf"}
    monkeypatch.setattr(fonts, "has", lambda face, character: Path(face.path or "").name == only[character])
    assert [(text, face.path.name) for text, face in fonts.runs("aa b")] == [
        ("aa ", "DejaVuSans.ttf"),
        ("b", "DejaVuSans-Bold.ttf"),
    ]


def test_without_fonts_pillows_own_writes_what_it_has(tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    fonts = Fonts([tmp_path, tmp_path / "missing"])
    assert fonts.runs("SALE 9.99") == [("SALE 9.99", BUILT_IN)]
    with pytest.raises(ValueError, match="no font of this system has 双 .*models/fonts folder"):
        fonts.runs("双")


def test_plain_faces_come_first():
    ((_, face),) = Fonts([LATIN]).runs("A")
    assert face.path.name == "DejaVuSans.ttf"


@pytest.mark.parametrize("character", [" ", "\t", "\n", "\u200d", "\ufe0f", "\u3000"])
def test_spaces_and_joiners_need_no_glyph(character):
    assert not is_drawn(character)


def test_missing_fonts_are_named_with_their_packages(tmp_path):
    with pytest.raises(ValueError, match="Chinese serif in .*apt-get install fonts-noto-cjk$"):
        Fonts([tmp_path]).of_style([("zh", "serif")])
    with pytest.raises(
        ValueError,
        match="Latin sans-serif, .*: apt-get install fonts-dejavu-core fonts-liberation fonts-noto",
    ):
        Fonts([tmp_path, tmp_path / "none"]).of_style()
    with pytest.raises(ValueError, match="faces has none for .'zh', 'bold'."):
        Renderer(faces={key: (Face(Path("a.ttf")),) for key in FILES if key != ("zh", "bold")})


def test_fonts_are_found_in_folders_below_and_the_first_folder_wins(tmp_path):
    for folder in ("a/deep", "b"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "DejaVuSans.ttf").touch()
    found = Fonts([tmp_path / "a", tmp_path / "b"]).of_style([("en", "sans")])
    assert found == {("en", "sans"): (Face(tmp_path / "a" / "deep" / "DejaVuSans.ttf"),)}


@pytest.mark.parametrize("key", FILES, ids=" ".join)
def test_installed_fonts_have_a_glyph_for_every_character(key):
    try:
        faces = FONTS.of_style([key])[key]
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
