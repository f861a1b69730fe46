"""Makes datasets of synthetic typography: for torch, and as a folder of PNG files with captions.

`python3 -m ovis_core.typography --out FOLDER --count N --seed S` writes such a folder. What it may
look like is `settings.Typography`; `rendering.Renderer` draws it.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..drawing.fonts import StyledFaces
from ..drawing.sheet import Look, draw_sheet
from ..files.storage import replacing
from .rendering import Example, Renderer
from .settings import Typography

SHEET_MAX, SHEET_COLUMNS = 64, 8  # pictures
GREY = (160, 160, 160)  # which no picture's ground is


class TypographyDataset(Dataset):
    """`count` pictures with their captions, drawn when they are asked for."""

    def __init__(
        self,
        count: int,
        seed: int = 0,
        config: Typography | None = None,
        faces: StyledFaces | None = None,
        held_out: bool = False,
    ):
        self.count = count
        self.seed = seed
        self.renderer = Renderer(config, faces, held_out)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        """Draws one: image, uint8 (3, H, W), and caption, str."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        example = self.renderer(self.seed, index)
        image = torch.from_numpy(np.array(example.image)).permute(2, 0, 1).contiguous()  # (3, H, W)
        return {"image": image, "caption": example.caption}


def write_dataset(folder: Path, renderer: Renderer, count: int, seed: int, sheet: Path | None = None) -> None:
    """Writes PNG files and, after them and whole or not at all, captions.jsonl with a line for each.

    sheet: a PNG file of the first pictures side by side. Raises ValueError when the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; give a new one")
    folder.mkdir(parents=True, exist_ok=True)
    images, lines = [], []
    for index in range(count):
        example = renderer(seed, index)
        name = f"{index:06d}.png"
        example.image.save(folder / name)
        lines.append(json.dumps({"file_name": name} | describe(example), ensure_ascii=False))
        if sheet and len(images) < SHEET_MAX:
            images.append(example.image)
    with replacing(folder / "captions.jsonl") as temporary:
        temporary.write_text("".join(line + "\n" for line in lines), "utf-8")
    if sheet:
        with replacing(sheet) as temporary:
            draw_sheet(images, columns=SHEET_COLUMNS, look=Look(paper=GREY)).save(temporary, format="PNG")


def describe(example: Example) -> dict:
    """Gives everything of an example but its pixels, for JSON; the caption first."""
    facts = {name: value for name, value in vars(example).items() if name not in ("image", "caption")}
    return {"caption": example.caption} | facts


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python3 -m ovis_core.typography",
        description="Synthetic pictures of writing with captions: PNG files and captions.jsonl.",
    )
    parser.add_argument("--out", required=True, type=Path, help="the folder to write; new or empty")
    parser.add_argument("--count", required=True, type=int, help="how many pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, help="JSON file with settings that differ from the defaults")
    parser.add_argument("--held-out", action="store_true", help="write words that training never sees")
    parser.add_argument(
        "--contact-sheet", type=Path, help=f"PNG file to write with the first {SHEET_MAX} side by side"
    )
    args = parser.parse_args(arguments)
    try:
        if args.count < 1:
            raise ValueError(f"--count is {args.count}; at least 1 is needed")
        config = Typography.from_dict(json.loads(args.config.read_text("utf-8")) if args.config else {})
        renderer = Renderer(config, held_out=args.held_out)
        write_dataset(args.out, renderer, args.count, args.seed, args.contact_sheet)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
