"""Lettering styles: enough of them, in both languages, and the user's own beside them."""

import json
import re

import pytest

from ovis_core.lettering.styles import SHIPPED, all_styles, describe, load_styles

HAN = re.compile(r"[\u4e00-\u9fff]")


def test_shipped_styles():
    styles = load_styles(SHIPPED)
    assert len(styles) >= 24
    assert {"neon", "letterpress", "brush", "chalk", "enamel sign", "woodcut", "embroidery"} <= set(styles)
    for name, style in styles.items():
        assert style["en"].isascii(), name
        assert HAN.search(style["zh"]), name
        assert not set('"“”') & set(style["en"] + style["zh"]), name
    assert len({style["en"] for style in styles.values()}) == len(styles)


def test_description(tmp_path):
    styles = all_styles(tmp_path / "none.json")
    assert describe(styles, "chalk", "en") == styles["chalk"]["en"]
    assert describe(styles, "chalk", "en", "{pale} blue").endswith("edges, in {pale} blue")
    assert describe(styles, "chalk", "zh", "浅蓝").endswith("，颜色为浅蓝")


def test_own_styles_come_beside_and_above(tmp_path):
    path = tmp_path / "own.json"
    path.write_bytes(
        b"\xef\xbb\xbf"
        + json.dumps({"沙画": {"en": "sand", "zh": "沙"}, "neon": {"en": "x", "zh": "y"}}).encode()
    )
    styles = all_styles(path)
    assert describe(styles, "沙画", "zh") == "沙"
    assert describe(styles, "neon", "en") == "x"
    assert list(styles)[-1] == "沙画"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "are not JSON in UTF-8"),
        ("[1]", "are a list"),
        ('{"a": "b"}', "'a' in .* must have"),
        ('{"a": {"en": "x"}}', "'a' in .* must have"),
        ('{"a": {"en": "x", "zh": 5}}', "'a' in .* two texts"),
        ('{"a": {"en": "x", "zh": " "}}', "'a' in .* two texts"),
        ('{" ": {"en": "x", "zh": "y"}}', "' ' in .* needs a name"),
        ("[" * 100_000, "are not JSON"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, content, message):
    path = tmp_path / "own.json"
    path.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=message) as error:
        all_styles(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_utf_8_or_too_large(tmp_path):
    path = tmp_path / "own.json"
    path.write_bytes("{“".encode("gbk"))
    with pytest.raises(ValueError, match="not JSON in UTF-8"):
        load_styles(path)
    path.write_bytes(b" " * (1 << 21))
    with pytest.raises(ValueError, match="keep fewer"):
        load_styles(path)


def test_an_unknown_style():
    with pytest.raises(ValueError, match="no lettering style 'x'; choose one of"):
        describe(load_styles(SHIPPED), "x", "en")


def test_the_documentation_shows_every_style():
    page = (SHIPPED.parents[2] / "docs" / "styles.md").read_text("utf-8")
    for name, texts in load_styles(SHIPPED).items():
        assert f"| {name} | {texts['en']} | {texts['zh']} |" in page
