"""Trains the autoencoder, and scales its latents to what the MMDiT expects."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...autoencoder import SCALE, Autoencoder
from ..state import RunState


@dataclass(frozen=True)
class AutoencoderTrainConfig:
    """The numbers of a run."""

    steps: int
    seed: int = 0
    lr: float = 1e-3
    warmup_steps: int = 100
    latent_noise: float = 0.05  # of a channel's deviation, since the MMDiT's latents are never quite right
    edges: float = 0.3  # weight of the differences between neighbouring pixels, which make letters crisp


PicturesOf = Callable[[int], Tensor]  # a step's pictures (B, 3, 8H, 8W) in [-1, 1], always the same


def train_autoencoder(
    autoencoder: Autoencoder, pictures_of: PicturesOf, config: AutoencoderTrainConfig
) -> tuple[RunState, Iterator[dict[str, float]]]:
    """Prepares a run -> its state, to save or load, and its remaining steps with what to log of each."""
    settings = dataclasses.asdict(config)
    state = RunState({"autoencoder": autoencoder}, settings, (0.9, 0.99), 0.0, 0.999, 1.0)

    def steps() -> Iterator[dict[str, float]]:
        while state.step < config.steps:
            rest = 1 - state.step / config.steps  # of the run, whose last fifth slows down
            lr = config.lr * min(1.0, (state.step + 1) / config.warmup_steps, 5 * rest)
            pictures = pictures_of(state.step).to(next(autoencoder.parameters()).device)
            yield state.update(_loss(autoencoder, pictures, config, state.generator(config.seed)), lr)

    return state, steps()


def _loss(
    autoencoder: Autoencoder, pictures: Tensor, config: AutoencoderTrainConfig, generator: torch.Generator
) -> Tensor:
    latents = autoencoder.encode(pictures)
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    deviation = latents.detach().std((0, 2, 3), keepdim=True)
    decoded = autoencoder.decode(latents + config.latent_noise * deviation * noise)
    loss = functional.mse_loss(decoded, pictures)  # finds the colours far sooner than the absolute error
    for axis in (2, 3):
        loss = loss + config.edges * functional.l1_loss(decoded.diff(dim=axis), pictures.diff(dim=axis))
    return loss + 1e-4 * latents.square().mean()  # keeps them from growing without end


@torch.no_grad()
def balance_latents(autoencoder: Autoencoder, pictures: Tensor) -> None:
    """Scales each channel so that normalized latents have a deviation of 1 on these pictures (B, 3, 8H, 8W).

    The scale goes into the layers on both sides, and what is decoded stays the same.
    """
    deviation = autoencoder.encode(pictures).std((0, 2, 3))
    scale = 1 / (SCALE * deviation)
    num_channels = len(scale)
    autoencoder.get_parameter("encoder.conv_out.weight")[:num_channels] *= scale.view(-1, 1, 1, 1)
    autoencoder.get_parameter("encoder.conv_out.bias")[:num_channels] *= scale
    into = autoencoder.get_parameter("decoder.conv_in.weight")
    into /= scale.view(1, -1, 1, 1)
