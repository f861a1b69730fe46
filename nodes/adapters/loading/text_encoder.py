"""Wraps the core's tokenizer and text encoder into a ComfyUI CLIP."""

import logging
from functools import cache, partial
from pathlib import Path

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.ovis
import comfy.utils
import torch
from torch import Tensor

from ....ovis_core.files.checkpoint import Checkpoint, open_checkpoint
from ....ovis_core.files.parts import TEXT_ENCODER
from ....ovis_core.pipeline import tokenizer_folder
from ....ovis_core.prompt import PromptTokenizer
from ....ovis_core.text_encoder import TextEncoder, TextEncoderConfig
from ..weights.formats import CLIP, choose
from ..weights.gguf import is_gguf

log = logging.getLogger(__name__)

TOKENS_KEY = "qwen3_2b"  # as ComfyUI's own Ovis tokenizer calls its tokens

# The tokenizer that ComfyUI ships, for text encoder files without one; PromptTokenizer asserts that it is
# the right one.
COMFYUI_TOKENIZER = Path(comfy.text_encoders.ovis.__file__).parent / "qwen25_tokenizer"


class ComfyTokenizer:
    """The tokenizer with the methods that comfy.sd.CLIP and nodes around it call."""

    def __init__(self, folder: Path, vocab_size: int, embedding_directory=None, tokenizer_data=None):
        self.prompt_tokenizer = PromptTokenizer.from_folder(folder, vocab_size)

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **_
    ) -> dict[str, list[list[tuple]]]:
        """Tokenizes a prompt in its template, each token at weight 1: weight syntax is plain text here."""
        tokens = self.prompt_tokenizer(text)
        if tokens.num_lost:
            log.warning("Ovis-Image prompt: %s", tokens.report)
        # ComfyUI wants a word id other than 0 for each token of the prompt; words are unknown here, so each
        # token gets its own.
        return {
            TOKENS_KEY: [[(t, 1.0, i + 1) if return_word_ids else (t, 1.0) for i, t in enumerate(tokens.ids)]]
        }

    def report(self, text: str) -> str:
        """Says how much of the budget a prompt takes with its template, and what did not fit."""
        return self.prompt_tokenizer(text).report

    def untokenize(self, pairs: list[tuple]) -> list[tuple]:
        """Pairs each token with its text."""
        tokenizer = self.prompt_tokenizer.tokenizer
        return [(pair, tokenizer.decode([pair[0]])) for pair in pairs]

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        """Decodes token ids to text."""
        return self.prompt_tokenizer.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)

    def state_dict(self) -> dict:
        """Returns nothing: the tokenizer is not saved with the model."""
        return {}


@cache
def comfyui_tokenizer() -> PromptTokenizer:
    """Reads the tokenizer that ComfyUI ships, once."""
    return PromptTokenizer.from_folder(COMFYUI_TOKENIZER)


def count_tokens(prompt: str) -> str:
    """Says how much of the budget a prompt takes, by the tokenizer that ComfyUI ships."""
    return comfyui_tokenizer()(prompt).report


class ComfyTextEncoder(TextEncoder):
    """The text encoder with the methods that comfy.sd.CLIP calls."""

    def __init__(
        self,
        config: TextEncoderConfig,
        ops,
        compute_dtype: torch.dtype,
        device=None,
        dtype=None,
        model_options=None,
    ):
        super().__init__(config, ops, device=device, dtype=dtype)
        self.compute_dtype = compute_dtype
        self.dtypes = {dtype}
        self.execution_device: torch.device | None = None

    def set_clip_options(self, options: dict) -> None:
        """Takes ComfyUI's options. Raises ValueError for another layer than the last."""
        self.execution_device = options.get("execution_device", self.execution_device)
        if options.get("layer") not in (None, -1):
            raise ValueError(
                "Ovis-Image takes its text encoder's last layer: remove the CLIP Set Last Layer node"
            )

    def reset_clip_options(self) -> None:
        """Resets ComfyUI's options."""
        self.execution_device = None

    def encode_token_weights(self, tokens: dict[str, list[list[tuple]]]) -> tuple[Tensor, None]:
        """Encodes tokens of `ComfyTokenizer` -> text states (1, 256, D), and no pooled output."""
        prompts = [[pair[0] for pair in prompt] for prompt in tokens[TOKENS_KEY]]
        states = self(prompts, device=self.execution_device, dtype=self.compute_dtype)
        return states.to(comfy.model_management.intermediate_device(), torch.float32), None

    def generate(self, *_, **__) -> None:
        """Refuses ComfyUI's Generate Text, which needs a language model."""
        raise ValueError(
            "Ovis-Image's text encoder does not generate text; connect the CLIP of a language model, as CLIP "
            "Loader's of qwen_3_4b.safetensors, to Generate Text"
        )

    def load_sd(self, state: dict[str, Tensor]):
        """Loads a state dict as ComfyUI's CLIP does."""
        return self.load_state_dict(state, strict=False, assign=getattr(self, "can_assign_sd", False))

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """Loads as torch does; GGUF's bytes take the place of weights, as they cannot be copied into them."""
        return super().load_state_dict(state_dict, strict, assign or any(map(is_gguf, state_dict.values())))


def load_text_encoder(path: Path, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """Loads a CLIP from a file or folder. Raises ValueError as `open_checkpoint` does."""
    return text_encoder_of(open_checkpoint(path, TEXT_ENCODER), disable_dynamic)


def text_encoder_of(
    checkpoint: Checkpoint[TextEncoderConfig, TextEncoder], disable_dynamic: bool = False
) -> comfy.sd.CLIP:
    """Puts a checked text encoder into a CLIP."""
    weights = choose(checkpoint, rules=CLIP)
    tokenizer = tokenizer_folder(checkpoint.path) or COMFYUI_TOKENIZER
    target = comfy.supported_models_base.ClipTarget(
        partial(ComfyTokenizer, tokenizer, checkpoint.config.vocab_size),
        partial(ComfyTextEncoder, checkpoint.config, weights.operations, weights.compute),
    )
    clip = comfy.sd.CLIP(
        target,
        parameters=comfy.utils.calculate_parameters(weights.state),
        state_dict=weights.state,
        model_options={"dtype": weights.storage},
        disable_dynamic=disable_dynamic or not weights.takes_dynamic_vram,
    )
    clip.patcher.set_model_compute_dtype(weights.compute)
    clip.patcher.cached_patcher_init = (_load_patcher, (checkpoint.path,))
    return clip


def _load_patcher(path: Path, disable_dynamic: bool = False):
    return load_text_encoder(path, disable_dynamic).patcher
