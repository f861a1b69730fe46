"""Converts the core's LoRA changes to ComfyUI's weight patches, and ComfyUI's to tensors for the core."""

import json
from collections.abc import Iterable

import comfy.lora
import torch
from comfy.weight_adapter import LoHaAdapter, LoKrAdapter, LoRAAdapter

from ....ovis_core.lora.read import Change

# ComfyUI's order of an adapter's weights, by the core's endings; None for those that the core leaves to it.
ORDERS = {
    LoRAAdapter: ("lora_up.weight", "lora_down.weight", "alpha", None, "dora_scale", None),
    LoHaAdapter: ("hada_w1_a", "hada_w1_b", "alpha", "hada_w2_a", "hada_w2_b", None, None, None),
    LoKrAdapter: (
        *("lokr_w1", "lokr_w2", "alpha", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"),
        *(None, None),
    ),
}


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
        """Adds the change to a weight, and scales its rows to the magnitude."""
        up, down, alpha, _, magnitude, _ = (
            w.to(weight.device, intermediate_dtype) if isinstance(w, torch.Tensor) else w
            for w in self.weights
        )
        scale = 1.0 if alpha is None else alpha / down.shape[0]
        merged = weight.to(intermediate_dtype) + scale * (up @ down)
        change = magnitude * merged / merged.norm(dim=1, keepdim=True) - weight
        weight += function(strength * change).to(weight.dtype)
        return weight


def patches_of(changes: Iterable[Change]) -> dict:
    """Makes ComfyUI's patches: {parameter or (parameter, (0, first row, rows)): patch}."""
    tensors, targets = {}, {}
    for number, change in enumerate(changes):
        key = f"diffusion_model.{change.parameter}"
        rows = change.rows
        targets[str(number)] = key if change.is_whole else (key, (0, rows.start, rows.stop - rows.start))
        tensors |= {f"{number}.{ending}": tensor for ending, tensor in change.tensors.items()}
    patches = comfy.lora.load_lora(tensors, targets)
    for target, patch in patches.items():
        if isinstance(patch, LoRAAdapter) and patch.weights[4] is not None:
            patches[target] = RowDora(patch.loaded_keys, patch.weights)
    return patches


def tensors_of(patch) -> dict[str, torch.Tensor] | None:
    """Gives a patch's tensors the core's endings; None for a method that the core leaves to ComfyUI."""
    if isinstance(patch, tuple) and patch[0] == "diff":
        return {"diff": patch[1][0]}
    tensors = {}
    for ending, value in zip(ORDERS.get(type(patch), ()), getattr(patch, "weights", ()), strict=False):
        if value is None:
            continue
        if ending is None:
            return None
        tensors[ending] = torch.as_tensor(value)
    return tensors or None


def alpha_of(metadata: dict[str, str] | None, name: str) -> float | None:
    """Reads lora_alpha of all layers, which diffusers and PEFT write into the metadata of the file `name`.

    Raises ValueError for settings that would change the strength of layers and are not supported.
    """
    try:
        entries = json.loads((metadata or {}).get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        raise ValueError(f"the adapter metadata of {name} is damaged; download the file again")
    settings = {key.rpartition(".")[2]: value for key, value in entries.items()}
    alpha = settings.get("lora_alpha")
    if (
        settings.get("alpha_pattern")
        or settings.get("use_rslora")
        or type(alpha) not in (int, float, type(None))
    ):
        raise ValueError(f"{name} scales its layers by alpha_pattern or rsLoRA, which is not supported")
    return alpha
