"""Implements Ovis-Image in plain PyTorch: text to image, one file per stage.

| stage                    | module                            | in -> out                             |
|--------------------------|-----------------------------------|---------------------------------------|
| prompt -> tokens         | `prompt`                          | str -> up to 284 ids                  |
| tokens -> text states    | `text_encoder`                    | -> (B, 256, 2048)                     |
| latents -> packed tokens | `latents`                         | (B, 16, H, W) -> (B, HW/4, 64)        |
| tokens -> velocity       | `transformer`, `rope`             | latents, sigma, text -> (B, 16, H, W) |
| its blocks               | `blocks`, `lean_blocks`, `layers` | (B, L, 3072) -> (B, L, 3072)          |
| noise -> latents         | `sampling`, `guidance`            | -> (B, 16, H, W)                      |
| latents -> image         | `autoencoder`                     | -> (B, 3, 8H, 8W)                     |

`residual_cache` skips steps that change little. `files` reads and writes the published files, `lora` does so
for LoRAs; `pipeline` runs all stages in one function. Nothing here imports ComfyUI, downloads, moves tensors
between devices or reads the environment.
"""

from .autoencoder import Autoencoder, AutoencoderConfig
from .files.checkpoint import Checkpoint, open_checkpoint
from .files.parts import AUTOENCODER, TEXT_ENCODER, TRANSFORMER
from .guidance import Guidance
from .pipeline import Pipeline, load_pipeline
from .prompt import PromptTokenizer, PromptTokens
from .sampling import flow_sigmas, guided, reference_noise, sample_dpmpp_2m, sample_euler, sample_heun
from .text_encoder import TextEncoder, TextEncoderConfig
from .transformer import OvisImageTransformer, TransformerConfig

__all__ = [
    "AUTOENCODER",
    "TEXT_ENCODER",
    "TRANSFORMER",
    "Autoencoder",
    "AutoencoderConfig",
    "Checkpoint",
    "Guidance",
    "OvisImageTransformer",
    "Pipeline",
    "PromptTokenizer",
    "PromptTokens",
    "TextEncoder",
    "TextEncoderConfig",
    "TransformerConfig",
    "flow_sigmas",
    "guided",
    "load_pipeline",
    "open_checkpoint",
    "reference_noise",
    "sample_dpmpp_2m",
    "sample_euler",
    "sample_heun",
]
