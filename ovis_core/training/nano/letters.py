"""Writes a small tokenizer in the files and with the template of the released one: a token a letter.

Byte-level BPE as Qwen's, but its only merges join the bytes of the Chinese characters that it is given.
What it was not given still arrives, as bytes.
"""

from collections.abc import Iterable
from pathlib import Path

from ...files.storage import write_json
from ...prompt import MAX_TOKENS, SYSTEM, TOKEN_IDS

# The template is longer in letters than in Qwen's tokens. Its beginning is one token, so that the prefix that
# the encoder drops has the same 28 tokens and prompts the same budget; no prompt says such a thing.
START = "user\n" + SYSTEM[: SYSTEM.index("the objects")]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_letter_tokenizer(folder: Path, characters: Iterable[str]) -> int:
    """Writes vocab.json, merges.txt and tokenizer_config.json -> the number of tokens.

    `characters`: those beyond ASCII that are one token each.
    """
    vocab = {name: i for i, name in enumerate(_byte_names().values())}
    merges = []
    for character in characters:
        first, *rest = (_byte_names()[byte] for byte in character.encode())
        for name in rest:
            if first + name not in vocab:
                vocab[first + name] = len(vocab)
                merges.append(f"{first} {name}")
            first += name
    added = [*TOKEN_IDS, START, "assistant\n"]
    entries = {
        str(len(vocab) + i): {
            "content": token,
            "special": token in SPECIAL,
            **dict.fromkeys(("normalized", "lstrip", "rstrip", "single_word"), False),
        }
        for i, token in enumerate(added)
    }
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": entries,
        "eos_token": SPECIAL[0],
        "pad_token": SPECIAL[0],
        "bos_token": None,
        "unk_token": None,
        "model_max_length": MAX_TOKENS,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(vocab, folder / "vocab.json")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    write_json(config, folder / "tokenizer_config.json")
    return len(vocab) + len(added)


def _byte_names() -> dict[int, str]:
    """Names every byte by a printable character, as in GPT-2's vocabularies: itself, or one from 256 up."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)}
