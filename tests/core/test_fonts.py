"""Fonts of the system: found, named when missing, and with every glyph."""

from pathlib import Path

import pytest

from ovis_core.typography.fonts import FILES, Face, find_fonts
from ovis_core.typography.lexicon import CHARACTERS
from ovis_core.typography.rendering import Renderer


def test_missing_fonts_are_named_with_their_packages(tmp_path):
    with pytest.raises(ValueError, match="Chinese serif in .*apt-get install fonts-noto-cjk$"):
        find_fonts([("zh", "serif")], [tmp_path])
    with pytest.raises(
        ValueError,
        match="Latin sans-serif, .*: apt-get install fonts-dejavu-core fonts-liberation fonts-noto",
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
