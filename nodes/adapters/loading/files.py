"""Lists the files and folders in ComfyUI's model folders for each part, and finds a chosen one."""

import re
from pathlib import Path

import folder_paths

from ....ovis_core.files.parts import AUTOENCODER, TEXT_ENCODER, TRANSFORMER, Part

# ComfyUI's folder kinds, asked in this order. Whole diffusers pipelines lie under `diffusers`.
FOLDER_KINDS = {
    TRANSFORMER.subfolder: "diffusion_models",
    TEXT_ENCODER.subfolder: "text_encoders",
    AUTOENCODER.subfolder: "vae",
}
PIPELINES = "diffusers"
OWN_MODELS = Path(__file__).parents[3] / "models"
EXTENSIONS = (".safetensors", ".sft")
GGUF_PARTS = (TRANSFORMER, TEXT_ENCODER)
# Files that stand for their folder: shards, and the single files of diffusers and transformers.
FOLDER_FILE = re.compile(r"(-\d{5}-of-\d{5}|(^|[/\\])(model|diffusion_pytorch_model))\.safetensors$")


def offer_own_models() -> None:
    """Lists the models that come with the pack among ComfyUI's diffusers pipelines, and their LoRA."""
    folder_paths.add_model_folder_path(PIPELINES, str(OWN_MODELS))
    folder_paths.add_model_folder_path("loras", str(OWN_MODELS / "loras"))


def model_names() -> list[str]:
    """Lists diffusion models: files by their name, folders with a slash at the end."""
    return list(_paths(TRANSFORMER))


def text_encoder_names() -> list[str]:
    """Lists text encoders as `model_names` does."""
    return list(_paths(TEXT_ENCODER))


def vae_names() -> list[str]:
    """Lists autoencoders as `model_names` does."""
    return list(_paths(AUTOENCODER))


def path_of(part: Part, name: str) -> Path:
    """Finds a listed name. Raises ValueError for any other, so that no path can be smuggled in."""
    paths = _paths(part)
    if name not in paths:
        kind = FOLDER_KINDS[part.subfolder]
        raise ValueError(
            f"{name!r} is not in ComfyUI's models/{kind} folders (nor models/{PIPELINES}): put it there and "
            f"press R to refresh, or choose one of {list(paths)[:5]}"
        )
    return paths[name]


def _paths(part: Part) -> dict[str, Path]:
    kind = FOLDER_KINDS[part.subfolder]
    files: dict[str, Path] = {}
    folders: dict[str, Path] = {}
    names = [name for name in folder_paths.get_filename_list(kind) if name.lower().endswith(EXTENSIONS)]
    for name in names + (_gguf_names(kind) if part in GGUF_PARTS else []):
        if not name.isprintable():  # a name that is not valid text cannot be sent to the editor
            continue
        path = Path(folder_paths.get_full_path(kind, name) or "")
        parent = Path(name).parent
        if parent != Path() and FOLDER_FILE.search(name):
            folders.setdefault(parent.as_posix() + "/", path.parent)
        else:
            files[name] = path
    for root in map(Path, folder_paths.get_folder_paths(PIPELINES)):
        for pattern in (f"*/{part.subfolder}", f"*/*/{part.subfolder}"):
            for found in root.glob(pattern):
                folders.setdefault(found.parent.relative_to(root).as_posix() + "/", found.parent)
    return {**files, **dict(sorted(folders.items()))}


def _gguf_names(kind: str) -> list[str]:
    """Lists GGUF files, which ComfyUI's own lists leave out."""
    names = [
        name
        for root in folder_paths.get_folder_paths(kind)
        for name in folder_paths.recursive_search(root, excluded_dir_names=[".git"])[0]
    ]
    return sorted({name for name in names if name.lower().endswith(".gguf")})
