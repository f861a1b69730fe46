"""Reads LoRA files in any dialect into changes of our layers.

A layer's change has the endings of its method: LoRA, DoRA, LoHa, LoKr or plain differences. A file's layer
can be part of one of ours, or parts of several (diffusers' to_q, proj_mlp, ff.net.0.proj, norm_out): its rows
are put exactly where they belong, and nothing is dropped in silence.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..files.layouts import looks_like
from ..files.parts import TRANSFORMER, Shapes, parameter_shapes
from ..transformer import TransformerConfig
from .names import Rows, all_layers, find_layer, split_name


@dataclass(frozen=True)
class Change:
    """A change to rows of one of our parameters: one method's tensors, under ComfyUI's endings."""

    parameter: str  # such as single_blocks.0.linear1.weight
    rows: slice
    is_whole: bool  # the rows are all that the parameter has
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Lora:
    """The changes that a LoRA file makes to our layers."""

    changes: tuple[Change, ...]
    num_layers: int  # of the file, all matched
    unmatched: tuple[str, ...]  # names of the file that belong to no layer of ours


def read_lora(
    tensors: Mapping[str, Tensor], config: TransformerConfig, name: str, alpha: float | None = None
) -> Lora:
    """Reads a LoRA's tensors for a model of these sizes.

    `alpha` is that of all layers that name none; without it, theirs is their rank. Raises ValueError, naming
    the file `name`, for another kind of file, and for a LoRA that matches nothing, has half a pair, a shape
    that does not fit, NaN or infinity.
    """
    shapes = parameter_shapes(TRANSFORMER, config)
    table = all_layers(config)
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    unmatched, num_endings = [], 0
    for key, tensor in tensors.items():
        split = split_name(key)
        num_endings += split is not None
        layer = find_layer(split.layer, table) if split else None
        if split is None or layer is None:
            unmatched.append(key)
            continue
        if not torch.isfinite(tensor.float().sum()):
            raise ValueError(f"{key!a} in {name} holds NaN or infinite values; use another file")
        if split.ending in layers[layer]:
            raise ValueError(f"{name} changes {layer} twice, the second time as {key!a}; use another file")
        layers[layer][split.ending] = tensor
    if not num_endings:
        raise ValueError(
            f"{name} is no LoRA, it looks like {looks_like(tensors.keys())}; choose another file"
        )
    if not layers:
        raise ValueError(
            f"none of the {len(tensors)} tensors of {name} belongs to Ovis-Image, first "
            f"{sorted(tensors)[0]!a}; this is a LoRA of another model"
        )
    changes = [
        change
        for layer, parts in layers.items()
        for change in layer_changes(name, layer, parts, table[layer], shapes, alpha)
    ]
    return Lora(tuple(changes), len(layers), tuple(sorted(unmatched)))


def dense(tensors: Mapping[str, Tensor]) -> Tensor:
    """Computes the weight difference of a method's tensors, in float32."""
    t = {key: tensor.float() for key, tensor in tensors.items()}
    if "diff" in t:
        return t["diff"]
    if "lora_up.weight" in t:
        rank = t["lora_down.weight"].shape[0]
        product = t["lora_up.weight"] @ t["lora_down.weight"]
    elif "hada_w1_a" in t:
        rank = t["hada_w1_b"].shape[0]
        product = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
    else:
        factors = [
            t[f"lokr_w{i}"] if f"lokr_w{i}" in t else t[f"lokr_w{i}_a"] @ t[f"lokr_w{i}_b"] for i in (1, 2)
        ]
        low = next((t[key] for key in ("lokr_w2_b", "lokr_w1_b") if key in t), None)
        rank = low.shape[0] if low is not None else None
        product = torch.kron(*factors)
    if "alpha" not in t or rank is None:
        return product
    return product * (t["alpha"] / rank)


def layer_changes(
    name: str,
    layer: str,
    parts: dict[str, Tensor],
    places: Sequence[Rows],
    shapes: Shapes,
    alpha: float | None,
) -> Iterator[Change]:
    """Yields the changes of a file's layer, cut where its rows belong to several of ours.

    Raises ValueError, naming the file `name`, as `read_lora` does.
    """
    weight = {ending: tensor for ending, tensor in parts.items() if ending != "diff_b"}
    if set(weight) & {"lora_up.weight", "lora_down.weight"} and alpha is not None:
        weight.setdefault("alpha", torch.tensor(alpha))
    num_rows = max(place.source.stop for place in places)
    expected = (num_rows, *shapes[f"{places[0].layer}.weight"][1:])
    if weight:
        _check_change(name, layer, weight, expected)
    for place in places:
        is_cut = len(places) > 1
        if weight:
            tensors = _cut(weight, place.source) if is_cut else weight
            yield _change(f"{place.layer}.weight", place, tensors, shapes)
        if "diff_b" in parts:
            bias = f"{place.layer}.bias"
            if bias not in shapes or parts["diff_b"].shape != (num_rows,):
                raise ValueError(f"the bias of {layer} in {name} does not fit; use another file")
            yield _change(bias, place, {"diff": parts["diff_b"][place.source]}, shapes)


def _change(parameter: str, place: Rows, tensors: dict[str, Tensor], shapes: Shapes) -> Change:
    is_whole = place.ours == slice(0, shapes[parameter][0])
    return Change(parameter, place.ours, is_whole, tensors)


def _cut(weight: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    if "lora_up.weight" not in weight:
        return {"diff": dense(weight)[rows]}
    cut = {**weight, "lora_up.weight": weight["lora_up.weight"][rows]}
    if "dora_scale" in weight:
        cut["dora_scale"] = weight["dora_scale"][rows]
    return cut


METHODS = (
    {"lora_up.weight", "lora_down.weight"},
    {"diff"},
    {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},
)


def _check_change(name: str, layer: str, weight: dict[str, Tensor], expected: tuple[int, ...]) -> None:
    """Checks a change, and gives DoRA's magnitudes ComfyUI's shape.

    Raises ValueError for an incomplete method or a shape that does not fit.
    """
    endings = set(weight) - {"alpha", "dora_scale"}
    lokr = {ending.split("_w")[0] for ending in endings} == {"lokr"} and all(
        f"lokr_w{i}" in endings or {f"lokr_w{i}_a", f"lokr_w{i}_b"} <= endings for i in (1, 2)
    )
    if endings not in METHODS and not lokr:
        raise ValueError(
            f"{name} has only {sorted(endings) or sorted(weight)} for {layer}, half of a change; use "
            "another file"
        )
    hollow = {ending: torch.empty(tensor.shape, device="meta") for ending, tensor in weight.items()}
    try:
        shape = tuple(dense(hollow).shape)
    except (RuntimeError, IndexError):
        shape = None
    if shape != expected:
        shapes = {ending: [*tensor.shape] for ending, tensor in weight.items()}
        raise ValueError(
            f"{name} has {shapes} for {layer}, which does not fit its shape {[*expected]}; use another file"
        )
    if "dora_scale" in weight:
        if "lora_up.weight" not in weight:
            raise ValueError(
                f"{name} has DoRA on another method than LoRA for {layer}, which is not supported"
            )
        if weight["dora_scale"].numel() != expected[0]:
            raise ValueError(
                f"{name} has {weight['dora_scale'].numel()} magnitudes for the {expected[0]} rows of {layer}"
            )
        weight["dora_scale"] = weight["dora_scale"].reshape(-1, 1)
