"""The rectified-flow loss: which noise levels are trained, and what the velocity is compared with.

B batch, C channels, H and W latent pixels.
"""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..latents import num_image_tokens
from ..layers import Attention
from ..sampling import Velocity, shift_mu
from ..transformer import OvisImageTransformer


def draw_sigmas(count: int, num_tokens: int, generator: torch.Generator, uniform: bool = False) -> Tensor:
    """Noise levels of `count` pictures of `num_tokens` tokens, in (0, 1), on the generator's device.

    sigmoid(mu + N(0, 1)) with the schedule's mu for that size (arXiv 2403.03206, section 3.1), or uniform.
    """
    device = generator.device
    if uniform:
        return torch.rand(count, generator=generator, device=device)
    return torch.sigmoid(shift_mu(num_tokens) + torch.randn(count, generator=generator, device=device))


def velocity_loss(velocity: Velocity, latents: Tensor, sigmas: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity at (1 - sigma) x0 + sigma eps against eps - x0 (arXiv 2209.03003).

    latents: x0, the MMDiT's (normalized), (B, C, H, W). sigmas: (B,). noise: eps, (B, C, H, W).
    """
    sigma = sigmas.view(-1, 1, 1, 1)
    noisy = torch.lerp(latents, noise, sigma)
    return (velocity(noisy, sigmas) - (noise - latents)).square().mean()


def flow_loss(
    velocity: Velocity, latents: Tensor, generator: torch.Generator, uniform: bool = False
) -> Tensor:
    """`velocity_loss` at noise levels and noise from the generator."""
    sigmas = draw_sigmas(len(latents), num_image_tokens(*latents.shape[-2:]), generator, uniform)
    noise = torch.randn(latents.shape, generator=generator, device=generator.device)
    return velocity_loss(velocity, latents, sigmas, noise)


class CheckpointedTransformer(OvisImageTransformer):
    """The MMDiT that keeps one block's activations at a time and computes the others again for gradients."""

    def run_blocks(self, img: Tensor, txt: Tensor, vec: Tensor, pe: Tensor, attention: Attention) -> Tensor:
        for block in self.double_blocks:
            img, txt = checkpoint(block, img, txt, vec, pe, attention, use_reentrant=False)
        joined = torch.cat((txt, img), dim=1)
        for block in self.single_blocks:
            joined = checkpoint(block, joined, vec, pe, attention, use_reentrant=False)
        return joined[:, txt.shape[1] :]
