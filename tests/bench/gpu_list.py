"""The implementations of the GPU bench by name, made when they are first asked for."""

from dataclasses import replace

import torch
from gpu_models import (
    Comfy,
    Diffusers,
    cudnn_override,
    in_one_part,
    native_model,
    no_joined_operations,
    no_kept_text,
    no_rotary_table,
    our_model,
)
from pack import compilation, low_precision
from weights import Weights

# What U0 is without one of its features, one at a time; `gpu_rows.NAMES` says which.
ABLATIONS = {
    "U0-comfyui": {"options": {"ovis_attention": "comfyui"}},
    "U0-flash": {"options": {"ovis_attention": "flash"}},
    "U0-cudnn": {"options": {"ovis_attention": "cudnn"}},
    "U0-table": {"is_tabulated": False},
    "U0-text": {"around": (no_kept_text,)},
    "U0-parts": {"around": (in_one_part,)},
    "U0-joined": {"around": (no_joined_operations,)},
    "U0-rope": {"around": (no_rotary_table,)},
    "U0-split": {"is_split": True},
}
NEEDS_CUDA = ("N0c", "U0-flash", "U0-cudnn")
COMPILED = ("D1", "U1", "U2", "U3", "U5")


class Unavailable(Exception):
    """Why an implementation cannot run here."""


class Implementations:
    """`get(id)`; networks share the memory of `weights`, and one network serves as many as can share it."""

    def __init__(self, config, weights: Weights, device: torch.device, backend: str):
        self.config = config
        self.weights = weights
        self.device = device
        self.backend = backend
        self._made: dict[str, Comfy | Diffusers] = {}

    def get(self, id: str) -> Comfy | Diffusers:
        if id not in self._made:
            if id in NEEDS_CUDA and self.device.type != "cuda":
                raise Unavailable("needs CUDA")
            is_built = self.backend == "inductor" and id in COMPILED
            if is_built and (missing := compilation.missing_compiler(self.device.type)):
                raise Unavailable(missing)
            self._made[id] = self._make(id)
        return self._made[id]

    def _make(self, id: str) -> Comfy | Diffusers:
        if id in ABLATIONS:
            return replace(self.get("U0"), **ABLATIONS[id])
        match id:
            case "D0" | "D1":
                return Diffusers(self.config, self.weights, self.backend if id == "D1" else None)
            case "N0":
                return Comfy(native_model(self.weights))
            case "N0c":
                return replace(self.get("N0"), options={"optimized_attention_override": cudnn_override})
            case "U0":
                return Comfy(our_model(self.config, self.weights), is_tabulated=True)
            case "U1":
                return self._compiled(self.get("U0"))
            case "U2":
                return replace(self.get("U1"), is_split=True)
            case "U3":
                return self._compiled(
                    Comfy(our_model(self.config, self.weights, low_precision.FP8), is_tabulated=True)
                )
            case "U5":
                return replace(self.get("U1"), is_cached=True)
        raise KeyError(id)

    def _compiled(self, implementation: Comfy) -> Comfy:
        model = compilation.compiled_model(implementation.patcher, self.backend)
        return replace(implementation, patcher=model)
