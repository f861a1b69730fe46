"""Skips blocks in steps that change little, and reuses what those blocks added before. Approximate.

The first block is always computed. Where its residual (what it adds to the image tokens) has changed little
since the last computed step, the residual of all other blocks is reused from that step, or extrapolated
from the last two; this is the first-block cache of ParaAttention and cache-dit (DBCache with F1B0) with the
Taylor prediction of TaylorSeer (arXiv 2503.06923).

Both branches of guidance decide together: guidance multiplies the difference of the two, and with it the
error of a mixed pair, one computed and one skipped. So all branches skip a step, or none does.

B batch, L image tokens, D hidden. A branch is one conditioning of one evaluation: two with guidance, more
with regional prompts. A forward is one branch at one evaluation, however many of them are batched.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .blocks import Run, call_block
from .sampling import Velocity

Result = TypeVar("Result")
TOKENS = (1, 2)  # all dimensions but the batch


@dataclass(frozen=True)
class CacheSettings:
    """The rules for when a step may be skipped, and how its blocks are predicted.

    threshold: the largest relative change (L1) of a first block's residual, of any branch and picture; 0
        skips nothing.
    warmup: evaluations at the start of a run that are computed.
    max_skips: skipped evaluations in a row; 0 skips nothing.
    order: 0 reuses the residual of the last computed evaluation, 1 extrapolates the last two in sigma.
    """

    threshold: float = 0.08
    warmup: int = 4
    max_skips: int = 3
    order: int = 0

    @property
    def is_off(self) -> bool:
        """Tells whether the settings never skip a step."""
        return self.threshold == 0 or self.max_skips == 0

    def __post_init__(self):
        if not (self.threshold >= 0 and self.warmup >= 0 and self.max_skips >= 0 and self.order in (0, 1)):
            raise ValueError(
                f"threshold {self.threshold}, warm-up {self.warmup} and skips {self.max_skips} must be 0 or "
                f"more, and the order 0 or 1, got {self.order}"
            )


@dataclass
class Branch:
    """The residuals (B, L, D) of one conditioning's computed evaluations, the newest last."""

    first: Tensor | None = None  # the first block's
    rest: list[tuple[float, Tensor]] = field(default_factory=list)  # sigma, all other blocks'

    def change(self, first: Tensor) -> Tensor:
        """Measures the relative change of the first block's residual since the last computation -> (B,)."""
        assert self.first is not None, "asked only where it `fits`"
        moved = torch.linalg.vector_norm(first - self.first, 1, TOKENS, dtype=torch.float32)
        return moved / torch.linalg.vector_norm(self.first, 1, TOKENS, dtype=torch.float32)

    def fits(self, first: Tensor) -> bool:
        """Tells whether `first` has the shape, dtype and device of the kept residual."""
        kept = self.first
        return kept is not None and (kept.shape, kept.dtype, kept.device) == (
            *(first.shape, first.dtype, first.device),
        )

    def keep(self, sigma: float, first: Tensor, rest: Tensor, order: int) -> None:
        """Stores the residuals of a computed evaluation, and drops those that `order` does not need."""
        # Heun evaluates twice at a sigma: the second replaces the first.
        earlier = [kept for kept in self.rest if kept[0] != sigma] if self.fits(first) else []
        self.first = first
        self.rest = [*earlier, (sigma, rest)][-(order + 1) :]

    def predict(self, sigma: float) -> Tensor:
        """Predicts the residual of all blocks but the first at a sigma -> (B, L, D)."""
        last_sigma, last = self.rest[-1]
        if len(self.rest) == 1:
            return last
        before_sigma, before = self.rest[0]
        return torch.lerp(before, last, (sigma - before_sigma) / (last_sigma - before_sigma))


class _Objection(Exception):
    """Raised when a branch changes too much after others of its evaluation were skipped."""


