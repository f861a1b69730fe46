"""Names our MODEL's layers in every LoRA dialect, so that ComfyUI's own LoRA nodes find them.

Those nodes make LoRA names of the keys of a model's state dict, look for these names in a file, and give what
they find to the model's patcher. ComfyUI has no hook for further names, so they are shown to it: the model is
of a class whose names get no prefix (`GenmoMochi`), its state dict has an empty tensor for each name, the
network has an attribute for each, and the patcher puts what arrives on the rows of our parameters. Nor does
it have a hook for the class of a clone without dynamic VRAM, which is set to ours afterwards.

One hook would end all this: `comfy.lora.model_lora_keys_unet` asks the model for {LoRA name: target}, where a
target may be a range of rows, in bypass mode as in weight patches. `all_layers` would be the answer, and the
model's class, keys and attributes would go.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import comfy.model_base
import comfy.model_patcher
import torch
from comfy.patcher_extension import PatcherInjection
from comfy.weight_adapter import LoRAAdapter, WeightAdapterBase
from torch import Tensor, nn

from ....ovis_core.files.parts import TRANSFORMER, parameter_shapes
from ....ovis_core.lora.names import PREFIXES, UNDERSCORED_PREFIXES, Rows, all_layers
from ....ovis_core.lora.read import layer_changes
from .patches import alpha_of, patches_of, tensors_of

ROOT = "diffusion_model."  # before the names of all our parameters
WRAPPED = "base_model.model."  # what PEFT puts before another tool's prefix


class AliasedModel(comfy.model_base.GenmoMochi):
    """A model with the names of its layers in every dialect.

    ComfyUI takes names without a prefix from a few classes only. GenmoMochi is one of them and is treated
    specially nowhere else; nothing of it is used here.
    """

    def __init__(self, model_config, model_type, device=None, unet_model=None):
        comfy.model_base.BaseModel.__init__(self, model_config, model_type, device, unet_model)
        self.shapes = parameter_shapes(TRANSFORMER, self.diffusion_model.config)
        self.aliases = name_layers(self.diffusion_model)
        parameters = (f"{alias}.weight" for alias in self.aliases)
        self.alias_keys = dict.fromkeys(
            (ROOT + name for name in parameters if name not in self.shapes), torch.empty(0)
        )

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        """Gives the parameters, and an empty tensor for each alias."""
        state = super().state_dict(*args, **kwargs)
        state.update(self.alias_keys)
        return state

    def extra_conds(self, **kwargs) -> dict:
        """Makes the conds of a plain model, without GenmoMochi's own."""
        return comfy.model_base.BaseModel.extra_conds(self, **kwargs)


