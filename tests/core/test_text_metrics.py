"""Characters and texts by the plain definitions, for any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovis_core.evaluation.text_metrics import (
    Rules,
    character_error_rate,
    edit_distance,
    error_rate,
    fold,
    match_texts,
    similarity,
)

# Short alphabets, so that texts have much in common; and anything at all, lone surrogates included.
NEAR = st.text("abAB ab上下，,", max_size=12)
ANY = st.text(st.characters(), max_size=12)
TEXT = NEAR | ANY
RULES = st.builds(Rules, st.booleans(), st.booleans())


def table_distance(a: str, b: str) -> int:
    """The textbook's table."""
    rows = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            replaced = rows[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            rows[i][j] = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, replaced)
    return rows[-1][-1]


@given(TEXT, TEXT)
def test_edit_distance_is_the_textbooks(a, b):
    assert edit_distance(a, b) == table_distance(a, b)


@given(st.text("ab", min_size=60, max_size=150), st.text("ab", min_size=60, max_size=150))
def test_edit_distance_of_texts_longer_than_a_machine_word(a, b):
    assert edit_distance(a, b) == table_distance(a, b)


@given(TEXT, TEXT, RULES)
def test_similarity_is_symmetric_and_1_only_for_equal_texts(a, b, rules):
    value = similarity(a, b, rules)
    assert value == similarity(b, a, rules)
    assert 0 <= value <= 1
    assert (value == 1) == (fold(a, rules) == fold(b, rules))


@given(TEXT, TEXT, RULES)
def test_error_rate_is_a_share(expected, read, rules):
    value = character_error_rate(expected, read, rules)
    assert 0 <= value <= 1
    assert (value == 0) == (fold(expected, rules) == fold(read, rules))


@pytest.mark.parametrize(
    ("expected", "read", "rate"),
    [("SALE", "SALE", 0), ("SALE", "SAIE", 1 / 4), ("SALE", "", 1), ("SALE", "WHOLESALES!", 1), ("", "", 0),
     ("", "x", 1), ("开业大吉", "开业大古", 1 / 4), ("开业大吉", "开业吉", 1 / 4)],
)  # fmt: skip
def test_error_rate_of_known_texts(expected, read, rate):
    assert character_error_rate(expected, read) == rate


def test_error_rate_where_nothing_is_expected():
    assert (error_rate(0, 0), error_rate(3, 0), error_rate(9, 3)) == (0, 1, 1)


@pytest.mark.parametrize(
    ("a", "b", "rules", "equal"),
    [
        ("Sale", "SALE", Rules(), True),
        ("Sale", "SALE", Rules(case_sensitive=True), False),
        ("ＳＡＬＥ，50％", "SALE,50%", Rules(), True),
        ("ＳＡＬＥ", "SALE", Rules(width_sensitive=True), False),
        ("“Don’t”", '"Don\'t"', Rules(), True),
        ("“Don’t”", '"Don\'t"', Rules(width_sensitive=True), False),
        ("NEW  YORK", "NEWYORK", Rules(case_sensitive=True, width_sensitive=True), True),
        ("café", "cafe\u0301", Rules(width_sensitive=True), True),
        ("Straße", "STRASSE", Rules(), True),
        ("①", "1", Rules(), True),
        ("开业", "开叶", Rules(), False),
        ("国", "國", Rules(), False),
    ],
)
def test_folding(a, b, rules, equal):
    assert (fold(a, rules) == fold(b, rules)) is equal


def assigned(expected, regions, **rules):
    matches, extra = match_texts(expected, regions, Rules(**rules))
    return [(match.read, match.regions, match.errors) for match in matches], [piece.text for piece in extra]


@pytest.mark.parametrize(
    ("expected", "regions", "matches", "extra"),
    [
        (["OPEN", "24H"], ["24H", "OPEN"], [("OPEN", (1,), 0), ("24H", (0,), 0)], []),
        (["OPEN 24H"], ["NEWS", "OPEN", "SALE", "24H"], [("OPEN 24H", (1, 3), 0)], ["NEWS", "SALE"]),
        (["心中"], ["中", "心"], [("中", (0,), 1)], ["心"]),
        (["OPEN", "24H"], ["OPEN 24H"], [("OPEN", (0,), 0), ("24H", (0,), 0)], []),
        (["OPEN", "24H"], ["OPEN 24X"], [("OPEN", (0,), 0), ("24X", (0,), 1)], []),
        (["SALE"], ["SALES"], [("SALES", (0,), 1)], []),
        (["SALE"], ["SALE today"], [("SALE", (0,), 0)], ["today"]),
        (["SALE"], ["WXYZ"], [("", (), 4)], ["WXYZ"]),
        (["NEW YORK", "NEW"], ["NEW", "NEW YORK"], [("NEW YORK", (1,), 0), ("NEW", (0,), 0)], []),
        (["SALE", "SALE"], ["SALE"], [("SALE", (0,), 0), ("", (), 4)], []),
        (["全场五折", "开业大吉"], ["开业", "大吉", "全场五拆"],
         [("全场五拆", (2,), 1), ("开业 大吉", (0, 1), 0)], []),
        (["好吃不贵"], ["好", "吃", "不", "贵"], [("好 吃 不 贵", (0, 1, 2, 3), 0)], []),
        ([], ["SALE"], [], ["SALE"]),
        (["SALE"], [], [("", (), 4)], []),
        (["", " "], ["", "A"], [("", (), 0), ("", (), 0)], ["A"]),
    ],
)  # fmt: skip
def test_assignment(expected, regions, matches, extra):
    assert assigned(expected, regions) == (matches, extra)


def test_assignment_by_case():
    assert assigned(["Sale", "SALE"], ["SALE", "Sale"], case_sensitive=True)[0] == [
        ("Sale", (1,), 0),
        ("SALE", (0,), 0),
    ]


WORDS = st.lists(st.text("abcd", min_size=1, max_size=5), max_size=5)


@given(WORDS, WORDS, st.randoms())
def test_assignment_does_not_depend_on_the_order_of_right_regions(texts, others, rng):
    """Whatever else is read, and wherever: texts that are there letter by letter are found."""
    regions = texts + [text.upper() + "!" for text in others]
    rng.shuffle(regions)
    matches, extra = match_texts(texts, regions, Rules(case_sensitive=True))
    assert [match.errors for match in matches] == [0] * len(texts)
    assert sorted(piece.text for piece in extra) == sorted(text.upper() + "!" for text in others)


@given(st.lists(TEXT, max_size=4), st.lists(TEXT, max_size=4), RULES)
def test_assignment_uses_every_character_once(texts, regions, rules):
    matches, extra = match_texts(texts, regions, rules)
    assert [match.expected for match in matches] == texts
    for match in matches:
        assert 0 <= match.errors <= match.characters == len(fold(match.expected, rules))
        assert 0 <= match.similarity <= 1
        assert match.is_exact == (match.error_rate == 0)
    read = "".join(fold(match.read, rules) for match in matches) + "".join(
        fold(piece.text, rules) for piece in extra
    )
    assert sorted(read) == sorted("".join(fold(word, rules) for text in regions for word in text.split()))


def test_long_texts_are_quick_to_assign():
    """Hundreds of words in dozens of lines: seconds for one comparison by the textbook's table."""
    words = [f"word{i}" for i in range(400)]
    lines = [" ".join(words[i : i + 10]) for i in range(0, 400, 10)]
    (match,), extra = match_texts([" ".join(words)], lines)
    assert (match.errors, extra) == (0, [])
