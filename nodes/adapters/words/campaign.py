"""Feeds the core's campaigns: tables of ComfyUI's input folder, pictures of its output folder, fonts."""

import io
import re
from collections.abc import Callable
from pathlib import Path

import folder_paths
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ....ovis_core.campaign.plan import Plan, Selection, Templates, plan_rows
from ....ovis_core.campaign.rows import EXTENSIONS, open_table, read_rows
from ....ovis_core.drawing.fonts import FOLDERS, Fonts
from ....ovis_core.drawing.sheet import Look, draw_sheet

PASTED = "pasted rows"
# SaveImage and similar nodes append a counter and a picture's extension to a name.
SAVED = re.compile(r"(.+?)(?:_\d{5,}_)?\.(?:png|jpe?g|webp|avif|tiff?|bmp|exr|svg)", re.IGNORECASE)


def table_names() -> list[str]:
    """Lists the choices of the node: the pasted text, then the tables in the input folder."""
    folder = Path(folder_paths.get_input_directory())
    files = folder.iterdir() if folder.is_dir() else ()
    names = (path.name for path in files if path.suffix.lower() in EXTENSIONS and path.is_file())
    return [PASTED, *sorted(name for name in names if name.isprintable())]


def plan_table(
    file: str,
    rows: str,
    *,
    first_row: int,
    last_row: int,
    max_rows: int,
    skip_existing: bool,
    **templates: str,
) -> Plan:
    """Plans the pictures that a table asks for; `templates` are those of the core's Templates."""
    made, selection = Templates(**templates), Selection(first_row, last_row, max_rows)
    exists = output_exists() if skip_existing else (lambda name: False)
    if file == PASTED:
        return plan_rows(read_rows(io.StringIO(rows, newline="")), made, selection, exists)
    with open_table(table_path(file)) as table:
        return plan_rows(table, made, selection, exists)


def table_path(name: str) -> Path:
    """Finds a listed table. Raises ValueError for any other, so that no path can be smuggled in."""
    names = table_names()[1:]
    if name not in names:
        raise ValueError(
            f"{name!r} is no table in ComfyUI's input folder; put it there and press R to refresh, or "
            f"choose one of {names[:5]}"
        )
    return Path(folder_paths.get_input_directory()) / name


def table_state(file: str) -> tuple[str, int, int]:
    """Makes a value that changes when the table does."""
    if file in (PASTED, None):
        return (PASTED, 0, 0)
    state = table_path(file).stat()
    return (file, state.st_mtime_ns, state.st_size)


def output_exists() -> Callable[[str], bool]:
    """Makes a test of whether a name below the output folder has a picture. Lists each folder once."""
    root = Path(folder_paths.get_output_directory())
    listed: dict[Path, set[str]] = {}

    def exists(name: str) -> bool:
        path = root / name
        if path.parent not in listed:
            files = path.parent.iterdir() if path.parent.is_dir() else ()
            matches = (SAVED.fullmatch(file.name) for file in files)
            listed[path.parent] = {match[1].casefold() for match in matches if match}
        return path.name.casefold() in listed[path.parent]

    return exists


def labelled_grid(
    images: list[Tensor],
    labels: list[str],
    *,
    column_labels: str,
    row_labels: str,
    columns: int,
    cell_size: int,
    font_size: int,
) -> Tensor:
    """Puts batches (B, H, W, C) of any sizes on one sheet (1, H, W, 3); see the core's draw_sheet."""
    pictures = [_picture(image) for batch in images for image in batch]
    sheet = draw_sheet(
        pictures,
        label_list(labels, len(pictures)),
        columns=columns,
        column_labels=column_labels.strip().splitlines(),
        row_labels=row_labels.strip().splitlines(),
        look=Look(cell_size, font_size),
        fonts=Fonts([Path(folder_paths.models_dir) / "fonts", *FOLDERS]),
    )
    return torch.from_numpy(np.asarray(sheet).astype(np.float32) / 255.0)[None]


def label_list(labels: list[str], pictures: int) -> list[str]:
    """Splits a single text into a label a line, or one for the only picture; keeps a linked list."""
    if len(labels) != 1:
        return labels
    if not labels[0].strip():
        return []
    return labels if pictures == 1 else labels[0].strip("\n").splitlines()


def _picture(image: Tensor) -> Image.Image:
    """Converts (H, W, C) from 0 to 1, gray, RGB or RGBA, to a picture; transparent pixels become white."""
    if image.shape[-1] == 1:
        image = image.expand(*image.shape[:-1], 3)
    if image.shape[-1] == 4:
        image = image[..., :3] * image[..., 3:] + 1.0 - image[..., 3:]
    pixels = image.float().nan_to_num().clamp(0.0, 1.0) * 255.0
    return Image.fromarray(pixels.round().byte().cpu().numpy(), "RGB")
