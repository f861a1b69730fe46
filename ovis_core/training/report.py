"""Writes what a run leaves to look at: a log of JSON lines, the loss as a curve, and samples."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from ..drawing.fonts import BUILT_IN, Fonts
from ..drawing.sheet import draw_sheet
from ..files.storage import replacing

CURVE_SIZE, CURVE_MARGIN = (900, 500), 60


class Log:
    """Lines of JSON in a file that a resumed run goes on with."""

    def __init__(self, path: Path):
        self.path = path

    def cut(self, step: int) -> None:
        """Drops the lines from a step on, which the resumed run will write again."""
        if self.path.is_file():
            kept = [entry for entry in self.entries() if entry["step"] < step]
            with replacing(self.path) as temporary:
                temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), "utf-8")

    def write(self, entry: Mapping[str, float]) -> None:
        # JSON has no NaN; the step that had it is in the log all the same.
        finite = {key: value if math.isfinite(value) else None for key, value in entry.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")

    def entries(self) -> Iterator[dict]:
        """Reads the lines so far; one that a killed run left unfinished is passed over."""
        for line in self.path.read_text("utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def draw_curve(log: Log, path: Path, key: str = "loss") -> None:
    """Draws the logged values over the steps, as points and as their average over a fiftieth of the run."""
    points = [(entry["step"], entry[key]) for entry in log.entries() if entry.get(key) is not None]
    image = Image.new("RGB", CURVE_SIZE, "white")
    if len(points) > 1:
        _plot(ImageDraw.Draw(image), np.array(points, dtype=float), key)
    save_image(image, path)


def _plot(draw: ImageDraw.ImageDraw, points: np.ndarray, label: str) -> None:
    steps, values = points.T
    top = np.quantile(values, 0.99)
    low, high = min(0.0, values.min()), max(top, 1e-9)
    width, height = CURVE_SIZE

    def place(step: float, value: float) -> tuple[float, float]:
        across = (step - steps[0]) / (steps[-1] - steps[0])
        up = (min(value, high) - low) / (high - low)
        inner = width - 2 * CURVE_MARGIN, height - 2 * CURVE_MARGIN
        return CURVE_MARGIN + across * inner[0], height - CURVE_MARGIN - up * inner[1]

    font = BUILT_IN.at(14)
    for part in range(5):
        value = low + (high - low) * part / 4
        x, y = place(steps[0], value)
        draw.line((x, y, width - CURVE_MARGIN, y), "#dddddd")
        draw.text((x - 8, y), f"{value:.3g}", "black", font, anchor="rm")
        step = steps[0] + (steps[-1] - steps[0]) * part / 4
        draw.text((place(step, low)[0], height - CURVE_MARGIN + 8), f"{step:.0f}", "black", font, anchor="mt")
    draw.text((width / 2, 20), f"{label} over steps", "black", font, anchor="mm")
    draw.point([place(*point) for point in points], "#9ab8e0")
    window = max(1, len(values) // 50)
    mean = np.convolve(values, np.ones(window) / window, "valid").real.tolist()
    draw.line([place(*p) for p in zip(steps[window - 1 :], mean, strict=True)], "#1f4e9c", 2)


def save_samples(images: Tensor, captions: Sequence[str], path: Path, columns: int = 4) -> None:
    """Writes pictures (B, 3, H, W) in [0, 1] as one sheet, each above its caption."""
    fonts = Fonts()
    labels = [fonts.replace_missing(caption) for caption in captions]
    save_image(draw_sheet([to_image(image) for image in images], labels, columns=columns, fonts=fonts), path)


def to_image(image: Tensor) -> Image.Image:
    """Turns (3, H, W) in [0, 1] into a picture."""
    return Image.fromarray((image.clamp(0, 1) * 255).round().byte().movedim(0, 2).cpu().numpy())


def save_image(image: Image.Image, path: Path) -> None:
    """Writes a PNG whole or not at all."""
    with replacing(path) as temporary:
        image.save(temporary, "PNG")
