"""Writes measured rows beside their peers as JSON, a Markdown table and a plot."""

import dataclasses
import datetime as dt
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

RESULTS = Path(__file__).resolve().parent / "results"
BAR_HEIGHT, BARS_WIDTH = 26, 520
MAX_BAR = 4.0  # bars end at this ratio; their label gives the figure


@dataclass(frozen=True)
class Row:
    """A figure of ours and a peer's from the same run; `ratio` above 1 is better for us."""

    id: str
    what: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    unit: str
    command: str
    hardware: str
    date: str
    spread: tuple[tuple[float, float], tuple[float, float]] | None = None  # quartiles of ours and the peer's


def less_is_better(
    id: str, what: str, ours: float, peer: float, peer_name: str, unit: str, command: str
) -> Row:
    """Makes a row of figures of which less is better."""
    today = dt.date.today().isoformat()
    return Row(id, what, ours, peer, peer_name, peer / ours, unit, command, hardware(), today)


def fewer_is_better(id: str, what: str, ours: int, peer: int, peer_name: str, command: str) -> Row:
    """Makes a row of counts that may be 0: the ratio is that of the counts plus one."""
    row = less_is_better(id, what, ours + 1, peer + 1, peer_name, "", command)
    return dataclasses.replace(row, ours=ours, peer=peer)


def hardware() -> str:
    """Names the CPU, its threads and the versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return ", ".join([cpu, f"{torch.get_num_threads()} threads", *versions()])


def versions(packages: Iterable[str] = ("diffusers",)) -> list[str]:
    """Lists the versions of torch, of packages, and of the ComfyUI in COMFYUI_PATH."""
    found = [f"torch {torch.__version__}"]
    for package in packages:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {package}")
    path = Path(os.environ.get("COMFYUI_PATH", "")) / "comfyui_version.py"
    number = re.search(r'"(.+)"', path.read_text("utf-8")) if path.is_file() else None
    return [*found, f"ComfyUI {number[1] if number else 'of unknown version'}"]


def write(name: str, rows: Iterable[Row], note: str, folder: Path | None = None) -> None:
    """Writes NAME.json, .md and .png in the folder, by default the results."""
    rows, folder = list(rows), folder or RESULTS
    folder.mkdir(exist_ok=True)
    entries = [dataclasses.asdict(row) for row in rows]
    (folder / f"{name}.json").write_text(json.dumps(entries, indent=1) + "\n", "utf-8")
    (folder / f"{name}.md").write_text(markdown(rows, note), "utf-8")
    plot(rows).save(folder / f"{name}.png")


def markdown(rows: list[Row], note: str) -> str:
    """Writes the rows as a Markdown table."""
    lines = ["| what | ours | peer | | ratio |", "|---|---|---|---|---|"]
    for row in rows:
        ranges = (f" ({low:.4g} to {high:.4g})" for low, high in row.spread) if row.spread else ("", "")
        ours, peer = (
            f"{figure:.4g} {row.unit}{range}"
            for figure, range in zip((row.ours, row.peer), ranges, strict=True)
        )
        figures = f"{ours} | {peer}"
        lines.append(f"| {row.what} | {figures} | {row.peer_name} | {row.ratio:.2f} |")
    source = f"`{rows[0].command}`, {rows[0].date}, {rows[0].hardware}. Ratios above 1 are better for us."
    return "\n".join([*lines, "", f"{source} {note}", ""])


def plot(rows: list[Row]) -> Image.Image:
    """Draws a bar a row; the line is a ratio of 1."""
    font = ImageFont.load_default(13)
    labels = [f"{row.what}, beside {row.peer_name}" for row in rows]
    left = int(max(font.getlength(label) for label in labels)) + 20
    image = Image.new("RGB", (left + BARS_WIDTH, BAR_HEIGHT * (len(rows) + 1)), "white")
    draw = ImageDraw.Draw(image)
    scale = (BARS_WIDTH - 60) / max(1.2, *(min(row.ratio, MAX_BAR) for row in rows))
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        top, right = BAR_HEIGHT // 2 + i * BAR_HEIGHT, left + scale * min(row.ratio, MAX_BAR)
        draw.text((8, top + 4), label, "black", font)
        colour = "#1f4e9c" if row.ratio >= 1 else "#b05030"
        draw.rectangle((left, top + 3, right, top + BAR_HEIGHT - 3), colour)
        draw.text((right + 6, top + 4), f"{row.ratio:.2f}", "black", font)
    draw.line((left + scale, 0, left + scale, image.height), "#888888")
    return image
