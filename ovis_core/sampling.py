"""Defines the flow-matching schedule and its solvers.

x_t = (1 - sigma) x0 + sigma eps; a velocity is eps - x0, so that x0 = x - sigma velocity. B batch, C
channels, H and W latent pixels. The solvers follow k-diffusion's conventions (sigmas fall to 0, callbacks
see the denoised estimate).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .guidance import Guidance

Velocity = Callable[[Tensor, Tensor], Tensor]  # latents (B, C, H, W), sigma (B,) -> velocity (B, C, H, W)
Callback = Callable[[int, Tensor], None]  # index of the finished step, its denoised latents

# The shift of the schedule is linear in the number of image tokens through these two points (FLUX's numbers).
MIN_TOKENS, MIN_MU = 256, 0.5
MAX_TOKENS, MAX_MU = 4096, 1.15
MAX_STEPS = 1_000_000


def shift_mu(num_tokens: int) -> float:
    """Computes the schedule's mu for an image of `num_tokens` tokens (16x16 pixels each); not clamped."""
    return MIN_MU + (MAX_MU - MIN_MU) * (num_tokens - MIN_TOKENS) / (MAX_TOKENS - MIN_TOKENS)


def flow_sigmas(steps: int, num_tokens: int, denoise: float = 1.0) -> Tensor:
    """Makes the reference's schedule: `steps` + 1 sigmas from 1 down to 0, float32.

    With `denoise` below 1, the last `steps` steps of a schedule of `steps / denoise`, as for image to image;
    with 0, none. Computed in float32 like ComfyUI's ModelSamplingFlux, whose own grid it equals to the bit
    at mu 1.15. Raises ValueError for steps below 1 or a denoise outside 0 to 1.
    """
    if steps < 1 or not 0.0 <= denoise <= 1.0:
        raise ValueError(f"steps must be at least 1 and denoise from 0 to 1, got {steps} and {denoise}")
    if denoise == 0.0:
        return torch.zeros(0)
    t = torch.arange(steps, 0, -1) / total_steps(steps, denoise)
    shift = math.exp(shift_mu(num_tokens))
    return torch.cat((shift / (shift + (1 / t - 1)), torch.zeros(1)))


def total_steps(steps: int, denoise: float) -> int:
    """Computes the length of the schedule whose last `steps` steps are run.

    Raises ValueError when that length is not sensible.
    """
    if steps > MAX_STEPS * denoise:
        raise ValueError(
            f"{steps} steps at a denoise of {denoise} are the end of too long a schedule; use more denoise"
        )
    return int(steps / denoise)


def guided(positive: Velocity, negative: Velocity, guidance: Guidance) -> Velocity:
    """Joins the two velocities into one; the negative is computed only where guidance is active."""

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        if not guidance.is_active(sigma[0]):
            return positive(x, sigma)
        return guidance.join(positive(x, sigma), negative(x, sigma))

    return velocity


def reference_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Draws the authors' starting noise in bfloat16 on the CPU: it differs from rounded float32 noise."""
    return torch.randn(shape, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(seed))


def sample_euler(velocity: Velocity, x: Tensor, sigmas: Tensor, callback: Callback | None = None) -> Tensor:
    """Runs Euler's method, the reference's sampler: one velocity per step."""
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        v = velocity(x, sigma.expand(len(x)))
        if callback:
            callback(i, x - sigma * v)
        x = x + (sigma_next - sigma) * v
    return x


def sample_heun(velocity: Velocity, x: Tensor, sigmas: Tensor, callback: Callback | None = None) -> Tensor:
    """Runs Heun's method (arXiv 2206.00364, algorithm 1, no churn), two velocities a step, one at the end."""
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        v = velocity(x, sigma.expand(len(x)))
        if callback:
            callback(i, x - sigma * v)
        euler = x + (sigma_next - sigma) * v
        if sigma_next == 0:
            x = euler
        else:
            v_next = velocity(euler, sigma_next.expand(len(x)))
            x = x + (sigma_next - sigma) * (v + v_next) / 2
    return x


def sample_dpmpp_2m(
    velocity: Velocity, x: Tensor, sigmas: Tensor, callback: Callback | None = None
) -> Tensor:
    """Runs DPM-Solver++(2M) (arXiv 2211.01095) in -log sigma, as k-diffusion and ComfyUI do."""
    last: tuple[Tensor, Tensor] | None = None  # denoised, h
    for i, (sigma, sigma_next) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = x - sigma * velocity(x, sigma.expand(len(x)))
        if callback:
            callback(i, denoised)
        h = sigma.log() - sigma_next.log()
        if last is None or sigma_next == 0:
            estimate = denoised
        else:
            last_denoised, last_h = last
            r = last_h / h
            estimate = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * last_denoised
        x = (sigma_next / sigma) * x - torch.expm1(-h) * estimate
        last = denoised, h
    return x


SOLVERS: dict[str, Callable[..., Tensor]] = {
    "euler": sample_euler,
    "heun": sample_heun,
    "dpmpp_2m": sample_dpmpp_2m,
}
