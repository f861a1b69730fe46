"""A small model with random weights in any of the published layouts: `python tests/tiny_model.py LAYOUT
FOLDER`.

Same classes, same files, same names as the released model; the pictures are noise. Head size 128, so that
ComfyUI's own FLUX class loads the diffusion model too. The tokenizer is the real one, which ComfyUI ships.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
LAYOUTS = ("authors", "comfyui", "diffusers")


def import_by_path(name: str, path: Path) -> ModuleType:
    """Imports a module or package without putting its folder on sys.path, where our `nodes` would hide
    ComfyUI's.
    """
    if name in sys.modules:
        return sys.modules[name]
    package = path / "__init__.py" if path.is_dir() else path
    locations = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(name, package, submodule_search_locations=locations)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


import_by_path("ovis_core", ROOT / "ovis_core")

import torch  # noqa: E402

from ovis_core.autoencoder import Autoencoder, AutoencoderConfig  # noqa: E402
from ovis_core.files import export  # noqa: E402
from ovis_core.files import parts as file_parts  # noqa: E402
from ovis_core.text_encoder import TextEncoder, TextEncoderConfig  # noqa: E402
from ovis_core.transformer import OvisImageTransformer, TransformerConfig  # noqa: E402

TRANSFORMER = TransformerConfig(
    hidden_size=256, num_heads=2, depth=2, depth_single_blocks=2, context_dim=32, mlp_size=1024
)
TEXT_ENCODER = TextEncoderConfig(
    hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=64
)
AUTOENCODER = AutoencoderConfig(channels=(32, 32, 64, 64))


def tiny_parts(seed: int = 0) -> tuple[OvisImageTransformer, TextEncoder, Autoencoder]:
    """The three networks, float32, with weights that keep activations of order one and let every input be
    felt.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = OvisImageTransformer(TRANSFORMER), TextEncoder(TEXT_ENCODER), Autoencoder(AUTOENCODER)
    for part in parts:
        part.eval().requires_grad_(False)
        for name, parameter in part.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            elif "norm" in name and name.endswith("weight"):
                parameter.normal_(1, 0.1, generator=generator)
            else:
                parameter.normal_(0, 0.1, generator=generator)
    return parts


def tokenizer_files() -> Path:
    """The tokenizer that ComfyUI ships."""
    return Path(os.environ["COMFYUI_PATH"]) / "comfy" / "text_encoders" / "qwen25_tokenizer"


def write(layout: str, models: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, str]:
    """Writes the model below a ComfyUI `models` folder -> the three names the loader node lists it under."""
    transformer, text_encoder, autoencoder = (part.to(dtype) for part in tiny_parts(seed))
    if layout == "diffusers":
        folder = models / "diffusers" / "Ovis-Image-tiny"
        export.save(
            file_parts.TRANSFORMER, transformer, folder / "transformer", layout, max_shard_bytes=4 * 10**6
        )
        export.save(file_parts.TEXT_ENCODER, text_encoder, folder / "text_encoder", layout)
        export.save(file_parts.AUTOENCODER, autoencoder, folder / "vae", layout)
        shutil.copytree(tokenizer_files(), folder / "tokenizer", dirs_exist_ok=True)
        return dict.fromkeys(("model_name", "text_encoder_name", "vae_name"), "Ovis-Image-tiny/")
    for subfolder in ("diffusion_models", "text_encoders", "vae"):
        (models / subfolder).mkdir(parents=True, exist_ok=True)
    names = {
        "authors": ("ovis_image_tiny.safetensors", "Ovis2.5-2B-tiny/", "ae_tiny.safetensors"),
        "comfyui": (
            "ovis_image_tiny_comfyui.safetensors",
            "ovis_2.5_tiny.safetensors",
            "ae_tiny.safetensors",
        ),
    }[layout]
    export.save(file_parts.TRANSFORMER, transformer, models / "diffusion_models" / names[0], layout)
    export.save(file_parts.TEXT_ENCODER, text_encoder, models / "text_encoders" / names[1], layout)
    export.save(file_parts.AUTOENCODER, autoencoder, models / "vae" / names[2], "flux")
    if layout == "authors":
        shutil.copytree(tokenizer_files(), models / "text_encoders" / names[1], dirs_exist_ok=True)
    return dict(zip(("model_name", "text_encoder_name", "vae_name"), names, strict=True))


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
