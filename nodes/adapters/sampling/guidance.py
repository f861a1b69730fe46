"""Wraps the core's guidance into a ComfyUI guider: GUIDER."""

import math

import comfy.model_sampling
import comfy.samplers
from torch import Tensor

from ....ovis_core.guidance import Guidance
from .checks import check_finite


class FlowGuider(comfy.samplers.CFGGuider):
    """ComfyUI's guider with the core's intervals and corrections; without them, the same to the bit."""

    def __init__(self, model, positive, negative, guidance: Guidance):
        """Raises ValueError for missing or non-finite conditioning, and for other models than flow models."""
        super().__init__(model)
        self.guidance = guidance
        self.set_cfg(guidance.cfg)
        if not math.isfinite(guidance.cfg):
            raise ValueError(f"cfg must be a number, got {guidance.cfg}")
        if negative is None and guidance.cfg != 1.0:
            raise ValueError(
                f"cfg {guidance.cfg} needs a negative conditioning: connect an Ovis-Image Text Encode with "
                "an empty text (the reference's unconditional prompt), or set cfg to 1"
            )
        if not isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST):
            raise ValueError(
                "this guider is for flow-matching models such as Ovis-Image or FLUX; connect one of those"
            )
        for conditioning, name in ((positive, "positive"), (negative, "negative")):
            for states, _ in conditioning or ():
                check_finite(
                    states, f"the {name} conditioning", "encode the prompt again, with another dtype"
                )
        if guidance.cfg == 1.0:
            self.inner_set_conds({"positive": positive})
        else:
            self.set_conds(positive, negative)

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict | None = None, seed=None
    ) -> Tensor:
        """Predicts the denoised latents of x (B, C, H, W) at sigma (B,), the timestep."""
        guidance, options = self.guidance, model_options or {}
        # Reading from the device waits for the step before: so only where the answer depends on it.
        sigma = float(timestep[0]) if guidance.needs_sigma else math.nan
        if guidance.zero_init_steps:
            sigmas = options["transformer_options"]["sample_sigmas"]
            if sigma > sigmas[min(guidance.zero_init_steps, len(sigmas) - 1)]:
                return x  # a velocity of zero
        active = guidance.is_active(sigma)
        if active and (guidance.rescale or guidance.zero_star):
            # First, so that what other nodes do after guidance stays after it.
            after = [self._correct, *options.get("sampler_post_cfg_function", ())]
            options = {**options, "sampler_post_cfg_function": after}
        return comfy.samplers.sampling_function(
            self.inner_model,
            x,
            timestep,
            self.conds.get("negative"),
            self.conds["positive"],
            guidance.cfg if active else 1.0,
            model_options=options,
            seed=seed,
        )

    def _correct(self, args: dict) -> Tensor:
        """Combines ComfyUI's denoised latents of both branches, as velocities -> the guided latents."""
        x, sigma = args["input"], args["sigma"].view(-1, 1, 1, 1)
        positive, negative = ((x - args[name]) / sigma for name in ("cond_denoised", "uncond_denoised"))
        return x - sigma * self.guidance.join(positive, negative)


def plain_guidance(model, positive, negative, cfg: float) -> FlowGuider:
    """Makes a guider with plain classifier-free guidance at `cfg`."""
    return FlowGuider(model, positive, negative, Guidance(cfg))


def corrected_guidance(
    model,
    positive,
    negative,
    cfg: float,
    start: float,
    end: float,
    rescale: float,
    zero_star: bool,
    zero_init: int,
) -> FlowGuider:
    """Makes a guider with an interval and corrections. Raises ValueError when the interval is empty."""
    if start < end:
        raise ValueError(
            f"cfg_start {start} lies below cfg_end {end}; sigma falls from 1 to 0, so swap the two"
        )
    return FlowGuider(model, positive, negative, Guidance(cfg, start, end, rescale, zero_star, zero_init))
