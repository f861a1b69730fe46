"""Maps a file's tensor names to ours by rules, and converts tensors in both directions.

A rule joins the rows of its sources and cuts them into its targets. This covers renamed, fused and split
weights.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """The tensors of a file that become one or more of ours."""

    sources: tuple[str, ...]  # names in the file
    targets: tuple[str, ...]  # our names; several take equal shares of the rows
    source_rows: tuple[int, ...] = ()  # of each source, where they differ; only writing needs them
    swapped: bool = False  # the source has the halves of its rows in the other order
    linear: bool = False  # the source is a linear (rows, columns) where ours is a 1x1 convolution
    optional: bool = False  # not every size of the network has the layer


@dataclass(frozen=True)
class Layout:
    """The names of a part's tensors in a file."""

    name: str
    prefix: str  # before every name in the file
    rules: tuple[Rule, ...]


def num_blocks(keys: Collection[str], stem: str) -> int:
    """Counts blocks: 1 + the highest N of the names `stem.N.*`, 0 without any.

    Raises ValueError for a number higher than the file's count of tensors.
    """
    start = stem + "."
    numbers = {key[len(start) :].split(".", 1)[0] for key in keys if key.startswith(start)}
    highest = max((int(number) for number in numbers if number.isdecimal()), default=-1)
    if highest >= len(keys):
        raise ValueError(f"the file has a {stem}.{highest} but only {len(keys)} tensors; download it again")
    return highest + 1


def convert(
    tensors: Mapping[str, Tensor], rules: Iterable[Rule], name: str = "the file"
) -> dict[str, Tensor]:
    """Converts a file's tensors to ours; splits are views. Raises ValueError for rows that do not fit."""
    converted = {}
    for rule in rules:
        if rule.optional and rule.sources[0] not in tensors:
            continue
        parts = [tensors[source] for source in rule.sources]
        odd = next(
            (s for s, part in zip(rule.sources, parts, strict=True) if part.shape[1:] != parts[0].shape[1:]),
            None,
        )
        if odd:
            raise ValueError(
                f"{odd} in {name} has the shape {[*tensors[odd].shape]}, which does not fit {rule.sources[0]}"
            )
        rows = _join(parts)
        if rule.swapped:
            rows = torch.cat(rows.chunk(2)[::-1])
        if rule.linear:
            rows = rows[..., None, None]
        shares = rows.chunk(len(rule.targets))
        if len(shares) != len(rule.targets):
            raise ValueError(
                f"{rule.sources[0]} in {name} has {len(rows)} rows, too few for {len(rule.targets)} layers"
            )
        converted.update(zip(rule.targets, shares, strict=True))
    return converted


def unconvert(tensors: Mapping[str, Tensor], rules: Iterable[Rule]) -> dict[str, Tensor]:
    """Converts our tensors to a file's, the inverse of `convert`."""
    converted = {}
    for rule in rules:
        if rule.optional and rule.targets[0] not in tensors:
            continue
        rows = torch.cat([tensors[target] for target in rule.targets])
        if rule.swapped:
            rows = torch.cat(rows.chunk(2)[::-1])
        if rule.linear:
            rows = rows[..., 0, 0]
        shares = rows.split(rule.source_rows) if rule.source_rows else rows.chunk(len(rule.sources))
        converted.update(zip(rule.sources, shares, strict=True))
    return converted


def _join(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    if parts[0].dtype == torch.float8_e4m3fn:  # torch cannot join these
        return torch.cat([part.view(torch.uint8) for part in parts]).view(torch.float8_e4m3fn)
    return torch.cat(parts)
