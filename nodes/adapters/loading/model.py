"""Three names -> MODEL, CLIP and VAE that belong together."""

import comfy.model_patcher
import comfy.sd

from ....ovis_core.files.checkpoint import open_checkpoint
from ....ovis_core.files.parts import AUTOENCODER, TEXT_ENCODER, TRANSFORMER, check_fit
from .autoencoder import load_autoencoder
from .diffusion_model import WEIGHT_DTYPES, load_diffusion_model
from .files import path_of
from .text_encoder import load_text_encoder


def load_model(
    model_name: str, text_encoder_name: str, vae_name: str, weight_dtype: str
) -> tuple[comfy.model_patcher.ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE]:
    """Checks all three before loading any. Raises ValueError when one is wrong or does not fit."""
    names = {TRANSFORMER: model_name, TEXT_ENCODER: text_encoder_name, AUTOENCODER: vae_name}
    paths = {part: path_of(part, name) for part, name in names.items()}
    check_fit(*(open_checkpoint(path, part).config for part, path in paths.items()))
    return (
        load_diffusion_model(paths[TRANSFORMER], WEIGHT_DTYPES[weight_dtype]),
        load_text_encoder(paths[TEXT_ENCODER]),
        load_autoencoder(paths[AUTOENCODER]),
    )