class ResidualCache:
    """The state of one sampling run; every evaluation needs `evaluate`, every forward a `forward()`."""

    def __init__(self, settings: CacheSettings):
        self.settings = settings
        self.num_forwards = 0
        self.num_computed = 0
        self.sigma = float("inf")
        self._forget()
        self._begin_pass(must_compute=False)

    @property
    def report(self) -> str:
        """Says how many forwards were computed."""
        return f"{self.num_computed} of {self.num_forwards} forwards computed"

    def evaluate(self, sigma: float, run: Callable[[], Result]) -> Result:
        """Runs one evaluation of the velocity with one decision for all its branches and forwards.

        `run` is called again when a branch asks for computation after others have been skipped: only first
        blocks have run until then. A sigma above the last one begins a new run.
        """
        if sigma > self.sigma:
            self._forget()
        self.sigma = sigma
        settings = self.settings
        too_early, too_many = self._num_evaluations < settings.warmup, self._num_skips >= settings.max_skips
        self._begin_pass(settings.is_off or too_early or too_many)
        try:
            result = run()
        except _Objection:
            self._begin_pass(must_compute=True)
            result = run()
        self._end_pass()
        return result

    def forward(self, keys: Sequence[Hashable], run: Run = call_block) -> "CachedRun":
        """Wraps the `run` of one forward; its batch holds the branches `keys` in equal parts."""
        branches = []
        for key in keys:
            # One conditioning may come several times in an evaluation: for tiles, or for guidance by a worse
            # model. Each is a separate branch.
            branches.append(self._branches.setdefault((key, self._seen[key]), Branch()))
            self._seen[key] += 1
        return CachedRun(self, branches, run)

    def decide(self, branches: list[Branch], firsts: Sequence[Tensor]) -> bool:
        """Decides after the first block whether to skip this forward; `firsts` are its residuals (B, L, D).

        Waits for the device, once, unless the evaluation is computed anyway.
        """
        if not self._must_compute and not self._are_close(branches, firsts):
            if self._was_skipped:
                raise _Objection
            self._must_compute = True
        self._was_skipped = not self._must_compute
        self._pass_forwards += len(branches)
        self._pass_computed += len(branches) * self._must_compute
        return self._was_skipped

    def _are_close(self, branches: list[Branch], firsts: Sequence[Tensor]) -> bool:
        if not all(branch.fits(first) for branch, first in zip(branches, firsts, strict=True)):
            return False
        changes = [branch.change(first) for branch, first in zip(branches, firsts, strict=True)]
        return bool(torch.stack(changes).max() < self.settings.threshold)  # false for NaN

    def _begin_pass(self, must_compute: bool) -> None:
        self._must_compute = must_compute
        self._was_skipped = False
        self._pass_forwards = self._pass_computed = 0
        self._seen = Counter()

    def _end_pass(self) -> None:
        if self._pass_forwards:  # else the network was not called
            self._num_evaluations += 1
            self._num_skips = self._num_skips + 1 if self._was_skipped else 0
            # A branch that was not used this time would be too old the next time.
            seen = self._seen
            self._branches = {key: kept for key, kept in self._branches.items() if key[1] < seen[key[0]]}
        self.num_forwards += self._pass_forwards
        self.num_computed += self._pass_computed

    def _forget(self) -> None:
        self._branches: dict[tuple[Hashable, int], Branch] = {}
        self._num_evaluations = 0
        self._num_skips = 0


class CachedRun:
    """A `Run` around another for one forward, which may skip the blocks behind the first."""

    def __init__(self, cache: ResidualCache, branches: list[Branch], run: Run):
        self.cache = cache
        self.branches = branches
        self.run = run
        self.is_skipped = False

    def __call__(self, kind: str, index: int, block: nn.Module, *inputs: Any, **_: Any) -> Any:
        if (kind, index) == ("double", 0):
            img, txt = self.run(kind, index, block, *inputs)
            self.is_skipped = self.decide(inputs[0], img)
            return img, txt
        if kind == "last":
            img, *others = inputs
            return self.run(kind, index, block, self.complete(img), *others)
        if self.is_skipped:
            return inputs[:2] if kind == "double" else inputs[0]
        return self.run(kind, index, block, *inputs)

    def decide(self, before: Tensor, after: Tensor) -> bool:
        """Decides whether to skip the other blocks, given image tokens (B, L, D) around the first one."""
        if self.cache.settings.is_off:
            return self.cache.decide(self.branches, ())
        self.after = after
        self.firsts = (after - before).chunk(len(self.branches))
        return self.cache.decide(self.branches, self.firsts)

    def complete(self, last: Tensor) -> Tensor:
        """Gives image tokens (B, L, D) after the last block, predicted where blocks were skipped."""
        if self.cache.settings.is_off:
            return last
        sigma, order = self.cache.sigma, self.cache.settings.order
        if self.is_skipped:
            return self.after + torch.cat([branch.predict(sigma) for branch in self.branches])
        rests = (last - self.after).chunk(len(self.branches))
        for branch, first, rest in zip(self.branches, self.firsts, rests, strict=True):
            branch.keep(sigma, first, rest, order)
        return last


def cached(velocity: Velocity, cache: ResidualCache) -> Velocity:
    """Wraps a guided velocity whose branches make their forwards with `cache`."""
    return lambda x, sigma: cache.evaluate(float(sigma[0]), lambda: velocity(x, sigma))
