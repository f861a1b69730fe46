"""Text states that are one tensor in all steps of a run, so that they are projected once.

ComfyUI repeats and joins the conditions of a batch anew in every step. Ours give the same tensor each time,
and what the network makes of a tensor that it has seen is kept by the run. A tensor that anybody has changed
or made anew is projected as it comes: torch counts the changes of a tensor that is not made in inference
mode, and such are the ones that are kept.

B batch, L tokens, D hidden.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import comfy.conds
import torch
from torch import Tensor

from ....ovis_core.layers import is_inference

MAX_KEPT = 16  # by a run: prompts of parts of the picture and of the schedule, in batches as memory allows


class Counted(NamedTuple):
    """A tensor as it was: torch counts what is written into it."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, make: Callable[[], Tensor]) -> "Counted":
        with torch.inference_mode(False), torch.no_grad():
            tensor = make()
        return cls(tensor, tensor._version)

    @property
    def is_as_made(self) -> bool:
        return self.tensor._version == self.version


class TextStates(comfy.conds.CONDRegular):
    """A condition (B, L, any) that keeps its length: ComfyUI's repeats a shorter prompt to a longer one's."""

    def __init__(self, cond: Tensor):
        super().__init__(cond)
        self._repeated: dict[int, TextStates] = {}
        self._joined: dict[tuple[TextStates, ...], Counted] = {}

    def process_cond(self, batch_size: int, **kwargs) -> "TextStates":
        if batch_size not in self._repeated:
            self._repeated[batch_size] = super().process_cond(batch_size, **kwargs)
        return self._repeated[batch_size]

    def concat(self, others: Sequence["TextStates"]) -> Tensor:
        if torch.is_grad_enabled():
            return super().concat(others)
        key = tuple(others)
        joined = self._joined.get(key)
        if joined is None or not joined.is_as_made:
            joined = self._joined[key] = Counted.of(
                lambda: torch.cat([states.cond for states in (self, *others)])
            )
        return joined.tensor


class Projections:
    """The text tokens of a run's forwards, kept while the tensors that they were made of stay as they are."""

    def __init__(self):
        self._kept: dict[tuple, tuple[Counted, Counted]] = {}

    def of(self, project: Callable[[Tensor], Tensor], context: Tensor) -> Tensor:
        """project(context): (B, L, any) -> (B, L, D)."""
        if context.is_inference() or not is_inference():
            return project(context)
        key = project, id(context)
        context_then, tokens = self._kept.get(key, (None, None))
        if context_then is None or not (context_then.is_as_made and tokens.is_as_made):
            if len(self._kept) >= MAX_KEPT:
                self._kept.pop(next(iter(self._kept)))
            made = project(context)
            tokens = Counted.of(made.clone)
            self._kept[key] = Counted(context, context._version), tokens
        return tokens.tensor
