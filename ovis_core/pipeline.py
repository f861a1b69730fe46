"""Runs the reference, prompt -> image, without ComfyUI."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .autoencoder import Autoencoder, denormalize
from .blocks import call_block
from .files.checkpoint import open_checkpoint
from .files.parts import AUTOENCODER, TEXT_ENCODER, TRANSFORMER, Part, check_fit
from .guidance import Guidance
from .latents import PATCH_SIZE, VAE_FACTOR, num_image_tokens
from .prompt import PromptTokenizer
from .residual_cache import CacheSettings, ResidualCache, cached
from .sampling import SOLVERS, flow_sigmas, guided, reference_noise
from .text_encoder import TextEncoder
from .transformer import OvisImageTransformer

log = logging.getLogger(__name__)

SIZE_STEP = VAE_FACTOR * PATCH_SIZE  # image pixels per token, each way


@dataclass
class Pipeline:
    """The four parts of a model, on one device and in one dtype."""

    tokenizer: PromptTokenizer
    text_encoder: TextEncoder
    transformer: OvisImageTransformer
    autoencoder: Autoencoder

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str,
        negative_prompt: str = "",
        width: int = 1024,
        height: int = 1024,
        steps: int = 50,
        cfg: float = 5.0,
        seed: int = 0,
        sampler: str = "euler",
        noise: Tensor | None = None,
        callback: Callable[[int, Tensor], None] | None = None,
        cache: CacheSettings | None = None,
    ) -> Tensor:
        """Makes an image (1, 3, height, width) in [0, 1]; sides in pixels are floored to multiples of 16.

        `noise` (B, C, height / 8, width / 8) replaces the reference's noise of `seed`, for as many images.
        `callback` gets the index of each finished step and its denoised latents. `cache` skips steps that
        change little, which changes the picture; without it, all are computed.
        """
        latents = self.sample(
            prompt,
            negative_prompt,
            width=width,
            height=height,
            steps=steps,
            cfg=cfg,
            seed=seed,
            sampler=sampler,
            noise=noise,
            callback=callback,
            cache=cache,
        )
        weight = self.autoencoder.get_parameter("decoder.conv_in.weight")
        image = self.autoencoder.decode(denormalize(latents).to(weight.dtype))
        return (image.float() / 2 + 0.5).clamp(0, 1)

    @torch.inference_mode()
    def sample(
        self,
        prompt: str,
        negative_prompt: str = "",
        *,
        width: int,
        height: int,
        steps: int,
        cfg: float,
        seed: int = 0,
        sampler: str = "euler",
        noise: Tensor | None = None,
        callback: Callable[[int, Tensor], None] | None = None,
        cache: CacheSettings | None = None,
    ) -> Tensor:
        """Makes the latents (1, C, height / 8, width / 8) of that image, float32, in the MMDiT's scale."""
        if min(width, height) < SIZE_STEP:
            raise ValueError(
                f"a picture of {width} x {height} pixels is too small, {SIZE_STEP} a side are the least"
            )
        weight = self.transformer.img_in.weight
        height, width = (side // SIZE_STEP * PATCH_SIZE for side in (height, width))  # latent pixels
        sigmas = flow_sigmas(steps, num_image_tokens(height, width)).to(weight.device)
        if noise is None:
            noise = reference_noise(
                (1, self.transformer.config.in_channels // PATCH_SIZE**2, height, width), seed
            )

        tokens = [self.tokenizer(text) for text in (prompt, negative_prompt)]
        for text, num_lost in (("prompt", tokens[0].num_lost), ("negative prompt", tokens[1].num_lost)):
            if num_lost:
                log.warning("the %s is %d tokens too long; its end was cut off", text, num_lost)
        context = self.text_encoder([t.ids for t in tokens]).to(weight.dtype)

        residuals = ResidualCache(cache) if cache else None

        def velocity_of(branch: str, context: Tensor):
            return lambda x, sigma: self.transformer(
                x.to(weight.dtype),
                sigma,
                context.expand(len(x), -1, -1),
                run=residuals.forward([branch]) if residuals else call_block,
            ).float()

        velocity = guided(
            velocity_of("positive", context[:1]), velocity_of("negative", context[1:]), Guidance(cfg)
        )
        if residuals:
            velocity = cached(velocity, residuals)
        latents = SOLVERS[sampler](velocity, noise.to(weight.device, torch.float32), sigmas, callback)
        if residuals:
            log.info("%s", residuals.report)
        return latents


def load_pipeline(
    folder: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Pipeline:
    """Loads a diffusers folder, or the authors' files: ovis_image*, Ovis2.5-2B*/ and ae*.safetensors.

    Raises ValueError when a part is missing, is another model or does not fit the others.
    """
    folder = Path(folder)
    text_path = _part_path(folder, TEXT_ENCODER, "Ovis2.5-2B*")
    transformer = open_checkpoint(_part_path(folder, TRANSFORMER, "ovis_image*.safetensors"), TRANSFORMER)
    text_encoder = open_checkpoint(text_path, TEXT_ENCODER)
    autoencoder = open_checkpoint(_part_path(folder, AUTOENCODER, "ae*.safetensors"), AUTOENCODER)
    check_fit(transformer.config, text_encoder.config, autoencoder.config)
    tokenizer = tokenizer_folder(text_path)
    if tokenizer is None:
        raise ValueError(
            f"{text_path.name} has no tokenizer (tokenizer.json, or vocab.json and merges.txt); add its files"
        )
    return Pipeline(
        PromptTokenizer.from_folder(tokenizer, text_encoder.config.vocab_size),
        text_encoder.module(device, dtype),
        transformer.module(device, dtype),
        autoencoder.module(device, dtype),
    )


def tokenizer_folder(text_encoder: Path) -> Path | None:
    """Finds a text encoder's tokenizer: in its folder, or beside it as in a diffusers folder."""
    own = text_encoder if text_encoder.is_dir() else text_encoder.parent
    for folder in (own / "tokenizer", own, own.parent / "tokenizer"):
        if (folder / "tokenizer.json").is_file() or all(
            (folder / n).is_file() for n in ("vocab.json", "merges.txt")
        ):
            return folder
    return None


def _part_path(folder: Path, part: Part, pattern: str) -> Path:
    if (folder / part.subfolder).is_dir():
        return folder / part.subfolder
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(
            f"{folder} has {len(found)} entries for the {part.title} ({part.subfolder}/ or {pattern}), one "
            "is needed"
        )
    return found[0]
