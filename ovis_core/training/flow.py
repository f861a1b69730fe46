"""Computes the rectified-flow loss: at which noise levels, and what the velocity is compared with.

B batch, C channels, H and W latent pixels.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ..blocks import Run, call_block
from ..latents import num_image_tokens
from ..layers import Attention, sdp_attention
from ..prompt import PREFIX_TOKENS
from ..rope import apply_rope
from ..sampling import Velocity, shift_mu
from ..transformer import OvisImageTransformer
from .trainer import Batch, TrainConfig

PADDING_KEPT = 4  # text states that stand for all the padding, see `thin_padding`
Encode = Callable[[Sequence[Sequence[int]]], Tensor]  # token ids -> context (B, 256, context_dim)


class FlowLoss:
    """Computes the loss of rectified flow on pictures with captions (the `loss` seam).

    encode: the text encoder, or what stands for one that is not trained. empty_prompt: its token ids in the
    template, for caption dropout. run: how a block is called, such as `checkpointed`.
    """

    def __init__(
        self,
        transformer: OvisImageTransformer,
        encode: Encode,
        empty_prompt: Sequence[int],
        config: TrainConfig,
        run: Run = call_block,
    ):
        self.transformer, self.encode, self.run = transformer, encode, run
        self.empty_prompt, self.config = tuple(empty_prompt), config
        self.device = transformer.img_in.weight.device

    def __call__(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of a batch; noise, its levels and dropped captions come from the generator."""
        latents = batch.latents.to(self.device, torch.float32)
        draws = torch.rand(len(latents), generator=generator, device=self.device).tolist()
        prompts = [
            self.empty_prompt if draw < self.config.caption_dropout else prompt
            for prompt, draw in zip(batch.prompts, draws, strict=True)
        ]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
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


def draw_sigmas(count: int, num_tokens: int, generator: torch.Generator, uniform: bool = False) -> Tensor:
    """Draws noise levels of `count` pictures of `num_tokens` tokens, in (0, 1), on the generator's device.

    sigmoid(mu + N(0, 1)) with the schedule's mu for that size (arXiv 2403.03206, section 3.1), or uniform.
    """
    device = generator.device
    if uniform:
        return torch.rand(count, generator=generator, device=device)
    return torch.sigmoid(shift_mu(num_tokens) + torch.randn(count, generator=generator, device=device))


def velocity_loss(velocity: Velocity, latents: Tensor, sigmas: Tensor, noise: Tensor) -> Tensor:
    """Compares the velocity at (1 - sigma) x0 + sigma eps with eps - x0 (arXiv 2209.03003).

    The loss is the mean squared error. latents: x0, the MMDiT's (normalized), (B, C, H, W). sigmas: (B,).
    noise: eps, (B, C, H, W).
    """
    sigma = sigmas.view(-1, 1, 1, 1)
    noisy = torch.lerp(latents, noise, sigma)
    return (velocity(noisy, sigmas) - (noise - latents)).square().mean()


def flow_loss(
    velocity: Velocity, latents: Tensor, generator: torch.Generator, uniform: bool = False
) -> Tensor:
    """Computes `velocity_loss` at noise levels and noise from the generator."""
    sigmas = draw_sigmas(len(latents), num_image_tokens(*latents.shape[-2:]), generator, uniform)
    noise = torch.randn(latents.shape, generator=generator, device=generator.device)
    return velocity_loss(velocity, latents, sigmas, noise)


def thin_padding(
    context: Tensor, table: Tensor, num_valid: int, length: int, generator: torch.Generator
) -> tuple[Tensor, Attention]:
    """Keeps `length` of the text states, with an attention that makes up for the rest: less to compute.

    All but the last PADDING_KEPT states are the first of the context; those are drawn from the padding
    behind, and each weighs in every softmax as much as all that it stands for, so that padding has the part
    that it has when a picture is made. context: (B, L, D), of which at most `num_valid` in a row are not
    padding. table: the rotary table of all text states and the image's tokens. Raises ValueError when
    `length` cuts off a state that is not padding.
    """
    total, first = context.shape[1], length - PADDING_KEPT
    if not num_valid <= first or not length <= total:
        raise ValueError(
            f"captions have up to {num_valid} text states, but context_tokens is {length}; from "
            f"{num_valid + PADDING_KEPT} to {total} are possible"
        )
    drawn = torch.randperm(total - first, generator=generator, device=generator.device)[:PADDING_KEPT]
    kept = torch.cat((torch.arange(first, device=drawn.device), first + drawn.sort().values))
    image = torch.arange(total, table.shape[2], device=drawn.device)
    pe = table[:, :, torch.cat((kept, image))]
    bias = torch.zeros(pe.shape[2], device=table.device)
    bias[first:length] = math.log((total - first) / PADDING_KEPT)

    def attention(q: Tensor, k: Tensor, v: Tensor, _: Tensor | None) -> Tensor:
        q, k = apply_rope(q, pe), apply_rope(k, pe)
        mask = bias.to(q.dtype).expand(1, 1, q.shape[2], -1)
        return functional.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)

    return context[:, kept], attention


def checkpointed(kind: str, index: int, block: nn.Module, *inputs: Any, **lean: Any) -> Any:
    """Calls a block (the `run` seam) so that its activations are computed again for gradients, not kept."""
    return checkpoint(block, *inputs, use_reentrant=False, **lean)
