"""Supports quantised weights under ComfyUI's hooks, which change weights between a step's conditions.

ComfyUI writes a hook's weight into the parameter, and later the earlier weight. Quantised parameters do not
support this: here they are replaced.
"""

import comfy.lora
import comfy.utils
import torch
from comfy.hooks import EnumHookMode
from comfy.model_patcher import MemoryCounter
from comfy.quant_ops import QuantizedTensor


class ExchangedWeights:
    """Part of a ModelPatcher. The `model` has `exchanged_weights`: {key: the weight before}."""

    def patch_hook_weight_to_device(self, hooks, combined_patches, key, original_weights, memory_counter):
        """Replaces a quantised weight by one with a hook's patches."""
        weight = comfy.utils.get_attr(self.model, key)
        if key not in combined_patches or not isinstance(weight, QuantizedTensor):
            return super().patch_hook_weight_to_device(
                hooks, combined_patches, key, original_weights, memory_counter
            )
        hooked = self.hooked_weight(weight, key, combined_patches[key], original_weights)
        self._exchange(key, weight, hooked, memory_counter)
        if self.hook_mode == EnumHookMode.MaxSpeed:
            kept = hooked.to(self.room_for(weight, memory_counter))
            self.cached_hook_patches.setdefault(hooks, {})[key] = (kept, weight.device)

    def patch_cached_hook_weights(self, cached_weights, key, memory_counter):
        """Replaces a quantised weight by its cached one with a hook's patches."""
        weight = comfy.utils.get_attr(self.model, key)
        if not isinstance(weight, QuantizedTensor):
            return super().patch_cached_hook_weights(cached_weights, key, memory_counter)
        self._exchange(key, weight, cached_weights[key][0].to(weight.device), memory_counter)

    def unpatch_hooks(self, whitelist_keys_set: set[str] | None = None) -> None:
        """Restores the weights from before the hooks."""
        exchanged = self.model.exchanged_weights
        for key in [key for key in exchanged if not whitelist_keys_set or key in whitelist_keys_set]:
            device = comfy.utils.get_attr(self.model, key).device  # ComfyUI may have moved it
            comfy.utils.set_attr_param(self.model, key, exchanged.pop(key).to(device))
        super().unpatch_hooks(whitelist_keys_set)

    def hooked_weight(
        self, weight: QuantizedTensor, key: str, patches: list, original_weights: dict
    ) -> QuantizedTensor:
        """Applies a hook's patches to a quantised weight and quantises it again."""
        layer = self.model.get_submodule(key.rpartition(".")[0])
        numbers = layer.convert_weight(weight).float()
        numbers = comfy.lora.calculate_weight(patches, numbers, key, original_weights=original_weights)
        return layer.set_weight(numbers, seed=comfy.utils.string_to_seed(key), return_weight=True)

    def room_for(self, weight: QuantizedTensor, memory_counter: MemoryCounter | None) -> torch.device:
        """Chooses the device for a copy of the weight: its own while memory lasts."""
        size = weight._qdata.nbytes
        if memory_counter is None or not memory_counter.is_useable(size):
            return self.offload_device
        memory_counter.decrement(size)
        return weight.device

    def _exchange(
        self, key: str, now: QuantizedTensor, then: QuantizedTensor, memory_counter: MemoryCounter | None
    ) -> None:
        if key not in self.model.exchanged_weights:
            self.model.exchanged_weights[key] = now.to(self.room_for(now, memory_counter))
        comfy.utils.set_attr_param(self.model, key, then)
