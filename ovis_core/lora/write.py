"""Changes of our layers -> LoRA files in the dialect that another tool reads."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..transformer import TransformerConfig
from .read import Change, Lora, Rows, dense, layer_table


@dataclass(frozen=True)
class Dialect:
    prefix: str
    names: str  # whose, as for `layer_table`
    underscores: bool = False  # in place of dots
    peft: bool = False  # PEFT's endings, which know LoRA and DoRA alone and no alpha


DIALECTS = {
    "comfyui": Dialect("diffusion_model.", "comfyui"),
    "kohya": Dialect("lora_unet_", "comfyui", underscores=True),
    "diffusers": Dialect("transformer.", "diffusers", peft=True),
    "peft": Dialect("base_model.model.", "diffusers", peft=True),
    "onetrainer": Dialect("lora_transformer_", "diffusers", underscores=True),
    "lycoris": Dialect("lycoris_", "diffusers", underscores=True),
    "authors": Dialect("", "authors"),
}
PEFT_ENDINGS = {
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "dora_scale": "lora_magnitude_vector",
}


def write_lora(lora: Lora, config: TransformerConfig, dialect: str) -> dict[str, Tensor]:
    """The tensors of a file in a dialect (`DIALECTS`) that changes the same weights by the same amounts.

    A layer that is one of ours keeps its tensors; rows are joined by stacking ranks and cut without loss.
    For PEFT's endings alpha is multiplied in and other methods than LoRA become one of full rank. Raises
    ValueError for what a dialect cannot say.
    """
    form = DIALECTS[dialect]
    file = {}
    for layer, places in layer_table(config, form.names).items():
        pieces = [piece for place in places for piece in _pieces(lora.changes, place, "weight")]
        rows = sum(place.length for place in places)
        tensors = _join(layer, pieces, rows) if pieces else {}
        biases = [piece for place in places for piece in _pieces(lora.changes, place, "bias")]
        if biases:
            tensors["diff_b"] = _dense_rows(biases, rows)
        if form.peft and tensors:
            tensors = _as_peft(layer, tensors)
        name = form.prefix + (layer.replace(".", "_") if form.underscores else layer)
        # Cloned, because layers that were cut from one share its matrix, and files share nothing.
        file |= {f"{name}.{ending}": tensor.clone() for ending, tensor in tensors.items()}
    return file


def _pieces(changes: Iterable[Change], place: Rows, kind: str) -> list[tuple[int, int, int, Change]]:
    """What falls on some rows of a layer: (first row in the file's layer, rows, first row in the change,
    change).
    """
    pieces = []
    for change in changes:
        first = max(place.start, change.start)
        last = min(place.start + place.length, change.start + change.length)
        if change.parameter == f"{place.layer}.{kind}" and first < last:
            pieces.append(
                (first - place.start + place.source_start, last - first, first - change.start, change)
            )
    return pieces


def _join(layer: str, pieces: list[tuple[int, int, int, Change]], rows: int) -> dict[str, Tensor]:
    """One layer's tensors of all that falls on it."""
    to, count, start, change = pieces[0]
    if len(pieces) == 1 and (to, count, start) == (0, rows, 0) and change.length == rows:
        return dict(change.tensors)
    if all("lora_up.weight" in change.tensors for *_, change in pieces):
        return _join_low_rank(layer, pieces, rows)
    if any("dora_scale" in change.tensors for *_, change in pieces):
        raise ValueError(
            f"{layer} has DoRA on a part of its rows and another method on the rest; this cannot be written"
        )
    return {"diff": _dense_rows(pieces, rows)}


def _join_low_rank(layer: str, pieces: list[tuple[int, int, int, Change]], rows: int) -> dict[str, Tensor]:
    """LoRAs of parts of the rows as one: their ranks side by side, those of one matrix A only once."""
    downs: list[Tensor] = []
    places = []
    for _, _, _, change in pieces:
        down = change.tensors["lora_down.weight"]
        same = next(
            (i for i, other in enumerate(downs) if other is down or torch.equal(other, down)), len(downs)
        )
        if same == len(downs):
            downs.append(down)
        places.append(same)
    starts = [sum(len(down) for down in downs[:i]) for i in range(len(downs))]
    scales = {_scale(change.tensors) for *_, change in pieces}
    up = torch.zeros(rows, sum(map(len, downs)), dtype=torch.float32)
    for (to, count, start, change), same in zip(pieces, places, strict=True):
        part = change.tensors["lora_up.weight"][start : start + count].float()
        columns = slice(starts[same], starts[same] + part.shape[1])
        up[to : to + count, columns] += part if len(scales) == 1 else part * _scale(change.tensors)
    joined = {"lora_down.weight": torch.cat([down.float() for down in downs]), "lora_up.weight": up}
    if len(scales) == 1:
        joined["alpha"] = torch.tensor(scales.pop() * up.shape[1])
    if any("dora_scale" in change.tensors for *_, change in pieces):
        covered = sum(count for _, count, _, change in pieces if "dora_scale" in change.tensors)
        if covered != rows:
            raise ValueError(
                f"{layer} has DoRA on {covered} of its {rows} rows; this cannot be written as one layer"
            )
        joined["dora_scale"] = torch.zeros(rows, 1)
        for to, count, start, change in pieces:
            joined["dora_scale"][to : to + count] = change.tensors["dora_scale"][
                start : start + count
            ].float()
    return joined


def _dense_rows(pieces: list[tuple[int, int, int, Change]], rows: int) -> Tensor:
    difference = None
    for to, count, start, change in pieces:
        part = dense(change.tensors)[start : start + count]
        if difference is None:
            difference = torch.zeros(rows, *part.shape[1:])
        difference[to : to + count] += part
    return difference


def _scale(tensors: Mapping[str, Tensor]) -> float:
    return float(tensors["alpha"]) / len(tensors["lora_down.weight"]) if "alpha" in tensors else 1.0


def _as_peft(layer: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if "diff_b" in tensors:
        raise ValueError(
            f"the file changes the bias of {layer}, which PEFT's endings cannot say; use comfyui or kohya"
        )
    if "lora_up.weight" not in tensors:
        difference = dense(tensors)
        tensors = {"lora_down.weight": torch.eye(difference.shape[1]), "lora_up.weight": difference}
    scale = _scale(tensors)
    if scale != 1.0:
        tensors = {**tensors, "lora_up.weight": tensors["lora_up.weight"].float() * scale}
    tensors = {ending: tensor for ending, tensor in tensors.items() if ending != "alpha"}
    if "dora_scale" in tensors:
        tensors["dora_scale"] = tensors["dora_scale"].flatten()
    return {PEFT_ENDINGS[ending]: tensor for ending, tensor in tensors.items()}
