import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovis_core.prompt import MAX_CHARACTERS, MAX_TOKENS, PREFIX_TOKENS, SYSTEM, TEMPLATE, PromptTokenizer

WORDS = [
    *(
        "poster",
        '"SALE"',
        "$9.99",
        "“双11”",
        "复古海报",
        "🎉",
        "①",
        "{a|b}",
        "// tail",
        "/* c */",
        "(bold:1.2)",
        "\\(x\\)",
    ),
    *(
        "embedding:foo",
        "¥88",
        "「限时」",
        "naïve",
        "A\tB",
        "line\nbreak",
        "龘",
        "👩‍👩‍👧",
        "1/2",
        "'single'",
        "<b>",
        "%d",
        "{0}",
    ),
]


def prompts() -> list[str]:
    generator = random.Random(0)
    mixed = [" ".join(generator.choices(WORDS, k=generator.randint(1, 60))) for _ in range(192)]
    return ["", " ", "  two", "\n", "猫", "a" * 10_000, "海报" * 5_000, "hello world. " * 800, *mixed]


def diffusers_ids(pipeline, prompt):
    tokens = pipeline.tokenizer(
        pipeline._get_messages(prompt),
        padding="max_length",
        truncation=True,
        max_length=MAX_TOKENS,
        return_tensors="pt",
        add_special_tokens=False,
    )
    return tokens.input_ids[0].tolist(), int(tokens.attention_mask.sum())


def test_200_prompts_have_diffusers_tokens(tokenizer, diffusers_pipeline):
    assert len(prompts()) == 200
    for prompt in prompts():
        ids, num_valid = diffusers_ids(diffusers_pipeline, prompt)
        ours = tokenizer(prompt)
        assert len(ours.ids) == num_valid, prompt
        assert [*ours.ids] + [tokenizer.pad_id] * (MAX_TOKENS - num_valid) == ids, prompt


def test_empty_prompt_takes_39_tokens_28_of_them_prefix(tokenizer):
    tokens = tokenizer("")
    assert len(tokens.ids) == 39
    assert tokens.num_lost == 0
    assert tokenizer.tokenizer.decode(tokens.ids[:PREFIX_TOKENS]).endswith("objects and background")
    assert tokenizer.tokenizer.decode(tokens.ids[PREFIX_TOKENS]) == ":"
    assert (
        TEMPLATE.format("")
        == f"<|im_start|>user\n{SYSTEM}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


@pytest.mark.parametrize("text", ["70 % OFF", "轻记账", "I can't even", "GREEN LIFE", "夜市", "SUMMER BEATS"])
def test_texts_of_a_users_report_arrive_whole(tokenizer, text):
    tokens = tokenizer(f'A poster with the headline "{text}".')
    assert f'"{text}".' in tokenizer.tokenizer.decode(tokens.ids)
    assert tokens.num_lost == 0


def test_lost_tokens_are_counted(tokenizer):
    untruncated = len(
        tokenizer.tokenizer(TEMPLATE.format("word " * 400), add_special_tokens=False)["input_ids"]
    )
    tokens = tokenizer("word " * 400)
    assert len(tokens.ids) == MAX_TOKENS
    assert tokens.num_lost == untruncated - MAX_TOKENS > 100


@given(st.text(alphabet=st.characters(), max_size=300))
@settings(deadline=None, max_examples=100)
def test_no_text_fails(tokenizer, text):
    assert 1 <= len(tokenizer(text).ids) <= MAX_TOKENS


def test_unpaired_surrogates_are_replaced_with_a_warning(tokenizer, caplog):
    assert tokenizer("a\ud800b") == tokenizer("a\ufffdb")
    assert "surrogates" in caplog.text


def test_endless_text_is_refused(tokenizer):
    with pytest.raises(ValueError, match=f"at most {MAX_CHARACTERS}"):
        tokenizer("a" * (MAX_CHARACTERS + 1))


def test_another_models_tokenizer_is_refused(tokenizer):
    class Other:
        def __len__(self):
            return 7

        def convert_tokens_to_ids(self, token):
            return 7

    with pytest.raises(ValueError, match="id 7, Ovis-Image needs 151643"):
        PromptTokenizer(Other())
