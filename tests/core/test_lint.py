"""The prompt check: what it finds, where, what it puts right, and what it leaves alone."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovis_core.lettering.copy import compose
from ovis_core.lettering.lint import check
from ovis_core.lettering.lint_report import as_json, report, summary
from ovis_core.lettering.messages import MESSAGES, SEVERITIES
from ovis_core.lettering.meter import Meter, read
from ovis_core.lettering.quotes import quoted_texts
from ovis_core.prompt import MAX_TOKENS, TEMPLATE

PARTS = [
    *(
        '"SALE"',
        "“NEW”",
        '“A"',
        '"B”',
        "'c d'",
        '27"',
        "<|im_end|>",
        "<|im_",
        "end|>",
        "embedding:x",
        "(a b:1.2)",
    ),
    *(
        "<lora:x:1>",
        "((",
        ":1.5)",
        "{a|b}",
        "//",
        "5",
        "a",
        " ",
        '"',
        "”",
        "写着",
        "$9",
        '"$9"',
        "\n",
        "[<|im_end|>",
    ),
]
PROMPTS = st.lists(st.sampled_from(PARTS), max_size=9).map("".join)


@pytest.fixture(scope="module")
def meter(tokenizer):
    """The reference's tokenizer, uncut."""

    def tokens(prompt):
        ids = tokenizer.tokenizer(TEMPLATE.format(prompt), add_special_tokens=False)["input_ids"]
        return ids, len(ids)

    return Meter(tokens, lambda ids: tokenizer.tokenizer.decode(ids, skip_special_tokens=False))


@pytest.fixture(scope="module")
def cut_meter(tokenizer):
    def tokens(prompt):
        got = tokenizer(prompt)
        return list(got.ids), len(got.ids) + got.num_lost

    return Meter(tokens, lambda ids: tokenizer.tokenizer.decode(ids, skip_special_tokens=False))


def found(prompt: str, **options) -> list[tuple[str, str]]:
    """(code, what of the prompt is meant) of every finding."""
    result = check(prompt, **options)
    return [(f.code, "" if f.start is None else result.prompt[f.start : f.end]) for f in result.findings]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ('a red sign "OPEN"', []),
        ("红色招牌“营业中”", []),
        ('a “SALE" sign', [("mixed_quotes", '"')]),
        ('a "SALE sign', [("unbalanced_quote", '"'), ("no_copy", "")]),
        ("a 'SALE now' sign", [("single_quotes", "'SALE now'"), ("no_copy", "")]),
        ("it's a dog's life \"A\"", []),
        ('a sign that says Open Late, "A"', [("unquoted_copy", "Open Late")]),
        ('SUMMER SALE poster "A"', [("unquoted_copy", "SUMMER SALE")]),
        ('only $9.99 and "A"', [("unquoted_copy", "$9.99")]),
        ("招牌写着营业中，“A”", [("unquoted_copy", "营业中")]),
        ("全场5折，“A”", [("unquoted_copy", "5折")]),
        ('www.ovis.ai/x "A"', [("unquoted_copy", "www.ovis.ai/x")]),
        ('a <|im_end|> "A"', [("control_token", "<|im_end|>")]),
        ('"A </think>"', [("control_token", "</think>")]),
        ('a embedding:foo "A"', [("embedding", "embedding:foo")]),
        ('my_embedding:foo "A"', []),
        ('(red text:1.3) "A"', [("weight", "(red text:1.3)")]),
        ('(ratio 4:3) "A (b:1.2)"', []),
        ('<lora:neon:0.8> "A"', [("lora_tag", "<lora:neon:0.8>")]),
        ('"a // b"', [("editor_syntax", "//")]),
        ('"{a|b}"', [("editor_syntax", "{a|b}")]),
        ('"https://ovis.ai"', []),
        ('"A" in vertical text', [("late_vertical", "vertical")]),
        ('vertical text "A"', []),
        ("“A”竖排", [("late_vertical", "竖排")]),
        ('"A" and a vertical wall', []),
        ("a cat", [("no_copy", "")]),
    ],
)
def test_findings(prompt, expected):
    assert found(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "steps", "cfg", "codes"),
    [
        ('"A"', 20, 7.0, []),
        ('"A"', 19, 7.1, ["high_guidance", "few_steps"]),
        ("a cat", 4, 9.0, ["no_copy"]),
    ],
)
def test_settings_matter_for_text(prompt, steps, cfg, codes):
    assert [code for code, _ in found(prompt, steps=steps, cfg=cfg)] == codes


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ('"$9.99"', [("merged_symbol", '"$')]),
        ("“$9.99” “¥88” “€5”", []),
        ("“龘”", [("rare_character", "龘")]),
        ("“A” 🫠", [("rare_symbol", "🫠")]),
        ("“①”", [("rare_symbol", "①")]),
        ("“双11全场半价 café”", []),
        ("“双11 全场”", [("split_character", "全")]),
        ("“全场”和 全", []),
    ],
)
def test_symbols_by_the_tokenizer(meter, prompt, expected):
    assert found(prompt, meter=meter) == expected


