"""Extends ComfyUI's patchers for our MODEL: LoRAs of every dialect, and offloaded modulation layers."""

import comfy.model_management
import comfy.model_patcher
from torch import nn

from ..lora.aliases import ROOT, AliasPatcher
from .hooked_weights import ExchangedWeights


class _ModulationPatcher:
    """A part of our patchers: clears the modulation's cached outputs when the model leaves its device."""

    def detach(self, unpatch_all: bool = True) -> nn.Module:
        """Detaches the model, and clears the modulation's cached outputs."""
        if unpatch_all:
            self.model.diffusion_model.modulation.forget()
        return super().detach(unpatch_all)


class OvisImagePatcher(AliasPatcher, _ModulationPatcher, ExchangedWeights, comfy.model_patcher.ModelPatcher):
    """The patcher without ComfyUI's dynamic VRAM: the modulation layers stay offloaded.

    They work as layers that ComfyUI offloads, and do not count in the model's size.
    """

    def model_size(self) -> int:
        """Counts the model's bytes without the modulation layers."""
        if not self.size:  # clones copy it
            kept_off = map(comfy.model_management.module_size, self._modulation().values())
            self.size = super().model_size() - sum(kept_off)
        return self.size

    def _load_list(self, *args, **kwargs) -> list[tuple]:
        kept_off = {*self._modulation().values()}
        return [entry for entry in super()._load_list(*args, **kwargs) if entry[-2] not in kept_off]

    def load(self, device_to=None, lowvram_model_memory=0, force_patch_weights=False, full_load=False):
        """Loads the model, and patches the modulation layers where they stay."""
        # ComfyUI's full load would move the modulation layers, too.
        memory = 1e32 if full_load else lowvram_model_memory
        super().load(device_to, memory, force_patch_weights)
        for name, layer in self._modulation().items():
            if getattr(layer, "comfy_patched_weights", False):
                continue
            for key in (f"{ROOT}{name}.weight", f"{ROOT}{name}.bias"):
                self.unpin_weight(key)
                self.patch_weight_to_device(key, device_to)
                layer.to(self.offload_device)
                self.pin_weight_to_device(key)
            layer.comfy_cast_weights = layer.comfy_patched_weights = True

    def _modulation(self) -> dict[str, nn.Module]:
        return self.model.diffusion_model.modulation.layers


class DynamicOvisImagePatcher(AliasPatcher, _ModulationPatcher, comfy.model_patcher.ModelPatcherDynamic):
    """The patcher with ComfyUI's dynamic VRAM: the modulation layers are offloaded first."""

    static_class = OvisImagePatcher

    def _load_list(self, *args, **kwargs) -> list[tuple]:
        entries = super()._load_list(*args, **kwargs)
        modulation = {*self.model.diffusion_model.modulation.layers.values()}
        # ComfyUI sorts by whether an entry is large, then by size.
        return [
            (True, 1, *rest) if rest[-2] in modulation else (is_large, size, *rest)
            for is_large, size, *rest in entries
        ]


def patch_model(
    model: nn.Module, disable_dynamic: bool = False, static_class: type[OvisImagePatcher] = OvisImagePatcher
) -> comfy.model_patcher.ModelPatcher:
    """Makes the patcher that ComfyUI would use on its device; `static_class` where dynamic VRAM is off."""
    device = comfy.model_management.get_torch_device()
    is_dynamic = issubclass(comfy.model_patcher.CoreModelPatcher, comfy.model_patcher.ModelPatcherDynamic)
    if disable_dynamic or not is_dynamic or comfy.model_management.is_device_cpu(device):
        patcher_class = static_class
    else:
        patcher_class = DynamicOvisImagePatcher
    return patcher_class(
        model, load_device=device, offload_device=comfy.model_management.unet_offload_device()
    )
