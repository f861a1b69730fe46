"""Turns a prompt into tokens: the chat template, its prefix and the token budget."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

SYSTEM = (
    "Describe the image by detailing the color, quantity, text, shape, size, texture, spatial "
    "relationships of the objects and background: "
)
TEMPLATE = "<|im_start|>user\n" + SYSTEM + "{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
PREFIX_TOKENS = 28  # the template up to the colon that ends SYSTEM; its states are dropped
CONTEXT_TOKENS = 256  # text states the MMDiT sees
MAX_TOKENS = PREFIX_TOKENS + CONTEXT_TOKENS
MAX_CHARACTERS = 100_000  # some 300 times what fits; more is a mistake, and minutes of tokenizing

VOCAB_SIZE = 151936  # of the released text encoder

# What the template relies on: tokenizers of other Qwen generations share the words but not all of these ids.
TOKEN_IDS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<think>": 151667,
    "</think>": 151668,
}


@dataclass(frozen=True)
class PromptTokens:
    """A prompt in its template, cut at the budget and not padded."""

    ids: tuple[int, ...]
    num_lost: int  # tokens past the budget, the template's own end included

    @property
    def report(self) -> str:
        """Says how much of the budget the tokens take, and how many were cut off."""
        used = f"{len(self.ids)} of {MAX_TOKENS} tokens"
        if not self.num_lost:
            return used
        return f"{used}; {self.num_lost} more were cut off, shorten the prompt"


class PromptTokenizer:
    """Tokenizes prompts the way the model was trained.

    vocab_size: the text encoder's. One smaller than Qwen's comes with a different tokenizer, and so with
    other ids. Raises ValueError when the tokenizer's special tokens or the length of the template's prefix
    are not the model's, or when it has tokens that the text encoder does not know.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", vocab_size: int = VOCAB_SIZE):
        self.tokenizer = tokenizer
        is_qwen = vocab_size > max(TOKEN_IDS.values())
        if len(tokenizer) > vocab_size:
            raise ValueError(
                f"this tokenizer has {len(tokenizer)} tokens, this text encoder knows {vocab_size}; use the "
                "tokenizer that comes with the text encoder"
            )
        for token, expected in TOKEN_IDS.items():
            got = tokenizer.convert_tokens_to_ids(token)
            if is_qwen and got != expected:
                raise ValueError(
                    f"this tokenizer gives {token} the id {got}, Ovis-Image needs {expected}; use the "
                    "tokenizer that comes with the Ovis-Image text encoder"
                )
        prefix = TEMPLATE[: TEMPLATE.index(": {}")]
        num_prefix = len(self._ids(prefix))
        if num_prefix != PREFIX_TOKENS:
            raise ValueError(
                f"this tokenizer makes {num_prefix} tokens of the template's prefix, Ovis-Image needs "
                f"{PREFIX_TOKENS}; use the tokenizer that comes with the Ovis-Image text encoder"
            )

    @classmethod
    def from_folder(cls, folder: str | Path, vocab_size: int = VOCAB_SIZE) -> "PromptTokenizer":
        """Reads tokenizer.json or vocab.json with merges.txt, and never runs code from the folder."""
        from transformers import Qwen2TokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

        return cls(Qwen2TokenizerFast.from_pretrained(str(folder), local_files_only=True), vocab_size)

    @property
    def pad_id(self) -> int:
        """Looks up the id of the token that pads a prompt."""
        return cast(int, self.tokenizer.convert_tokens_to_ids("<|endoftext|>"))

    def __call__(self, prompt: str) -> PromptTokens:
        """Tokenizes a prompt in its template, cut at the budget.

        Unpaired surrogates, which no tokenizer takes, become U+FFFD with a warning.
        Raises ValueError for more than MAX_CHARACTERS characters.
        """
        if len(prompt) > MAX_CHARACTERS:
            raise ValueError(
                f"the prompt has {len(prompt)} characters, at most {MAX_CHARACTERS} are accepted (about 245 "
                "tokens, some 1,000 characters, reach the model); shorten it"
            )
        text = prompt.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if text != prompt:
            log.warning("the prompt holds unpaired surrogates; they were replaced by U+FFFD")
        ids = self._ids(TEMPLATE.format(text))
        return PromptTokens(tuple(ids[:MAX_TOKENS]), max(0, len(ids) - MAX_TOKENS))

    def _ids(self, text: str) -> list[int]:
        # `verbose=False`: the tokenizer warns about long texts by another limit than ours.
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
