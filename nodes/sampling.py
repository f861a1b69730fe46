"""Samples: schedule, guidance, sampler -> SIGMAS, GUIDER, LATENT."""

from functools import partial

from comfy_api.latest import io, ui
from server import PromptServer

from .adapters.sampling.guidance import corrected_guidance, plain_guidance
from .adapters.sampling.residual_cache import cache_report
from .adapters.sampling.sampler import SAMPLER_NAMES, fit_latent, make_noise, sample, schedule

CATEGORY = "Ovis-Image"
STEPS = {"default": 50, "min": 1, "max": 10000}
CFG = {"default": 5.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}
CFG_TOOLTIP = "Guidance scale. 5 is the reference; 1 is none, at half the time."
NEGATIVE_TOOLTIP = (
    "What guidance leads away from: an Ovis-Image Text Encode, empty for the reference. Not needed at cfg 1."
)
DENOISE = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}
DENOISE_TOOLTIP = (
    "1 makes a new picture; less keeps more of the connected latent and runs the last part of the schedule."
)


class OvisImageScheduler(io.ComfyNode):
    """A node that makes the schedule's sigmas."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisImageScheduler",
            display_name="Ovis-Image Scheduler",
            category=CATEGORY,
            description="The reference's noise schedule, which depends on the picture's size. For "
            "SamplerCustomAdvanced.",
            search_aliases=["ovis", "sigmas", "schedule", "shift", "basic scheduler"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model. A ModelSampling node on it overrides the size-dependent shift.",
                ),
                io.Latent.Input(
                    "latent_image", tooltip="The latent to be sampled; only its size matters here."
                ),
                io.Int.Input(
                    "steps", **STEPS, tooltip="How many steps; the reference takes 50, 20 is a draft."
                ),
                io.Float.Input("denoise", **DENOISE, tooltip=DENOISE_TOOLTIP),
            ],
            outputs=[io.Sigmas.Output(tooltip="Noise levels from 1 to 0, one more than there are steps.")],
        )

    @classmethod
    def execute(cls, model, latent_image: dict, steps: int, denoise: float) -> io.NodeOutput:
        return io.NodeOutput(schedule(model, fit_latent(model, latent_image), steps, denoise))


class OvisImageGuider(io.ComfyNode):
    """A node that makes a guider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        level = {"min": 0.0, "max": 1.0, "step": 0.01}
        return io.Schema(
            node_id="OvisImageGuider",
            display_name="Ovis-Image Guider",
            category=CATEGORY,
            description="Guidance for SamplerCustomAdvanced: the reference's, in an interval of noise "
            "levels, or corrected.",
            search_aliases=[
                "ovis",
                "cfg",
                "guidance",
                "cfg guider",
                "rescale",
                "cfg zero star",
                "limited interval",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model."),
                io.Conditioning.Input("positive", tooltip="What to draw."),
                io.Conditioning.Input("negative", optional=True, tooltip=NEGATIVE_TOOLTIP),
                io.Float.Input("cfg", **CFG, tooltip=CFG_TOOLTIP),
                io.Float.Input(
                    "cfg_start",
                    default=1.0,
                    **level,
                    tooltip="Guide from this noise level (sigma, 1 is pure noise) down; above it the "
                    "negative is not computed.",
                ),
                io.Float.Input(
                    "cfg_end",
                    default=0.0,
                    **level,
                    tooltip="Guide down to this noise level (sigma, 0 is the finished picture); below it, "
                    "half the time.",
                ),
                io.Float.Input(
                    "cfg_rescale",
                    default=0.0,
                    **level,
                    tooltip="Draws the contrast of a guided picture back to the unguided one's; 0 is off, "
                    "0.7 is usual.",
                ),
                io.Boolean.Input(
                    "cfg_zero_star",
                    default=False,
                    tooltip="CFG-Zero*: scales the negative to fit the positive before guiding, for each "
                    "picture.",
                ),
                io.Int.Input(
                    "zero_init_steps",
                    default=0,
                    min=0,
                    max=100,
                    tooltip="CFG-Zero* also leaves out the first steps; its paper takes 1 of 28.",
                ),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        positive,
        cfg,
        cfg_start,
        cfg_end,
        cfg_rescale,
        cfg_zero_star,
        zero_init_steps,
        negative=None,
    ) -> io.NodeOutput:
        corrections = cfg_start, cfg_end, cfg_rescale, cfg_zero_star, zero_init_steps
        return io.NodeOutput(corrected_guidance(model, positive, negative, cfg, *corrections))


class OvisImageSampler(io.ComfyNode):
    """A node that samples a latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisImageSampler",
            display_name="Ovis-Image Sampler",
            category=CATEGORY,
            description=(
                "Makes a latent picture as the reference does: its schedule for the picture's size, 50 "
                "Euler steps, guidance 5."
            ),
            search_aliases=["ovis", "ksampler", "sample", "generate", "denoise"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model. A ModelSampling node on it overrides the size-dependent shift.",
                ),
                io.Conditioning.Input("positive", tooltip="What to draw."),
                io.Conditioning.Input("negative", optional=True, tooltip=NEGATIVE_TOOLTIP),
                io.Latent.Input(
                    "latent_image", tooltip="An empty latent for a new picture, or an encoded one to change."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Picks the noise; the same seed gives the same picture.",
                ),
                io.Int.Input(
                    "steps", **STEPS, tooltip="How many steps; the reference takes 50, 20 is a draft."
                ),
                io.Float.Input("cfg", **CFG, tooltip=CFG_TOOLTIP),
                io.Combo.Input(
                    "sampler_name",
                    options=SAMPLER_NAMES,
                    default="euler",
                    tooltip="The solver; euler is the reference.",
                ),
                io.Float.Input("denoise", **DENOISE, tooltip=DENOISE_TOOLTIP),
                io.Combo.Input(
                    "noise",
                    options=["comfyui", "reference"],
                    default="comfyui",
                    tooltip=(
                        "comfyui: the noise of every sampler here. reference: the authors' bfloat16 noise, "
                        "to repeat a picture of their code from its seed."
                    ),
                ),
            ],
            outputs=[io.Latent.Output(tooltip="The finished latent, for VAE decoding.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, model, positive, latent_image, seed, steps, cfg, sampler_name, denoise, noise, negative=None
    ) -> io.NodeOutput:
        samples = fit_latent(model, latent_image)
        sigmas = schedule(model, samples, steps, denoise)
        guider = plain_guidance(model, positive, negative, cfg)
        start = make_noise(samples, latent_image, seed, noise)
        tell = partial(PromptServer.instance.send_progress_text, node_id=cls.hidden.unique_id)
        latent = sample(guider, latent_image, samples, start, sampler_name, sigmas, seed, tell)
        report = cache_report(model)
        return io.NodeOutput(latent, ui=ui.PreviewText(report) if report else None)
