"""Copy -> prompt: nothing altered, nothing in doubt."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovis_core.lettering.copy import FIELDS, LANGUAGES, compose
from ovis_core.lettering.quotes import quoted_texts

NASTY = [
    "a // b",
    "/* c */",
    "{a|b}",
    "$9.99",
    '"$9.99"',
    "“双11”",
    "two\nlines",
    "C:\\new\\(x\\)",
    "{0}{}",
    "%s",
    " ",
]
LETTERS = st.sampled_from("\"“”「」『』«»'5aZ猫\n\t\\/{}|$ 🎉")


def test_english():
    texts = {"headline": "SUMMER", "price": "$9", "footer": "Oslo"}
    composed = compose(texts, "a beach at dusk", "bold red serif", "en")
    assert composed.prompt == (
        'Lettering: bold red serif. Text from top to bottom: the large headline "SUMMER", the price “$9”, in '
        'small letters at the bottom the footer "Oslo". Scene: a beach at dusk'
    )
    assert composed.texts == ("SUMMER", "$9", "Oslo")


def test_chinese():
    composed = compose({"headline": "“双11”", "subtitle": "全场5折"}, "红色背景", "金色书法。", "zh")
    assert composed.prompt == (
        "文字样式：金色书法。画面文字从上到下：大标题““双11””，副标题“全场5折”。画面：红色背景"
    )


def test_a_part_alone():
    assert compose({}, scene="a cat").prompt == "a cat"
    assert compose({"headline": "A"}).prompt == 'Text from top to bottom: the large headline "A".'
    assert compose({}, style="neon").prompt == "Lettering: neon."


@pytest.mark.parametrize("language", LANGUAGES)
@given(
    texts=st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(NASTY) | st.text(LETTERS, max_size=9)),
    scene=st.sampled_from([*NASTY, 'a 27" screen', "x\\", "猫"]),
    style=st.sampled_from(["", "neon", "霓虹！", "{b}\n"]),
)
def test_every_character_arrives(language, texts, scene, style):
    try:
        composed = compose(texts, scene, style, language)
    except ValueError as error:
        assert "every kind" in str(error) or not any(v.strip() for v in (*texts.values(), scene, style))  # noqa: PT017
        return
    assert composed.texts == tuple(texts[field] for field in FIELDS if texts.get(field, "").strip())
    assert quoted_texts(composed.prompt)[: len(composed.texts)] == list(composed.texts)
    for part in (scene, style):
        assert part in composed.prompt or not part.strip()


@pytest.mark.parametrize("style", ["“gold", 'a "red'])
def test_marks_that_would_swallow_a_text_are_refused(style):
    with pytest.raises(ValueError, match="have no partner"):
        compose({"headline": "A", "subtitle": "it”s"}, style=style, scene='b" c”')


def test_nothing_at_all_is_refused():
    with pytest.raises(ValueError, match="every field is empty"):
        compose({"headline": " \n"})


def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match="choose one of en, zh"):
        compose({"headline": "A"}, language="French")
