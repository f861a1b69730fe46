"""Turns tokens into text states with the Qwen3 language model of Ovis2.5-2B.

B batch, L tokens, D hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, Qwen3RotaryEmbedding

from .layers import Ops
from .prompt import CONTEXT_TOKENS, MAX_TOKENS, PREFIX_TOKENS


@dataclass(frozen=True)
class TextEncoderConfig:
    """The numbers of the language model; the defaults are Ovis2.5-2B's."""

    vocab_size: int = 151936
    hidden_size: int = 2048
    num_layers: int = 28
    num_heads: int = 16
    num_kv_heads: int = 8
    head_dim: int = 128
    intermediate_size: int = 6144
    rope_theta: float = 1e6
    norm_eps: float = 1e-6

    def __post_init__(self):
        if (
            min(self.num_heads, self.num_kv_heads) < 1
            or self.num_heads % self.num_kv_heads
            or self.head_dim % 2
        ):
            raise ValueError(
                f"{self.num_heads} heads over {self.num_kv_heads} key-value heads of size {self.head_dim} "
                "make no "
                "language model"
            )

    def to_transformers(self) -> Qwen3Config:
        """Makes the same config as transformers' class."""
        # `from_dict` takes `rope_theta` in every transformers release that has Qwen3.
        return Qwen3Config.from_dict(
            {
                "vocab_size": self.vocab_size,
                "hidden_size": self.hidden_size,
                "num_hidden_layers": self.num_layers,
                "num_attention_heads": self.num_heads,
                "num_key_value_heads": self.num_kv_heads,
                "head_dim": self.head_dim,
                "intermediate_size": self.intermediate_size,
                "rope_theta": self.rope_theta,
                "rms_norm_eps": self.norm_eps,
                "max_position_embeddings": 40960,
                "use_cache": False,
                "attn_implementation": "sdpa",
            }
        )


class TextEncoder(nn.Module):
    """The Qwen3Model of transformers with layers from `ops`; its parameters are named `model.*`."""

    def __init__(self, config: TextEncoderConfig, ops: Ops = nn, device=None, dtype=None):
        super().__init__()
        self.config = config
        qwen = config.to_transformers()
        with torch.device("meta"):
            self.model = Qwen3Model(qwen)
        _replace_layers(self.model, ops, device=device, dtype=dtype)
        # Its frequencies are a buffer: no file holds them, and the meta device leaves them empty.
        self.model.rotary_emb = Qwen3RotaryEmbedding(qwen)

    def forward(self, prompts: Sequence[Sequence[int]], device=None, dtype=None) -> Tensor:
        """Encodes unpadded token ids, at most MAX_TOKENS a prompt -> text states (B, 256, D), zero-padded.

        Only the valid tokens are computed: the model is causal and padding stands on the right, so that no
        valid token ever sees it. `device` and `dtype` are where and in what to compute, the embedding's own
        by default.
        """
        embedding = self.model.embed_tokens
        device = device or embedding.weight.device
        lengths = [len(ids) for ids in prompts]
        ids = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
        valid = torch.zeros(len(prompts), max(lengths), 1, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
            valid[row, : len(prompt)] = True

        embeds = embedding(ids.to(device)).to(dtype or embedding.weight.dtype)  # (B, L, D)
        states = self.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        states = states * valid.to(device)
        states = nn.functional.pad(states, (0, 0, 0, MAX_TOKENS - states.shape[1]))  # (B, 284, D)
        return states[:, PREFIX_TOKENS : PREFIX_TOKENS + CONTEXT_TOKENS]


def _replace_layers(module: nn.Module, ops: Ops, **factory) -> None:
    """Replaces the model's layers by those of `ops` with the same shapes."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            layer = ops.Linear(child.in_features, child.out_features, bias=child.bias is not None, **factory)
        elif isinstance(child, nn.Embedding):
            layer = ops.Embedding(child.num_embeddings, child.embedding_dim, **factory)
        elif isinstance(child, Qwen3RMSNorm):
            layer = ops.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon, **factory)
        else:
            _replace_layers(child, ops, **factory)
            continue
        setattr(module, name, layer)
