"""Runs training: steps, learning rate and state, whatever the loss."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

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
Loss = Callable[[Batch, torch.Generator], Tensor]  # what is minimised; all that is random is the generator's


class Trainer:
    """Trains those parameters of `modules` that want gradients, down the gradient of a loss.

    modules: by the names that a checkpoint has for them.
    """

    def __init__(self, modules: Mapping[str, nn.Module], loss: Loss, batch_of: BatchOf, config: TrainConfig):
        self.loss, self.batch_of, self.config = loss, batch_of, config
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
        loss = self.loss(self.batch_of(step), self.state.generator(self.config.seed))
        return self.state.update(loss, self.config.lr_at(step))
