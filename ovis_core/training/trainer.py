"""Trains the MMDiT, with its text encoder if that is trained too."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..blocks import Run, call_block
from ..layers import sdp_attention
from ..prompt import PREFIX_TOKENS
from ..transformer import OvisImageTransformer
from .flow import flow_loss, thin_padding
from .state import RunState

# "linear end": in the last fifth only, so that a run can still be made shorter or longer on its way.
Decay = Literal["cosine", "linear end", "none"]


@dataclass(frozen=True)
class TrainConfig:
    """The numbers of a run."""

    steps: int
    seed: int = 0
    lr: float = 1e-3
    warmup_steps: int = 200
    decay: Decay = "cosine"  # how the learning rate falls to 0 at the last step
    restarts: tuple[int, ...] = ()  # steps before the last at which it has fallen too, and starts anew
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01  # of matrices only
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    caption_dropout: float = 0.1  # share of captions replaced by the empty prompt, for guidance
    uniform_sigmas: bool = False
    bf16: bool = True  # compute in bfloat16; weights and optimizer stay float32
    context_tokens: int | None = None  # text states that are computed, see `thin_padding`; None: all

    def lr_at(self, step: int) -> float:
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        begin = max((restart for restart in self.restarts if restart <= step), default=0)
        end = min((restart for restart in self.restarts if restart > step), default=self.steps)
        rest = max(0.0, 1 - (step - begin) / (end - begin))
        falling = {
            "cosine": 0.5 - 0.5 * math.cos(math.pi * rest),
            "linear end": min(1.0, 5 * rest),
            "none": 1.0,
        }
        return self.lr * warm * falling[self.decay]


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    latents: normalized (B, C, H, W). prompts: token ids of each caption in its template, unpadded."""

    latents: Tensor
    prompts: Sequence[Sequence[int]]


BatchOf = Callable[[int], Batch]  # a step's batch, always the same for the same step
Encode = Callable[[Sequence[Sequence[int]]], Tensor]  # token ids -> context (B, 256, context_dim)


class Trainer:
    """Trains `transformer`, and `encode` where it is a module with parameters that want gradients.

    encode: the text encoder, or what stands for one that is not trained. empty_prompt: its token ids in the
    template, for caption dropout. run: how a block is called, such as `flow.checkpointed`.
    """

    def __init__(
        self,
        transformer: OvisImageTransformer,
        encode: Encode,
        batch_of: BatchOf,
        empty_prompt: Sequence[int],
        config: TrainConfig,
        run: Run = call_block,
    ):
        self.transformer, self.encode, self.batch_of, self.run = transformer, encode, batch_of, run
        self.empty_prompt, self.config = tuple(empty_prompt), config
        self.device = transformer.img_in.weight.device
        modules: dict[str, nn.Module] = {"transformer": transformer}
        if isinstance(encode, nn.Module):
            modules["text_encoder"] = encode
        self.state = RunState(
            modules,
            dataclasses.asdict(config),
            config.betas,
            config.weight_decay,
            config.ema_decay,
            config.max_grad_norm,
        )

    def train(self) -> Iterator[dict[str, float]]:
        """Runs the remaining steps -> what to log of each. Raises ValueError when training falls apart."""
        while self.state.step < self.config.steps:
            yield self.train_step()

    def train_step(self) -> dict[str, float]:
        step = self.state.step
        loss = self._loss(self.batch_of(step), self.state.generator(self.config.seed))
        return self.state.update(loss, self.config.lr_at(step))

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        latents = batch.latents.to(self.device, torch.float32)
        draws = torch.rand(len(latents), generator=generator, device=self.device).tolist()
        prompts = [
            self.empty_prompt if draw < self.config.caption_dropout else prompt
            for prompt, draw in zip(batch.prompts, draws, strict=True)
        ]
        with self.autocast():
            context, attention = self.encode(prompts).to(self.device), sdp_attention
            if self.config.context_tokens:
                longest = max(map(len, prompts)) - PREFIX_TOKENS
                height, width = latents.shape[-2:]
                table = self.transformer.rotary_table(context.shape[1], height, width, self.device)
                context, attention = thin_padding(
                    context, table, longest, self.config.context_tokens, generator
                )

            def velocity(x: Tensor, sigma: Tensor) -> Tensor:
                return self.transformer(x, sigma, context, attention, self.run).float()

            return flow_loss(velocity, latents, generator, self.config.uniform_sigmas)

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16) if self.config.bf16 else nullcontext()
