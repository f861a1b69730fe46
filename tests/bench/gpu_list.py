"""Makes the implementations of the GPU bench by name, when they are first asked for."""

from dataclasses import replace

import torch
from gpu_models import (
    Comfy,
    Diffusers,
    comfyuis_kernels,
    cudnn_override,
    in_parts,
    loaded,
    modulation_on_device,
    native_model,
    no_rotary_table,
    our_model,
    scaled_behind,
    textbook_blocks,
)
from pack import compilation, low_precision
from weights import Weights

# Variants with one change each; U0-... is U0 without one of its features. `gpu_rows.NAMES` says which.
VARIANTS = {
    "N0c": ("N0", {"options": {"optimized_attention_override": cudnn_override}}),
    "U2": ("U1", {"is_split": True}),
    "U3-behind": ("U3", {"around": (scaled_behind,)}),
    "U5": ("U1", {"is_cached": True}),
    "U0-comfyui": ("U0", {"options": {"ovis_attention": "comfyui"}}),
    "U0-flash": ("U0", {"options": {"ovis_attention": "flash"}}),
    "U0-cudnn": ("U0", {"options": {"ovis_attention": "cudnn"}}),
    "U0-table": ("U0", {"sigmas": (), "around": (modulation_on_device,)}),
    "U0-parts": ("U0", {"around": (in_parts,)}),
    "U0-textbook": ("U0", {"around": (textbook_blocks,)}),
    "U0-joined": ("U0", {"around": (comfyuis_kernels,), "options": {"ovis_attention": "cudnn"}}),
    "U0-rope": ("U0", {"around": (no_rotary_table,)}),
    "U0-split": ("U0", {"is_split": True}),
}
FORMATS = {"U3": low_precision.FP8, "U3-int8": low_precision.INT8}
NEEDS_CUDA = ("N0c", "U0-flash", "U0-cudnn")
COMPILED = ("D1", "U1", "U2", "U3", "U3-behind", "U3-int8", "U5")


class Unavailable(Exception):
    """An error that tells why an implementation cannot run here."""


class Implementations:
    """The implementations by id; networks share the memory of `weights`, and implementations a network."""

    def __init__(self, config, weights: Weights, device: torch.device, backend: str):
        self.config = config
        self.weights = weights
        self.device = device
        self.backend = backend
        self._made: dict[str, Comfy | Diffusers] = {}

    def get(self, id: str) -> Comfy | Diffusers:
        """Gets an implementation. Raises Unavailable where it cannot run."""
        if id not in self._made:
            if id in NEEDS_CUDA and self.device.type != "cuda":
                raise Unavailable("needs CUDA")
            if id == "U3-behind" and (reason := self._never_scales_in_kernel()):
                raise Unavailable(reason)
            is_built = self.backend == "inductor" and id in COMPILED
            if is_built and (missing := compilation.missing_compiler(self.device.type)):
                raise Unavailable(missing)
            self._made[id] = self._make(id)
        return self._made[id]

    def _make(self, id: str) -> Comfy | Diffusers:
        if id in VARIANTS:
            base, changes = VARIANTS[id]
            return replace(self.get(base), **changes)
        match id:
            case "D0" | "D1":
                return Diffusers(self.config, self.weights, self.backend if id == "D1" else None)
            case "N0":
                return Comfy(loaded(native_model(self.weights)))
            case "U0":
                return self._ours()
            case "U1":
                return self._compiled(self.get("U0"))
            case "U3" | "U3-int8":
                return self._compiled(self._ours(FORMATS[id]))
        raise KeyError(id)

    def _ours(self, weight_format: str | None = None) -> Comfy:
        return Comfy(loaded(our_model(self.config, self.weights, weight_format)), is_tabulated=True)

    def _never_scales_in_kernel(self) -> str | None:
        product = low_precision.fp8_product(self.device)
        if product is None:
            return "this device multiplies no fp8"
        return (
            None if product is low_precision.scaled_in_kernel else "this device knows no other, so U3 is it"
        )

    def _compiled(self, implementation: Comfy) -> Comfy:
        model = compilation.compiled_model(implementation.patcher, self.backend)
        return replace(implementation, patcher=model)