def test_what_is_drawn_weighs_more(meter):
    assert [f.severity for f in check("“龘” 🫠", meter).findings] == ["warning", "note"]


@pytest.mark.parametrize("text", ["70 % OFF", "轻记账", "I can't even", "GREEN LIFE", "夜市", "SUMMER BEATS"])
def test_texts_of_a_users_report_are_fine_in_quotes_and_missed_without(meter, text):
    assert check(f'A poster. The headline says "{text}".', meter).findings == ()
    bare = check(f"A poster. The headline says {text}.", meter)
    assert "no_copy" in [f.code for f in bare.findings]


@pytest.mark.parametrize("kind", ["meter", "cut_meter"])
@pytest.mark.parametrize("word", ["hello ", "海报", "龘", "e\u0301 "])
@pytest.mark.parametrize("lead", ["", "  "])
def test_the_meter_is_exact(kind, word, lead, tokenizer, request):
    """What is said to be kept is the longest start whose own tokens all reach the model."""
    meter = request.getfixturevalue(kind)
    prompt = lead + word * 300
    reading = read(prompt, meter)
    tokens = tokenizer(prompt)
    assert reading.num_tokens == len(tokens.ids) + tokens.num_lost
    assert reading.num_lost == reading.num_tokens - MAX_TOKENS > 0

    def tokens_before(end):  # of the start of the prompt, without the template's end
        return len(tokenizer._ids(TEMPLATE.partition("{}")[0] + prompt[:end]))

    assert tokens_before(reading.kept) <= MAX_TOKENS < tokens_before(reading.kept + len(word))


def test_the_template_alone(meter):
    assert read("", meter).num_tokens == read("red", meter).num_template == 39
    assert not check("", meter).reading.num_lost


def test_over_budget_says_what_is_lost(meter):
    result = check('"A" ' + "hello " * 300 + "the end", meter)
    finding = result.findings[0]
    assert (finding.code, finding.severity) == ("over_budget", "error")
    assert result.prompt[: finding.start].count("hello") + 39 == pytest.approx(MAX_TOKENS, abs=14)
    assert f"lost: {'hello ' * 3}"[:12] in report(result, "en")
    assert json.loads(as_json(result, "en"))["tokens"]["lost_text"].endswith("the end")


def test_only_the_templates_end_lost(meter):
    words = next(n for n in range(300) if read("hello " * n, meter).num_lost)
    assert [f.code for f in check("hello " * words, meter).findings][:1] == ["end_lost"]


def test_another_models_clip_is_refused(meter):
    other = Meter(lambda prompt: ([1] * 77, 77), meter.decode)
    with pytest.raises(ValueError, match="does not put prompts into Ovis-Image's template"):
        check("a cat", other)


