"""Quotation marks: every text arrives unaltered, and what is in doubt is said."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovis_core.lettering.quotes import PAIRS, Slip, parse, quote, quoted_texts

MARKED = st.text(st.sampled_from([*PAIRS, *PAIRS.values(), "a", "5", " ", "\n", "\\", "'"]), max_size=12)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ('a sign "OPEN" and "24H"', ["OPEN", "24H"]),
        ("海报，顶部“双11”，底部「限时」", ["双11", "限时"]),
        ('"say “hi” now"', ["say “hi” now"]),
        ('“a "b" c”', ['a "b" c']),
        ("“a “b” c”", ["a “b” c"]),
        ('a 27" monitor with "SALE"', ["SALE"]),
        ('第3"名"', ["名"]),
        ('"two\nlines" \\"', ["two\nlines"]),
        ('"" and " "', []),
        ("nothing, it's plain", []),
    ],
)
def test_quoted_texts(prompt, texts):
    assert quoted_texts(prompt) == texts


@pytest.mark.parametrize(
    ("prompt", "slips", "texts"),
    [
        ('“SALE" now', [Slip(5, '"', "”")], ["SALE"]),
        ('“SALE" and “NEW”', [Slip(5, '"', "”")], ["SALE", "NEW"]),
        ('"SALE” and "NEW"', [Slip(5, "”", '"')], ["SALE", "NEW"]),
        ('a "SALE', [Slip(2, '"')], []),
        ("a “SALE", [Slip(2, "“")], []),
        ("SALE” now", [Slip(4, "”")], []),
        ("「a『b」", [], ["a『b"]),
    ],
)
def test_slips(prompt, slips, texts):
    assert parse(prompt)[1] == slips
    assert quoted_texts(prompt) == texts


@pytest.mark.parametrize(
    ("text", "openers", "expected"),
    [
        ("SALE", '"“', '"SALE"'),
        ('5" pipe', '"“', '“5" pipe”'),
        ("“双11”", '"“', '"“双11”"'),
        ("“双11”", "“「", "““双11””"),
        ("双11”", "“「", "「双11”」"),
        ("5” pipe", '"“', "「5” pipe」"),
    ],
)
def test_quotes_that_suit_a_text(text, openers, expected):
    assert quote(text, openers) == expected


@given(MARKED.filter(str.strip), MARKED, st.sampled_from(['"“', "“「『"]))
def test_a_quoted_text_is_read_back_whatever_follows(text, tail, openers):
    try:
        marked = quote(text, openers)
    except ValueError:
        # Straight and curly marks are taken for one another, so they count as one kind.
        assert all(set(kind) & set(text) for kind in ('"“”', "「」", "『』", "«»"))
    else:
        assert quoted_texts(marked + tail)[0] == text
        assert parse(f"a {marked}")[1] == []


def test_a_text_with_every_kind_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="the headline holds quotation marks of every kind"):
        quote('"”」』»', '"', "the headline")


@given(MARKED)
def test_any_prompt_is_parsed_into_texts_that_it_holds(prompt):
    for quoted in parse(prompt)[0]:
        assert prompt[quoted.start : quoted.end] == quoted.text
