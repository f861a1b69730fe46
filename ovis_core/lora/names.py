"""Maps the names of layers and tensors in LoRA files to the rows of our layers.

A file names layers as ComfyUI, the authors or diffusers do, after the prefix of the tool that wrote it, with
dots or underscores. A tensor's ending says what it is to its method.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from ..files.parts import TRANSFORMER, Shapes, parameter_shapes
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

# What PEFT calls ComfyUI's endings; it knows no others.
PEFT_ENDINGS = {
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "dora_scale": "lora_magnitude_vector",
}


@dataclass(frozen=True)
class Dialect:
    """The naming of layers and tensors by one tool."""

    prefix: str
    names: str  # whose, as for `layer_table`
    underscores: bool = False  # instead of dots
    peft: bool = False  # PEFT's endings: only LoRA and DoRA, without alpha


DIALECTS = {
    "comfyui": Dialect("diffusion_model.", "comfyui"),
    "kohya": Dialect("lora_unet_", "comfyui", underscores=True),
    "diffusers": Dialect("transformer.", "diffusers", peft=True),
    "peft": Dialect("base_model.model.", "diffusers", peft=True),
    "onetrainer": Dialect("lora_transformer_", "diffusers", underscores=True),
    "lycoris": Dialect("lycoris_", "diffusers", underscores=True),
    "authors": Dialect("", "authors"),
}


@dataclass(frozen=True)
class Rows:
    """Rows of one of our layers, and the matching rows of a file's layer."""

    layer: str
    ours: slice
    source: slice


LayerTable = Mapping[str, tuple[Rows, ...]]  # {a file's name of a layer, without prefix: its rows in ours}


@lru_cache(maxsize=16)
def all_layers(config: TransformerConfig) -> LayerTable:
    """Joins the layer tables of all three namings."""
    return {
        **layer_table(config, "authors"),
        **layer_table(config, "comfyui"),
        **layer_table(config, "diffusers"),
    }


@lru_cache(maxsize=16)
def layer_table(config: TransformerConfig, names: str) -> LayerTable:
    """Finds our rows for each layer as `comfyui`, the `authors` or `diffusers` name it."""
    rules = TRANSFORMER.layout(config, names).rules
    return dict(_places(rules, parameter_shapes(TRANSFORMER, config)))


def _places(rules: Iterable[Rule], shapes: Shapes) -> Iterator[tuple[str, tuple[Rows, ...]]]:
    for rule in rules:
        if not rule.targets[0].endswith(".weight"):
            continue
        rows = [shapes[target][0] for target in rule.targets]
        sources = rule.source_rows or (sum(rows) // len(rule.sources),) * len(rule.sources)
        start = 0
        for source, length in zip(rule.sources, sources, strict=True):
            places = tuple(_overlaps(rule.targets, rows, slice(start, start + length)))
            start += length
            if rule.swapped:
                first, second = slice(0, length // 2), slice(length // 2, length)
                places = Rows(places[0].layer, second, first), Rows(places[0].layer, first, second)
            yield source.removesuffix(".weight"), places


def _overlaps(targets: tuple[str, ...], rows: list[int], source: slice) -> Iterator[Rows]:
    """Finds the targets that a range of their joined rows falls on."""
    begin = 0
    for target, count in zip(targets, rows, strict=True):
        first, last = max(source.start, begin), min(source.stop, begin + count)
        if first < last:
            ours = slice(first - begin, last - begin)
            yield Rows(target.removesuffix(".weight"), ours, slice(first - source.start, last - source.start))
        begin += count


class TensorName(NamedTuple):
    """A tensor's name in a LoRA file, split in two."""

    layer: str  # as the file names it
    ending: str  # as ComfyUI names it


def split_name(key: str) -> TensorName | None:
    """Splits a tensor's name; None when its ending is not a LoRA's."""
    found = PATTERN.search(key)
    if found is None:
        return None
    ending = next(e for i, e in enumerate(ENDINGS.values()) if found[f"e{i}"]) or found[0][1:]
    return TensorName(key[: found.start()], ending)


def find_layer(name: str, table: LayerTable) -> str | None:
    """Finds a file's layer in the table, without its prefixes and underscores."""
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
