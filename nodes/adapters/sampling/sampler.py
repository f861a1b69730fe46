"""Runs ComfyUI's samplers on the core's schedule: SIGMAS, noise, and the sampling run itself."""

import time
from collections.abc import Callable

import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor

from ....ovis_core.latents import num_image_tokens
from ....ovis_core.sampling import flow_sigmas, reference_noise, total_steps
from .checks import FiniteChecks, check_finite

SAMPLER_NAMES = ["euler", *(name for name in comfy.samplers.SAMPLER_NAMES if name != "euler")]


def fit_latent(model, latent: dict) -> Tensor:
    """Gives the latent's samples the model's channels; an empty latent of any model fits, as in ComfyUI.

    Raises ValueError for a missing latent, one with NaN, one with another model's channels, or a noise mask
    that covers nothing.
    """
    samples = latent["samples"]
    if samples.is_nested or samples.ndim != 4 or 0 in samples.shape:
        raise ValueError(
            f"the latent has the shape {[*samples.shape]}, images have [batch, channels, height, width]; "
            "connect an Ovis-Image Empty Latent or a VAE Encode node"
        )
    samples = comfy.sample.fix_empty_latent_channels(model, samples, latent.get("downscale_ratio_spacial"))
    channels = model.get_model_object("latent_format").latent_channels
    if samples.shape[1] != channels:
        raise ValueError(
            f"the latent has {samples.shape[1]} channels, this model takes {channels}; make it with "
            "Ovis-Image Empty Latent, or encode the picture with Ovis-Image's VAE"
        )
    check_finite(samples, "the latent", "make it again")
    mask = latent.get("noise_mask")
    if mask is not None and not (mask > 0).any():
        raise ValueError(
            f"the mask covers nothing of the picture ({mask.shape[-1]} x {mask.shape[-2]} pixels), so "
            "nothing would be drawn: it is empty, or lies outside since the picture was scaled; move it back"
        )
    return samples


def schedule(model, samples: Tensor, steps: int, denoise: float) -> Tensor:
    """Makes the reference's sigmas for the latent's size, or those of a ModelSampling node on the model."""
    model_sampling = model.get_model_object("model_sampling")
    if not isinstance(model_sampling, comfy.model_sampling.CONST):
        raise ValueError(
            "this scheduler is for flow-matching models such as Ovis-Image or FLUX; connect one of those"
        )
    if not 0.0 <= denoise <= 1.0:
        raise ValueError(f"denoise must lie between 0 and 1, got {denoise}")
    if "model_sampling" not in model.object_patches:
        return flow_sigmas(steps, num_image_tokens(*samples.shape[-2:]), denoise)
    if denoise == 0.0:
        return torch.zeros(0)
    sigmas = comfy.samplers.calculate_sigmas(model_sampling, "simple", total_steps(steps, denoise))
    return sigmas.cpu()[-(steps + 1) :]


def make_noise(samples: Tensor, latent: dict, seed: int, kind: str) -> Tensor:
    """Draws noise for a seed as ComfyUI's samplers do (`comfyui`) or as the authors' code (`reference`)."""
    if kind == "reference":
        return reference_noise(tuple(samples.shape), seed).float()
    return comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))


def sample(
    guider,
    latent: dict,
    samples: Tensor,
    noise: Tensor,
    sampler_name: str,
    sigmas: Tensor,
    seed: int,
    tell: Callable[[str], None],
) -> dict:
    """Runs ComfyUI's sampler with previews and progress -> the latent with new samples.

    `tell` gets a line after every step: its number, the time a step takes, the time that is left.
    Raises ValueError when a step's result is not finite, naming the step.
    """
    model = guider.model_patcher
    steps = sigmas.shape[-1] - 1
    preview = latent_preview.prepare_callback(model, steps)
    ends = []
    checks = FiniteChecks("try weight_dtype bf16 or fp32, a LoRA less, or another sampler")

    def callback(step: int, denoised: Tensor, x: Tensor, total_steps: int) -> None:
        checks.add(denoised, f"step {step + 1} of {total_steps} (in {model.model.get_dtype_inference()})")
        preview(step, denoised, x, total_steps)
        ends.append(time.monotonic())
        tell(_progress(step + 1, total_steps, ends))

    result = guider.sample(
        noise,
        samples,
        comfy.samplers.sampler_object(sampler_name),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    checks.finish()
    out = {key: value for key, value in latent.items() if not key.startswith("downscale_ratio_")}
    return out | {"samples": result.to(comfy.model_management.intermediate_device())}


def _progress(step: int, total_steps: int, ends: list[float]) -> str:
    """Says how far a run is; `ends` are in seconds. Omits the first step's length, which includes loading."""
    if len(ends) < 2:
        return f"step {step} of {total_steps}"
    seconds = (ends[-1] - ends[0]) / (len(ends) - 1)
    if step == total_steps:
        return f"{total_steps} steps, {seconds:.2f} s each"
    left = seconds * (total_steps - step)
    return f"step {step} of {total_steps}, {seconds:.2f} s each, {left:.0f} s left"
