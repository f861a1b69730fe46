"""Makes random weights under the names of every implementation, in one memory."""

import math
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

SIGMA = 0.02


class Weights(NamedTuple):
    """Weights under the names of `ours`, which has ComfyUI's, too, and of `diffusers`.

    Both view the same memory except for the last modulation, whose halves diffusers swaps.
    """

    ours: dict[str, Tensor]
    diffusers: dict[str, Tensor]


def random_weights(
    config, layouts: ModuleType, shapes: dict[str, torch.Size], device, dtype: torch.dtype, seed: int = 0
) -> Weights:
    """Makes weights that keep activations of order one.

    config: a TransformerConfig; layouts: `ovis_core.files.layouts`; shapes: of all our parameters. Linears
    are normal of sigma 0.02, what adds to the residual stream smaller by the root of the number of such sums;
    the biases of modulations are large, so that every block is felt.
    """
    generator = torch.Generator(device).manual_seed(seed)
    num_sums = 2 * (config.depth + config.depth_single_blocks)
    single_rows = (config.hidden_size,) * 3 + (2 * config.mlp_size,)
    ours, theirs = {}, {}
    for rule in layouts.diffusers_transformer_rules(config.depth, config.depth_single_blocks, single_rows):
        own = [shapes[target] for target in rule.targets]
        rows = torch.randn(
            (sum(shape[0] for shape in own), *own[0][1:]), generator=generator, device=device, dtype=dtype
        )
        rows = _scaled(rows, rule.targets[0], num_sums)
        ours.update(zip(rule.targets, rows.chunk(len(own)), strict=True))
        if rule.swapped:
            rows = torch.cat(rows.chunk(2)[::-1])
        shares = rows.split(rule.source_rows) if rule.source_rows else rows.chunk(len(rule.sources))
        theirs.update(zip(rule.sources, shares, strict=True))
    return Weights(ours, theirs)


def _scaled(normal: Tensor, name: str, num_sums: int) -> Tensor:
    """Scales standard normal numbers in place to those of a parameter."""
    if "norm" in name:
        return normal.mul_(SIGMA).add_(1)
    if name.endswith(".bias"):
        is_modulation = "mod.lin" in name or "modulation" in name or "adaLN" in name
        return normal.mul_(0.5 if is_modulation else SIGMA)
    adds_up = name.endswith(("attn.proj.weight", "down_proj.weight", "linear2.weight"))
    return normal.mul_(SIGMA / math.sqrt(num_sums) if adds_up else SIGMA)


def relative_error(one: Tensor, other: Tensor) -> float:
    """Computes the error of the first relative to the second, as a ratio of L2 norms."""
    difference = torch.linalg.vector_norm(one.float() - other.float())
    return (difference / torch.linalg.vector_norm(other.float())).item()
