"""Connects the core's typesetting to ComfyUI's pictures, boxes and font folders."""

from pathlib import Path
from typing import NamedTuple

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ....ovis_core.drawing.contrast import RGB
from ....ovis_core.drawing.fonts import FOLDERS, KINDS, Fonts
from ....ovis_core.drawing.placing import read_warp
from ....ovis_core.drawing.setting import Type
from ....ovis_core.drawing.typeset import Layer, Look, typeset
from ....ovis_core.evaluation.verify import expected_texts
from ....ovis_core.evaluation.wrong import Findings, read_findings
from ....ovis_core.lettering.places import (
    Frame,
    Repairs,
    fill_frames,
    read_frames,
    repairs,
    turned,
    whole,
)
from .verify import to_arrays

CHOSEN, PICTURES = "chosen colour", "as the picture's lettering"
COVERS = ("automatic", "cover", "keep")  # what is done to the picture behind the letters
DIRECTIONS = {"automatic": None, "horizontal": False, "vertical": True}
PERCENT = 0.01
THOUSANDTH = 0.001


class Typeset(NamedTuple):
    """The outputs of OvisTypeset."""

    image: Tensor
    mask: Tensor  # (B, height, width)


def font_folders() -> list[Path]:
    """Lists the user's font folders, ComfyUI's models/fonts before those of the system."""
    registered = folder_paths.folder_names_and_paths.get("fonts", ([], set()))[0]
    own = Path(folder_paths.models_dir) / "fonts"
    return [*dict.fromkeys([own, *map(Path, registered), *map(Path, FOLDERS)])]


def font_choices() -> list[str]:
    """Lists the kinds of faces, then the font files that there are."""
    return [*KINDS, *Fonts(font_folders()).names()]


def read_colour(colour: str, what: str) -> RGB:
    """Reads #RRGGBB. Raises ValueError for anything else."""
    try:
        red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    except ValueError:
        raise ValueError(f"the {what} is {colour!r}; expected one like #FF8800") from None
    return red, green, blue


def set_type(
    image: Tensor,
    texts: str,
    *,
    font: str,
    size: int,
    align: str,
    vertical_align: str,
    line_spacing: float,
    tracking: int,
    direction: str,
    ink: str,
    colour: str,
    outline: float,
    outline_colour: str,
    shadow: float,
    shadow_blur: float,
    shadow_colour: str,
    rotation: float,
    corners: str,
    margin: float,
    behind: str,
    boxes: object = None,
    verified: str | None = None,
) -> Typeset:
    """Sets texts into pictures (B, height, width, C), C from 1 to 4 -> the pictures and where they changed.

    A pixel whose mask is 0 is that of `image`, to the bit. Device and dtype stay. Raises ValueError for what
    cannot be set.
    """
    fonts = Fonts(font_folders())
    kind = Type(
        faces=fonts.named(font),
        size=size,
        align=align,
        vertical_align=vertical_align,
        line_spacing=line_spacing,
        tracking=tracking * THOUSANDTH,
        outline=outline * PERCENT,
        is_vertical=DIRECTIONS[direction],
    )
    look = Look(
        kind,
        ink=None if ink == PICTURES else read_colour(colour, "colour"),
        outline=read_colour(outline_colour, "outline_colour"),
        shadow=read_colour(shadow_colour, "shadow_colour"),
        shadow_distance=shadow * PERCENT,
        shadow_blur=shadow_blur * PERCENT,
    )
    arrays = to_arrays(image)
    height, width = arrays[0].shape[:2]
    plans = _plans(texts, boxes, verified, len(arrays), (width, height), margin * PERCENT)
    warp = read_warp(corners)

    changed, masks = [], []
    progress = comfy.utils.ProgressBar(len(arrays))
    for picture, array, plan in zip(image, arrays, plans, strict=True):
        comfy.model_management.throw_exception_if_processing_interrupted()
        spots = [turned(spot, rotation, warp) for spot in plan.spots]
        covered = {
            "automatic": plan.covered,
            "cover": (*plan.covered, *(spot.place.corners for spot in spots)),
            "keep": (),
        }[behind]
        layer = typeset(array, spots, look, fonts, covered, plan.others)
        laid, mask = _lay(picture, layer)
        changed.append(laid)
        masks.append(mask)
        progress.update(1)
    return Typeset(torch.stack(changed), torch.stack(masks))


def _plans(
    texts: str, boxes: object, verified: str | None, num: int, size: tuple[int, int], margin: float
) -> list[Repairs]:
    """Says what is set where in each picture: what was wrong in it, or the texts in their boxes."""
    frames = read_frames(boxes, num, size) if boxes else [[]] * num
    if verified is not None:
        findings = read_findings(verified)
        if len(findings) != num:
            raise ValueError(
                f"{len(findings)} pictures were verified and {num} are to be typeset; connect those "
                "that were verified"
            )
        return [_repairs(found, own, size) for found, own in zip(findings, frames, strict=True)]
    page = [Frame(whole(size, margin))]
    return [Repairs(tuple(fill_frames(own or page, expected_texts(texts)))) for own in frames]


def _repairs(findings: Findings, frames: list[Frame], size: tuple[int, int]) -> Repairs:
    return repairs(findings, frames, size) if findings.wrong or findings.extra else Repairs()


def _lay(picture: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """Lays a layer over (height, width, C) -> the picture and the mask (height, width)."""
    alpha = torch.from_numpy(layer.alpha).to(picture.device).clamp(0.0, 1.0)
    colours = torch.from_numpy(layer.colours).to(picture.device)
    channels = picture.shape[-1]
    if channels == 1:
        colours = colours.mean(-1, keepdim=True)
    if channels == 4:  # what is set is opaque
        colours = torch.cat((colours, alpha[..., None]), -1)
    laid = picture.float() * (1 - alpha[..., None]) + colours
    laid = torch.where(alpha[..., None] > 0, laid.clamp(0.0, 1.0).to(picture.dtype), picture)
    return laid, alpha.to(picture.dtype)
