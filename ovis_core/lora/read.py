"""LoRA files in any dialect -> changes of our layers.

A file names layers as ComfyUI, the authors or diffusers do, with the prefix of the tool that wrote it,
dotted or with underscores, and each layer's change by the endings of its method (LoRA, DoRA, LoHa, LoKr,
plain differences). Where a file's layer is part of one of ours, or parts of several (diffusers' to_q,
proj_mlp, ff.net.0.proj, norm_out), its rows are placed exactly; nothing is dropped in silence.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..files.layouts import looks_like
from ..files.parts import TRANSFORMER, parameter_shapes
from ..files.rules import Rule
from ..transformer import TransformerConfig

PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.")
UNDERSCORED_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")

# Endings of tensor names -> what ComfyUI calls them.
ENDINGS = {
    r"\.lora_(A|down)(\.\w+)?\.weight": "lora_down.weight",
    r"\.lora_(B|up)(\.\w+)?\.weight": "lora_up.weight",
    r"\.lora(_linear_layer)?\.down\.weight": "lora_down.weight",
    r"\.lora(_linear_layer)?\.up\.weight": "lora_up.weight",
    r"\.alpha": "alpha",
    r"\.dora_scale": "dora_scale",
    r"\.lora_magnitude_vector(\.\w+)?(\.weight)?": "dora_scale",
    r"\.diff": "diff",
    r"\.diff_b": "diff_b",
    r"\.(hada_w[12]_[ab]|lokr_w[12](_[ab])?)": "",  # as they are
}
PATTERN = re.compile("(?:" + "|".join(f"(?P<e{i}>{ending})" for i, ending in enumerate(ENDINGS)) + ")$")


@dataclass(frozen=True)
class Rows:
    """Where rows of a file's layer belong in one of ours."""

    layer: str
    start: int
    length: int
    source_start: int


@dataclass(frozen=True)
class Change:
    """One method's tensors, under ComfyUI's endings, for rows of one parameter of ours."""

    parameter: str  # such as single_blocks.0.linear1.weight
    start: int
    length: int
    is_whole: bool  # all rows of the parameter
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Lora:
    changes: tuple[Change, ...]
    num_layers: int  # of the file, all matched
    unmatched: tuple[str, ...]  # names of the file that belong to no layer of ours


def read_lora(
    tensors: Mapping[str, Tensor], config: TransformerConfig, name: str, alpha: float | None = None
) -> Lora:
    """A LoRA's tensors for a model of these sizes. `alpha`: of all layers that name none (else their rank).

    Raises ValueError, naming the file `name`, when it is no LoRA, matches nothing, has half a pair, a shape
    that does not fit, NaN or infinity.
    """
    shapes = parameter_shapes(TRANSFORMER, config)
    table = all_layers(config)
    layers: dict[str, dict[str, Tensor]] = defaultdict(dict)
    unmatched, num_endings = [], 0
    for key, tensor in tensors.items():
        found = PATTERN.search(key)
        num_endings += found is not None
        layer = _find_layer(key[: found.start()], table) if found else None
        if layer is None:
            unmatched.append(key)
            continue
        if not torch.isfinite(tensor.float().sum()):
            raise ValueError(f"{key!a} in {name} holds NaN or infinite values; use another file")
        ending = next(e for i, e in enumerate(ENDINGS.values()) if found[f"e{i}"]) or found[0][1:]
        if ending in layers[layer]:
            raise ValueError(f"{name} changes {layer} twice, the second time as {key!a}; use another file")
        layers[layer][ending] = tensor
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
    """The difference that a method's tensors stand for, in float32: LoRA, LoHa, LoKr or plain."""
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


def all_layers(config: TransformerConfig) -> dict[str, list[Rows]]:
    """The layers under the names of all three, as `layer_table`."""
    return layer_table(config, "authors") | layer_table(config, "comfyui") | layer_table(config, "diffusers")


def layer_table(config: TransformerConfig, names: str) -> dict[str, list[Rows]]:
    """The layers as `comfyui`, the `authors` or `diffusers` name them, without prefix -> where their rows
    belong.
    """
    return _places(TRANSFORMER.layout(config, names).rules, parameter_shapes(TRANSFORMER, config))


def _places(rules: Iterable[Rule], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[Rows]]:
    table = {}
    for rule in rules:
        if not rule.targets[0].endswith(".weight"):
            continue
        rows = [shapes[target][0] for target in rule.targets]
        sources = rule.source_rows or [sum(rows) // len(rule.sources)] * len(rule.sources)
        starts = [sum(sources[:i]) for i in range(len(sources))]
        for source, start, length in zip(rule.sources, starts, sources, strict=True):
            places = list(_overlaps(rule.targets, rows, start, length))
            if rule.swapped:
                half = length // 2
                layer = places[0].layer
                places = [Rows(layer, half, half, 0), Rows(layer, 0, half, half)]
            table[source.removesuffix(".weight")] = places
    return table


def _overlaps(targets: tuple[str, ...], rows: list[int], start: int, length: int) -> Iterator[Rows]:
    """Where the rows start to start + length of all targets' rows, one behind the other, fall."""
    begin = 0
    for target, count in zip(targets, rows, strict=True):
        first, last = max(start, begin), min(start + length, begin + count)
        if first < last:
            yield Rows(target.removesuffix(".weight"), first - begin, last - first, first - start)
        begin += count


def _find_layer(name: str, table: Mapping[str, list[Rows]]) -> str | None:
    """The table's name of a file's layer, its prefixes and underscores undone."""
    for prefix in UNDERSCORED_PREFIXES:
        if name.startswith(prefix):
            bare = name.removeprefix(prefix)
            return next((layer for layer in table if layer.replace(".", "_") == bare), None)
    stripped = True
    while stripped:
        stripped = False
        for prefix in PREFIXES:
            if name.startswith(prefix):
                name, stripped = name.removeprefix(prefix), True
    name = re.sub(r"\.processor\.", ".", name)
    return name if name in table else None


def layer_changes(
    name: str,
    layer: str,
    parts: dict[str, Tensor],
    places: list[Rows],
    shapes: Mapping[str, tuple[int, ...]],
    alpha: float | None,
) -> Iterator[Change]:
    """A layer's tensors, cut where its rows belong to several of our layers.

    Raises ValueError, naming the file `name`, as `read_lora`.
    """
    weight = {ending: tensor for ending, tensor in parts.items() if ending != "diff_b"}
    if set(weight) & {"lora_up.weight", "lora_down.weight"} and alpha is not None:
        weight.setdefault("alpha", torch.tensor(alpha))
    num_rows = sum(place.length for place in places)
    expected = (num_rows, *shapes[f"{places[0].layer}.weight"][1:])
    if weight:
        _check_change(name, layer, weight, expected)
    for place in places:
        is_cut = len(places) > 1
        rows = slice(place.source_start, place.source_start + place.length)
        if weight:
            tensors = _cut(weight, rows) if is_cut else weight
            yield _change(f"{place.layer}.weight", place, tensors, shapes)
        if "diff_b" in parts:
            bias = f"{place.layer}.bias"
            if bias not in shapes or parts["diff_b"].shape != (num_rows,):
                raise ValueError(f"the bias of {layer} in {name} does not fit; use another file")
            yield _change(bias, place, {"diff": parts["diff_b"][rows]}, shapes)


def _change(
    parameter: str, place: Rows, tensors: dict[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> Change:
    is_whole = place.length == shapes[parameter][0]
    return Change(parameter, place.start, place.length, is_whole, tensors)


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
    """Whole methods and fitting shapes; brings DoRA's magnitudes into ComfyUI's shape."""
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
