"""Loads the core's LoRA changes as ComfyUI weight patches on a MODEL."""

import math
from pathlib import Path

import comfy.utils
import folder_paths

from ....ovis_core.files.storage import read_header, write_tensors
from ....ovis_core.lora.names import DIALECTS
from ....ovis_core.lora.read import Lora, read_lora
from ....ovis_core.lora.write import write_lora
from ..network.transformer import network_of
from .patches import alpha_of, patches_of

__all__ = ["DIALECTS", "convert_lora", "load_lora", "lora_names"]


def lora_names() -> list[str]:
    """Lists the safetensors files in ComfyUI's LoRA folders."""
    return [
        name
        for name in folder_paths.get_filename_list("loras")
        if name.lower().endswith((".safetensors", ".sft"))
    ]


def load_lora(model, lora_name: str, strength: float):
    """Puts the LoRA on a clone of the MODEL, and reports what was matched.

    Raises ValueError when the model is not Ovis-Image, or as `ovis_core.lora.read.read_lora` does.
    """
    if not math.isfinite(strength):
        raise ValueError(f"strength_model must be a number, got {strength}")
    path, lora = _read(model, lora_name)
    clone = model.clone()
    applied = clone.add_patches(patches_of(lora.changes), strength)
    if len(applied) != len(lora.changes):
        raise ValueError(
            f"ComfyUI took {len(applied)} of {len(lora.changes)} changes of this LoRA; report this file"
        )
    return clone, _report(path.name, lora)


def convert_lora(model, lora_name: str, dialect: str, filename_prefix: str) -> str:
    """Writes the LoRA in another dialect below the output folder -> the file's name there.

    Raises ValueError as `load_lora`, or for what the dialect cannot say.
    """
    path, lora = _read(model, lora_name)
    if lora.unmatched:
        raise ValueError(f"{_report(path.name, lora)}; a converted file would lack them")
    tensors = write_lora(lora, model.model.diffusion_model.config, dialect)
    output = folder_paths.get_output_directory()
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(filename_prefix, output)
    file = f"{name}_{dialect}_{counter:05}_.safetensors"
    write_tensors(tensors, Path(folder) / file)
    return (Path(subfolder) / file).as_posix()


def _read(model, lora_name: str) -> tuple[Path, Lora]:
    network = network_of(model, "this node matches LoRAs to the layers", "use the stock LoRA loader")
    path = Path(folder_paths.get_full_path_or_raise("loras", lora_name))
    read_header(path)
    tensors, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    return path, read_lora(tensors, network.config, path.name, alpha_of(metadata, path.name))


def _report(name: str, lora: Lora) -> str:
    report = f"{name}: {lora.num_layers} modules matched, all applied"
    if lora.unmatched:
        report += f"; {len(lora.unmatched)} tensors belong to no layer: " + ", ".join(
            key.encode("ascii", "backslashreplace").decode()[:200] for key in lora.unmatched[:10]
        )
    return report
