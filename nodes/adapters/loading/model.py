"""Loads a MODEL, CLIP and VAE that belong together, by their three names."""

import comfy.model_patcher
import comfy.sd

from ....ovis_core.files.checkpoint import open_checkpoint
from ....ovis_core.files.parts import AUTOENCODER, TEXT_ENCODER, TRANSFORMER, check_fit
from ..weights.formats import WEIGHT_DTYPES
from .autoencoder import autoencoder_of
from .diffusion_model import diffusion_model_of
from .files import path_of
from .text_encoder import text_encoder_of


def load_model(
    model_name: str, text_encoder_name: str, vae_name: str, weight_dtype: str
) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """Checks all three before loading any. Raises ValueError when one is wrong or does not fit."""
    transformer = open_checkpoint(path_of(TRANSFORMER, model_name), TRANSFORMER)
    text_encoder = open_checkpoint(path_of(TEXT_ENCODER, text_encoder_name), TEXT_ENCODER)
    autoencoder = open_checkpoint(path_of(AUTOENCODER, vae_name), AUTOENCODER)
    check_fit(transformer.config, text_encoder.config, autoencoder.config)
    return (
        diffusion_model_of(transformer, WEIGHT_DTYPES[weight_dtype]),
        text_encoder_of(text_encoder),
        autoencoder_of(autoencoder),
    )
