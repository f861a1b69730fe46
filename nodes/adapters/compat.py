"""The private members of ComfyUI that savings rest on, looked for once when the pack loads.

Where a version of ComfyUI lacks one, the saving is off and the log says so; pictures stay the same. What the
adapters use besides is public: classes, wrappers and functions that other packs call.
"""

import importlib
import inspect
import logging
from collections.abc import Sequence
from functools import cache
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
    """Looks for all of them."""
    for saving in MEMBERS:
        has(saving)