@pytest.mark.parametrize(
    ("prompt", "fixed"),
    [
        ('a “SALE" sign', "a “SALE” sign"),
        ("a 'SALE now' sign", 'a "SALE now" sign'),
        ('(red text:1.3) "A"', 'red text "A"'),
        ('a <|im_end|> "A"', 'a   "A"'),
        ('embedding:foo "A"', '  "A"'),
        ('"A <|im_end|> (b:1.2)"', '"A <|im_end|> (b:1.2)"'),
        ('says Open Late "A"', 'says Open Late "A"'),
    ],
)
def test_fixes(prompt, fixed):
    assert check(prompt).prompt == prompt
    assert check(prompt, fix=True).prompt == fixed


def test_a_merged_symbol_gets_curly_quotes(meter):
    result = check('at "$9.99" now', meter, fix=True)
    assert (result.prompt, result.findings) == ("at “$9.99” now", ())
    assert [finding.code for _, finding in result.fixed] == ["merged_symbol"]


@given(PROMPTS)
def test_a_fix_keeps_every_quoted_text(prompt):
    result = check(prompt, fix=True)
    texts = iter(quoted_texts(result.prompt))
    assert all(text in texts for text in quoted_texts(prompt))
    assert not [finding for finding in result.findings if finding.edits]
    assert check(result.prompt, fix=True).prompt == result.prompt


@given(PROMPTS)
def test_without_fix_nothing_is_changed(prompt):
    result = check(prompt)
    assert (result.prompt, result.fixed) == (prompt, ())
    assert all(f.start is None or 0 <= f.start < f.end <= len(prompt) for f in result.findings)


def test_copy_passes_its_own_check(meter):
    texts = {"headline": "夏日大促", "price": "$9.99", "footer": 'a "b"', "subtitle": "“双11”"}
    for language in ("en", "zh"):
        assert check(compose(texts, "a beach", "bold red", language).prompt, meter).findings == ()


def test_report_and_json():
    prompt = 'two\nlines “SALE" <|im_end|>'
    result = check(prompt, steps=4)
    assert report(result, "en").splitlines() == [
        "tokens not counted: connect a CLIP; 1 error; 2 warnings",
        "error (line 2, column 14): <|im_end|> is a control token: the model reads a command, not these "
        "characters; take it out",
        "warning: 4 steps are below 20, too few for clean letters; use 50, or 20 for a draft",
        'warning (line 2, column 12): " closes another kind of quotation mark; write ”',
    ]
    assert report(result, "zh").splitlines()[0] == "未计算 token：请连接 CLIP；错误 1 条；警告 2 条"
    data = json.loads(as_json(result, "zh"))
    assert (data["tokens"], data["texts"], data["prompt"]) == (None, ["SALE"], prompt)
    first = data["findings"][0]
    assert (first["code"], prompt[first["start"] : first["end"]]) == ("control_token", "<|im_end|>")
    assert (first["line"], first["column"], first["fixable"]) == (2, 14, True)


def test_summary_counts_tokens(meter):
    num_tokens = read('"A"', meter).num_tokens
    assert summary(check('"A"', meter), "en") == (
        f"{num_tokens} of 284 tokens (39 of them the template's); nothing to complain of"
    )


def test_every_message_is_in_both_languages():
    for code, texts in MESSAGES.items():
        assert set(texts) == {"en", "zh"}, code
        assert texts["zh"][0] != texts["en"][0]
    assert list(SEVERITIES) == ["error", "warning", "note"]


def test_braces_and_percent_signs_in_a_prompt_are_no_format():
    assert "{excerpt}" in report(check("says A{excerpt}%s{0}"), "en")


@pytest.mark.parametrize(("prompt", "fix"), [("a “ " * 50, False), ("(a:1.2) " * 50, True)])
def test_many_of_a_kind_are_counted_and_the_first_20_listed(prompt, fix):
    result = check(prompt, fix=fix)
    listed = json.loads(as_json(result, "en"))["fixed" if fix else "findings"]
    of_the_kind = [entry for entry in listed if entry["code"] != "no_copy"]
    assert len(of_the_kind) == 20
    assert [entry["start"] for entry in of_the_kind[:2]] == ([0, 8] if fix else [2, 6])
    assert ("50 fixed" if fix else "50 warnings") in summary(result, "en")
    assert len(report(result, "en").splitlines()) == 22
