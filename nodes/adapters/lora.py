"""The core's LoRA changes as ComfyUI weight patches on a MODEL."""

import json
import math
from pathlib import Path

import comfy.lora
import comfy.utils
import folder_paths
import torch
from comfy.weight_adapter import LoRAAdapter
from safetensors import safe_open

from ...ovis_core.lora import Lora, read_lora
from ...ovis_core.lora_export import DIALECTS, write_lora
from ...ovis_core.storage import read_header, write_tensors
from .diffusion_model import ComfyTransformer

__all__ = ["DIALECTS", "convert_lora", "load_lora", "lora_names"]


class RowDora(LoRAAdapter):
    """DoRA (arXiv 2402.09353) with a magnitude a row, as PEFT trains it: m (W + BA) / |W + BA|.

    ComfyUI's own divides by |W| there, which is another weight.
    """

    def calculate_weight(
        self,
        weight,
        key,
        strength,
        strength_model,
        offset,
        function,
        intermediate_dtype=torch.float32,
        original=None,
    ):
        up, down, alpha, _, magnitude, _ = (
            w.to(weight.device, intermediate_dtype) if isinstance(w, torch.Tensor) else w
            for w in self.weights
        )
        scale = 1.0 if alpha is None else alpha / down.shape[0]
        merged = weight.to(intermediate_dtype) + scale * (up @ down)
        change = magnitude * merged / merged.norm(dim=1, keepdim=True) - weight
        weight += function(strength * change).to(weight.dtype)
        return weight


def lora_names() -> list[str]:
    return [
        name
        for name in folder_paths.get_filename_list("loras")
        if name.lower().endswith((".safetensors", ".sft"))
    ]


def load_lora(model, lora_name: str, strength: float):
    """A clone of the MODEL with the LoRA on it, and a report of what was matched.

    Raises ValueError when the model is not Ovis-Image, or as `ovis_core.lora.read_lora` does.
    """
    if not math.isfinite(strength):
        raise ValueError(f"strength_model must be a number, got {strength}")
    path, lora = _read(model, lora_name)
    clone = model.clone()
    _patch(clone, lora, strength)
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
    network = model.model.diffusion_model
    if not isinstance(network, ComfyTransformer):
        raise ValueError(
            "this node is for the MODEL of the Ovis-Image Loader; use the stock LoRA loader for others"
        )
    path = Path(folder_paths.get_full_path_or_raise("loras", lora_name))
    read_header(path)
    return path, read_lora(comfy.utils.load_torch_file(str(path)), network.config, path.name, _alpha(path))


def _patch(model, lora: Lora, strength: float) -> None:
    """Gives the changes to ComfyUI's own LoRA reader, which knows each method's arithmetic, by number."""
    tensors, targets = {}, {}
    for number, change in enumerate(lora.changes):
        key = f"diffusion_model.{change.parameter}"
        targets[str(number)] = key if change.is_whole else (key, (0, change.start, change.length))
        tensors |= {f"{number}.{ending}": tensor for ending, tensor in change.tensors.items()}
    patches = comfy.lora.load_lora(tensors, targets)
    for target, patch in patches.items():
        if isinstance(patch, LoRAAdapter) and patch.weights[4] is not None:
            patches[target] = RowDora(patch.loaded_keys, patch.weights)
    applied = model.add_patches(patches, strength)
    if len(applied) != len(lora.changes):
        raise ValueError(
            f"ComfyUI took {len(applied)} of {len(lora.changes)} changes of this LoRA; report this file"
        )


def _alpha(path: Path) -> float | None:
    """lora_alpha of all layers, which diffusers and PEFT write beside the tensors.

    Raises ValueError for settings that would change the strength of layers and are not supported.
    """
    with safe_open(path, "pt") as file:
        metadata = (file.metadata() or {}).get("lora_adapter_metadata", "{}")
    try:
        entries = json.loads(metadata)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        raise ValueError(f"the adapter metadata of {path.name} is damaged; download the file again")
    settings = {key.rpartition(".")[2]: value for key, value in entries.items()}
    alpha = settings.get("lora_alpha")
    if (
        settings.get("alpha_pattern")
        or settings.get("use_rslora")
        or type(alpha) not in (int, float, type(None))
    ):
        raise ValueError(f"{path.name} scales its layers by alpha_pattern or rsLoRA, which is not supported")
    return alpha


def _report(name: str, lora: Lora) -> str:
    report = f"{name}: {lora.num_layers} modules matched, all applied"
    if lora.unmatched:
        report += f"; {len(lora.unmatched)} tensors belong to no layer: " + ", ".join(
            key.encode("ascii", "backslashreplace").decode()[:200] for key in lora.unmatched[:10]
        )
    return report
