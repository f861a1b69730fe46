"""The small tokenizer: the template's tokens and budget, one token a letter, any text back as it was."""

import pytest

from ovis_core.prompt import MAX_TOKENS, PREFIX_TOKENS, TEMPLATE, PromptTokenizer
from ovis_core.training.nano.letters import write_letter_tokenizer

CHARACTERS = "“”，新店开业欢迎光临"


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    folder = tmp_path_factory.mktemp("letters")
    return folder, write_letter_tokenizer(folder, CHARACTERS)


@pytest.fixture(scope="module")
def tokenizer(letters):
    return PromptTokenizer.from_folder(*letters)


def test_one_token_a_letter(tokenizer):
    empty = len(tokenizer("").ids)
    assert empty == PREFIX_TOKENS + 12  # ": " before a prompt and ten tokens behind it
    for prompt in ("OPEN", "a red sign", "新店开业", "“欢迎”，24H", "  //{a|b}"):
        assert len(tokenizer(prompt).ids) == empty + len(prompt), prompt
    assert len(tokenizer("😀").ids) == empty + 4  # in bytes


def test_any_text_comes_back(tokenizer):
    for prompt in ("OPEN 24H", "“新店” 龍 😀\n\ttab", "<think> user assistant"):
        assert tokenizer.tokenizer.decode(tokenizer(prompt).ids) == TEMPLATE.format(prompt)


def test_the_budget_is_the_same(tokenizer):
    tokens = tokenizer("a" * 300)
    assert len(tokens.ids) == MAX_TOKENS
    assert tokens.num_lost == 300 + PREFIX_TOKENS + 12 - MAX_TOKENS


def test_ids_are_below_the_vocabularys_size(letters, tokenizer):
    _, size = letters
    assert len(tokenizer.tokenizer) == size
    assert max(tokenizer("\0\x7f\xff龍").ids) < size
    assert tokenizer.pad_id < size


def test_tokenizer_and_text_encoder_must_fit(letters, tokenizer):
    folder, size = letters
    with pytest.raises(ValueError, match=f"has {size} tokens, this text encoder knows {size - 1}"):
        PromptTokenizer.from_folder(folder, size - 1)
    with pytest.raises(ValueError, match="Ovis-Image needs 151643"):
        PromptTokenizer.from_folder(folder)
