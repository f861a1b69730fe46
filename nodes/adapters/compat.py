"""The private members of ComfyUI that the adapters use, in one list, looked for once when the pack loads.

Where a version of ComfyUI lacks one that a saving rests on, the saving is off and the log says so; pictures
stay the same. Nothing takes the place of those under NEEDED: the log names what this ComfyUI lacks. What the
adapters use besides is public: classes, wrappers and functions that other packs call.
"""

import importlib
import inspect
import logging
from collections.abc import Sequence
from functools import cache
from operator import attrgetter
from typing import NamedTuple

log = logging.getLogger(__name__)

PREFETCHING, HELD_WEIGHTS, JOINED_OPERATIONS = "prefetching", "held weights", "joined operations"


class Member(NamedTuple):
    """A function, and how it is called: how many positions, and which keywords."""

    module: str
    name: str
    positions: int
    keywords: Sequence[str] = ()

    @property
    def is_there(self) -> bool:
        try:
            function = getattr(importlib.import_module(self.module), self.name)
            inspect.signature(function).bind(*[None] * self.positions, **dict.fromkeys(self.keywords))
        except (ImportError, AttributeError, TypeError, ValueError):
            return False
        return True


MEMBERS = {
    PREFETCHING: (
        Member("comfy.model_prefetch", "make_prefetch_queue", 3),
        Member("comfy.model_prefetch", "prefetch_queue_pop", 3),
    ),
    HELD_WEIGHTS: (
        Member("comfy.ops", "cast_bias_weight", 2, ("offloadable",)),
        Member("comfy.ops", "uncast_bias_weight", 4),
        Member("comfy.ops", "CastWeightBiasOp", 0),
    ),
    JOINED_OPERATIONS: (
        Member("comfy_kitchen", "adaln", 4),
        Member("comfy_kitchen", "rms_rope", 6),
        Member("comfy_kitchen", "list_backends", 0),
    ),
}
# {module: members}. Attributes of instances cannot be looked for without one: of layers `_v`, `_prefetch`,
# `weight_function`, `comfy_cast_weights`, `comfy_patched_weights`, `_full_precision_mm`, `layout_type`,
# `quant_format` and `input_scale`; of quantised tensors `_qdata`, `_params` and `_layout_cls`.
NEEDED = {
    "comfy.model_patcher": (
        *("ModelPatcher._load_list", "ModelPatcher.pin_weight_to_device", "ModelPatcher.unpin_weight"),
        *("ModelPatcher.patch_weight_to_device", "ModelPatcher.patch_hook_weight_to_device"),
        *("ModelPatcher.patch_cached_hook_weights", "ModelPatcher.unpatch_hooks", "ModelPatcherDynamic"),
        "MemoryCounter.is_useable",
    ),
    "comfy.quant_ops": (
        *("QUANT_ALGOS", "QuantizedTensor", "QuantizedLayout", "TensorCoreFP8E4M3Layout", "get_layout_class"),
        *("register_layout_class", "register_layout_op"),
    ),
    "comfy.ops": ("manual_cast.Linear", "manual_cast.Embedding", "pick_operations"),
    "comfy.model_base": ("GenmoMochi", "BaseModel.extra_conds", "BaseModel.memory_required"),
    "comfy.weight_adapter": ("LoRAAdapter", "LoHaAdapter", "LoKrAdapter"),
    "comfy.ldm.modules.diffusionmodules.model": ("vae_attention",),
    "comfy.ldm.flux.math": ("attention",),
}
WITHOUT = {
    PREFETCHING: "streamed weights come layer by layer",
    HELD_WEIGHTS: "single blocks take all their tokens at once, which needs more memory",
    JOINED_OPERATIONS: "norms, modulation and rotation are computed one after the other",
}


@cache
def has(saving: str) -> bool:
    """Whether this ComfyUI has all that a saving needs. Logs one line where it has not."""
    missing = [f"{member.module}.{member.name}" for member in MEMBERS[saving] if not member.is_there]
    if missing:
        log.warning("Ovis-Image: this ComfyUI has another %s, so %s", " and ".join(missing), WITHOUT[saving])
    return not missing


def check() -> None:
    """Looks for all of them, and logs what is missing."""
    for saving in MEMBERS:
        has(saving)
    missing = [
        f"{module}.{name}" for module, names in NEEDED.items() for name in names if not found(module, name)
    ]
    if missing:
        log.error("Ovis-Image: this ComfyUI has no %s; some nodes will not work", ", ".join(missing))


def found(module: str, name: str) -> bool:
    """Tells whether a module has a member, whose name may be dotted."""
    try:
        attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError):
        return False
    return True