class LayerAlias:
    """A layer of another dialect: all or some rows of one or several of ours.

    To ComfyUI's bypass mode it looks like a module, whose `forward` that mode replaces; while it is replaced,
    our layers' outputs go through it.
    """

    def __init__(self, network: nn.Module, layer: str, places: Sequence[Rows]):
        self.network = network
        self.layer = layer
        self.places = places
        self.num_rows = max(place.source.stop for place in places)
        self._handles = []
        self._forward: Callable = self._rows_of_ours
        self._rows: Tensor | None = None

    def whole_parameter(self, kind: str, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """Names our parameter of that kind (weight or bias) when the layer is all of it."""
        parameter = f"{self.places[0].layer}.{kind}"
        is_whole = len(self.places) == 1 and (self.num_rows,) == shapes.get(parameter, ())[:1]
        return parameter if is_whole else None

    @property
    def weight(self) -> Tensor:
        """Stands for the layer's device and dtype."""
        return self.network.get_submodule(self.places[0].layer).weight

    @property
    def forward(self) -> Callable:
        """Calls the layer, or what ComfyUI's bypass mode has put in its place."""
        return self._forward

    @forward.setter
    def forward(self, function: Callable) -> None:
        for handle in self._handles:
            handle.remove()
        self._forward, self._handles = function, []
        if function != self._rows_of_ours:
            self._handles = [
                self.network.get_submodule(place.layer).register_forward_hook(partial(self._through, place))
                for place in self.places
            ]

    def _rows_of_ours(self, x: Tensor) -> Tensor:
        return self._rows

    def _through(self, place: Rows, layer: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        self._rows = out.new_zeros(*out.shape[:-1], self.num_rows)
        self._rows[..., place.source] = out[..., place.ours]
        changed = out.clone()
        changed[..., place.ours] = self._forward(*args)[..., place.source]
        self._rows = None
        return changed


class _Name:
    """A part of a dotted name, with what follows the dot as attributes and items."""

    def __init__(self):
        self.parts = {}

    def __getattr__(self, part: str):
        try:
            return self.__dict__["parts"][part]
        except KeyError:
            raise AttributeError(part) from None

    def __getitem__(self, number: int):
        return self.parts[str(number)]


def name_layers(network: nn.Module) -> dict[str, LayerAlias]:
    """Gives a network its layers under the names of every dialect, as attributes -> {name: layer}.

    Names that the network has already stay what they are.
    """
    prefixes = {"", *PREFIXES, *(WRAPPED + prefix for prefix in PREFIXES)} - {ROOT}
    underscored = set(UNDERSCORED_PREFIXES) - {"lora_unet_"}  # which ComfyUI puts before every name itself
    aliases = {}
    for layer, places in all_layers(network.config).items():
        alias = LayerAlias(network, layer, places)
        names = [prefix + layer for prefix in prefixes]
        names += [prefix + layer.replace(".", "_") for prefix in underscored]
        aliases |= dict.fromkeys(names, alias)

    tree = _Name()
    for name, alias in aliases.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.parts.setdefault(part, _Name())
        node.parts[last] = alias
    for first, node in tree.parts.items():
        if not hasattr(network, first):
            setattr(network, first, node)
    return aliases


class AliasPatcher:
    """Part of a ModelPatcher of an `AliasedModel`: puts patches for aliases where they belong."""

    static_class: type  # of the clone that ComfyUI makes on request of a patcher with dynamic VRAM
    _without_alpha: tuple[LoRAAdapter, ...] = ()

    def add_patches(self, patches: dict, strength_patch: float = 1.0, strength_model: float = 1.0) -> list:
        """Adds patches -> the keys that were applied. Raises ValueError for patches that do not fit."""
        placed, origin = self._place(patches)
        added = super().add_patches(placed, strength_patch, strength_model)
        self._without_alpha = tuple(
            patch for patch in placed.values() if isinstance(patch, LoRAAdapter) and patch.weights[2] is None
        )
        return [origin[target] for target in added]

    def add_hook_patches(self, hook, patches, strength_patch=1.0, strength_model=1.0) -> list:
        """Adds a hook's patches as `add_patches` does."""
        placed, origin = self._place(patches)
        added = super().add_hook_patches(hook, placed, strength_patch, strength_model)
        return [origin[target] for target in added]

    def set_attachments(self, key: str, attachment) -> None:
        """Takes alpha from the metadata that ComfyUI's LoRA loader attaches, where diffusers writes it."""
        if key == "lora_metadata" and (alpha := alpha_of(attachment, "this LoRA")) is not None:
            for adapter in self._without_alpha:
                adapter.weights = (*adapter.weights[:2], alpha, *adapter.weights[3:])
        super().set_attachments(key, attachment)

    def set_injections(self, key: str, injections: list[PatcherInjection]) -> None:
        """Keeps the first LoRA in bypass mode when a second comes, which ComfyUI would drop."""
        stack = [*self.injections.get(key, ()), *injections]
        if key == "bypass_lora" and len(stack) > 1:
            # Ejected in reverse order, since each restores the forward that it found.
            injections = [
                PatcherInjection(
                    inject=lambda patcher: [injection.inject(patcher) for injection in stack],
                    eject=lambda patcher: [injection.eject(patcher) for injection in reversed(stack)],
                )
            ]
        super().set_injections(key, injections)

    def model_state_dict(self, filter_prefix: str | None = None) -> dict[str, Tensor]:
        """Gives the parameters alone, which are what is saved and merged."""
        with self.use_ejected():
            state = self.model.state_dict()
        return {
            key: value
            for key, value in state.items()
            if key.startswith(filter_prefix or "")
            and key not in self.model.alias_keys
            # Leaves out the scales and formats of quantised weights.
            and hasattr(self.model.get_submodule(key.rpartition(".")[0]), key.rpartition(".")[2])
        }

    def clone(self, *args, **kwargs):
        """Clones the patcher, with our class for a clone without dynamic VRAM."""
        clone = super().clone(*args, **kwargs)
        if type(clone) is comfy.model_patcher.ModelPatcher:
            clone.__class__ = self.static_class
            clone.size = 0  # must be counted again: a dynamic patcher counts the modulation, too
        return clone

    def _place(self, patches: dict) -> tuple[dict, dict]:
        """Places patches on our parameters: {target: patch}, {target: the key it came under}."""
        placed, origin = {}, {}
        for key, patch in patches.items():
            for target, part in self._targets(key, patch):
                if target in placed:
                    raise ValueError(f"this LoRA changes {target} twice, as {origin[target]} and {key}")
                placed[target], origin[target] = part, key
        return placed, origin

    def _targets(self, key, patch) -> Iterator[tuple]:
        name = key.removeprefix(ROOT) if isinstance(key, str) else ""
        layer, _, kind = name.rpartition(".")
        alias = self.model.aliases.get(layer)
        is_ours = name in self.model.shapes
        if alias is None or (is_ours and not isinstance(patch, WeightAdapterBase)):
            yield key, patch
            return
        tensors = tensors_of(patch)
        if tensors is not None:
            tensors = {"diff_b": tensors["diff"]} if kind == "bias" else tensors
            changes = layer_changes("this LoRA", alias.layer, tensors, alias.places, self.model.shapes, None)
            yield from patches_of(changes).items()
        elif is_ours:
            yield key, patch
        elif (whole := alias.whole_parameter(kind, self.model.shapes)) is not None:
            yield ROOT + whole, patch
        elif isinstance(patch, WeightAdapterBase):
            raise ValueError(
                f"this LoRA changes {alias.layer} by {patch.name}, which cannot be placed on a part of "
                f"{alias.places[0].layer}; train it as a LoRA"
            )
