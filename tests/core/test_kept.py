"""A rewritten prompt keeps what is in quotes, or is not used."""

import pytest

from ovis_core.lettering.kept import keep_quotes

ORIGINAL = (
    'a poster that says "70 % OFF" and “I can\'t even” over 「轻记账」, twice "GREEN LIFE" "GREEN LIFE"'
)
KEPT = (
    'In soft light, “GREEN LIFE” and "GREEN LIFE" glow; below, “轻记账”, 『70 % OFF』, and "I can\'t even".'
)


def test_a_rewrite_that_keeps_every_text_passes_as_it_is():
    assert keep_quotes(ORIGINAL, KEPT) == (KEPT, "all 5 quoted texts are kept")
    assert keep_quotes("a red wall", "a wall, painted red") == (
        "a wall, painted red",
        "all 0 quoted texts are kept",
    )


@pytest.mark.parametrize(
    ("rewritten", "said"),
    [
        (KEPT.replace("70 % OFF", "70% OFF"), "lost “70 % OFF” and added “70% OFF”"),
        (KEPT.replace('"GREEN LIFE"', "GREEN LIFE"), "lost “GREEN LIFE” in quotes"),
        (KEPT.replace("can't", "can’t"), "lost “I can't even” and added “I can’t even”"),
        (KEPT + ' and "SUMMER BEATS"', "added “SUMMER BEATS” in quotes"),
        (" \n", "the rewritten prompt is empty"),
    ],
)
def test_a_rewrite_that_alters_one_is_an_error_or_the_original(rewritten, said):
    with pytest.raises(ValueError, match=said):
        keep_quotes(ORIGINAL, rewritten)
    text, report = keep_quotes(ORIGINAL, rewritten, or_original=True)
    assert text == ORIGINAL
    assert said in report
    assert report.endswith("the original is used")
