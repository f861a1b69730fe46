"""Writes changes of our layers as LoRA files in the dialect that another tool reads."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..transformer import TransformerConfig
from .names import DIALECTS, PEFT_ENDINGS, Rows, layer_table
from .read import Change, Lora, dense


@dataclass(frozen=True)
class Piece:
    """The rows of a change that fall on a file's layer."""

    change: Change
    source: slice  # of the file's layer
    part: slice  # of the change's own rows

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Gives the tensors of the whole change."""
        return self.change.tensors


def write_lora(lora: Lora, config: TransformerConfig, dialect: str) -> dict[str, Tensor]:
    """Makes a file's tensors in a dialect (`DIALECTS`), with the same effect on the weights.

    A layer that is one of ours keeps its tensors; rows are joined by stacking ranks and cut without loss. For
    PEFT's endings alpha is multiplied in, and other methods become LoRA of full rank. Raises ValueError for
    what a dialect cannot express.
    """
    form = DIALECTS[dialect]
    file = {}
    for layer, places in layer_table(config, form.names).items():
        pieces = [piece for place in places for piece in _pieces(lora.changes, place, "weight")]
        rows = max(place.source.stop for place in places)
        tensors = _join(layer, pieces, rows) if pieces else {}
        biases = [piece for place in places for piece in _pieces(lora.changes, place, "bias")]
        if biases:
            tensors["diff_b"] = _dense_rows(biases, rows)
        if form.peft and tensors:
            tensors = _as_peft(layer, tensors)
        name = form.prefix + (layer.replace(".", "_") if form.underscores else layer)
        # Cloned: layers cut from one share its matrix, and safetensors refuses shared memory.
        file |= {f"{name}.{ending}": tensor.clone() for ending, tensor in tensors.items()}
    return file


def _pieces(changes: Iterable[Change], place: Rows, kind: str) -> Iterator[Piece]:
    """Finds the pieces of changes that fall on some rows of a layer."""
    for change in changes:
        first = max(place.ours.start, change.rows.start)
        last = min(place.ours.stop, change.rows.stop)
        if change.parameter == f"{place.layer}.{kind}" and first < last:
            to = place.source.start - place.ours.start
            start = change.rows.start
            yield Piece(change, slice(first + to, last + to), slice(first - start, last - start))


def _join(layer: str, pieces: Sequence[Piece], rows: int) -> dict[str, Tensor]:
    """Joins all pieces on a layer into its tensors."""
    piece = pieces[0]
    num_changed = piece.change.rows.stop - piece.change.rows.start
    if len(pieces) == 1 and piece.source == piece.part == slice(0, rows) and num_changed == rows:
        return dict(piece.tensors)
    if all("lora_up.weight" in piece.tensors for piece in pieces):
        return _join_low_rank(layer, pieces, rows)
    if any("dora_scale" in piece.tensors for piece in pieces):
        raise ValueError(
            f"{layer} has DoRA on a part of its rows and another method on the rest; this cannot be written"
        )
    return {"diff": _dense_rows(pieces, rows)}


def _join_low_rank(layer: str, pieces: Sequence[Piece], rows: int) -> dict[str, Tensor]:
    """Joins LoRAs of parts of the rows by stacking ranks; equal matrices A are kept once."""
    downs: list[Tensor] = []
    places = []
    for piece in pieces:
        down = piece.tensors["lora_down.weight"]
        same = next(
            (i for i, other in enumerate(downs) if other is down or torch.equal(other, down)), len(downs)
        )
        if same == len(downs):
            downs.append(down)
        places.append(same)
    starts = [sum(len(down) for down in downs[:i]) for i in range(len(downs))]
    scales = {_scale(piece.tensors) for piece in pieces}
    up = torch.zeros(rows, sum(map(len, downs)), dtype=torch.float32)
    for piece, same in zip(pieces, places, strict=True):
        part = piece.tensors["lora_up.weight"][piece.part].float()
        columns = slice(starts[same], starts[same] + part.shape[1])
        up[piece.source, columns] += part if len(scales) == 1 else part * _scale(piece.tensors)
    joined = {"lora_down.weight": torch.cat([down.float() for down in downs]), "lora_up.weight": up}
    if len(scales) == 1:
        joined["alpha"] = torch.tensor(scales.pop() * up.shape[1])
    if any("dora_scale" in piece.tensors for piece in pieces):
        joined["dora_scale"] = _join_magnitudes(layer, pieces, rows)
    return joined


def _join_magnitudes(layer: str, pieces: Sequence[Piece], rows: int) -> Tensor:
    covered = sum(p.source.stop - p.source.start for p in pieces if "dora_scale" in p.tensors)
    if covered != rows:
        raise ValueError(
            f"{layer} has DoRA on {covered} of its {rows} rows; this cannot be written as one layer"
        )
    magnitudes = torch.zeros(rows, 1)
    for piece in pieces:
        magnitudes[piece.source] = piece.tensors["dora_scale"][piece.part].float()
    return magnitudes


def _dense_rows(pieces: Sequence[Piece], rows: int) -> Tensor:
    """Computes the weight difference of all pieces on a layer, in float32."""
    parts = [dense(piece.tensors)[piece.part] for piece in pieces]
    difference = torch.zeros(rows, *parts[0].shape[1:])
    for piece, part in zip(pieces, parts, strict=True):
        difference[piece.source] += part
    return difference


def _scale(tensors: Mapping[str, Tensor]) -> float:
    return float(tensors["alpha"]) / len(tensors["lora_down.weight"]) if "alpha" in tensors else 1.0


def _as_peft(layer: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames a layer's tensors to PEFT's endings, and multiplies alpha in."""
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
