"""Measures how well Ovis-Image Nano writes words that it never saw, in which colours, and how fast.

    python3 tests/bench/nano_text.py [--model FOLDER] [--count 200] [--steps 20] [--cfg 4]

makes pictures of held-out captions, English and Chinese, and reads each once by OCR at four times its size.
Beside each figure stands the same one on the renderer's own pictures of these captions, the best that this
reader and this way of measuring colours can give. Needs rapidocr, onnxruntime and the renderer's fonts. Not a
test: it measures, prints, writes results/nano_text.json and draws results/nano_text.png.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image

_spec = importlib.util.spec_from_file_location("tiny_model", Path(__file__).parents[1] / "tiny_model.py")
sys.modules["tiny_model"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["tiny_model"])  # makes `ovis_core` importable

from ovis_core.drawing.sheet import draw_sheet  # noqa: E402
from ovis_core.evaluation.benchmarks import Reading, cvtg_ned, cvtg_word_accuracy  # noqa: E402
from ovis_core.evaluation.ocr import RapidReader, reading_order  # noqa: E402
from ovis_core.evaluation.text_metrics import Rules  # noqa: E402
from ovis_core.evaluation.verify import annotate, judge  # noqa: E402
from ovis_core.pipeline import load_pipeline  # noqa: E402
from ovis_core.training.nano.recipe import CPU_RECIPE  # noqa: E402
from ovis_core.training.report import to_image  # noqa: E402
from ovis_core.typography.palette import writing_colours  # noqa: E402
from ovis_core.typography.rendering import Example, Renderer  # noqa: E402

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "nano_text.json"
SHEET = 24  # pictures on the sheet
TARGETS = {"word_accuracy_en": 0.92, "word_accuracy_zh": 0.85, "colour_accuracy": 0.95}


def held_out_examples(count: int, seed: int) -> list[Example]:
    """Selects pictures of different held-out texts, three English ones to two Chinese."""
    renderer = Renderer(CPU_RECIPE.typography, held_out=True)
    wanted = {"en": count * 3 // 5, "zh": count - count * 3 // 5}
    chosen: dict[tuple, Example] = {}
    for index in range(100 * count):
        example = renderer(seed, index)
        if example.texts not in chosen and wanted[example.language]:
            wanted[example.language] -= 1
            chosen[example.texts] = example
    return list(chosen.values())


def judged(examples: Sequence[Example], images: Sequence[Image.Image], read: Callable) -> tuple[dict, list]:
    """Measures pictures of these examples -> figures, and the pictures with frames round what was read."""
    readings, framed, right = [], [], 0
    for example, image in zip(examples, images, strict=True):
        right += writing_colours(np.asarray(image)) == (example.text_colour, example.background_colour)
        large = np.asarray(image.resize((4 * image.width, 4 * image.height), Image.Resampling.BICUBIC))
        regions = reading_order(read(large))
        readings.append(Reading(example.texts, [region.text for region in regions]))
        verdict = judge(regions, example.texts, Rules(), threshold=1.0, count_extra=True)
        framed.append(Image.fromarray(annotate(large, verdict)).resize((192, 192)))
    by_language = {
        language: [r for e, r in zip(examples, readings, strict=True) if e.language == language]
        for language in ("en", "zh")
    }
    figures = {
        f"word_accuracy_{language}": cvtg_word_accuracy(some) for language, some in by_language.items()
    }
    figures |= {f"ned_{language}": cvtg_ned(some) for language, some in by_language.items()}
    return figures | {"colour_accuracy": right / len(examples)}, framed


def conditions() -> dict:
    """Describes the conditions under which a figure was measured."""
    return {
        "date": date.today().isoformat(),
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}, {platform.system()}",
        "packages": {n: importlib.metadata.version(n) for n in ("torch", "rapidocr", "onnxruntime")},
    }


def write_rows(path: Path, rows: list[dict], command: str, columns: dict[str, Callable[[dict], str]]) -> None:
    """Writes the rows as JSON, and beside it as a Markdown table of {title: a row's cell}."""
    path.write_text(json.dumps({"rows": rows, "command": command, **conditions()}, indent=1) + "\n", "utf-8")
    lines = [[*columns], *([cell(row) for cell in columns.values()] for row in rows)]
    table = [f"| {' | '.join(line)} |" for line in lines]
    table.insert(1, "|---" * len(columns) + "|")
    path.with_suffix(".md").write_text("\n".join([*table, "", f"`{command}`", ""]), "utf-8")


def main() -> None:
    """Measures, prints, writes the results and draws the sheet."""
    parser = argparse.ArgumentParser(description="Measures the words and colours of Ovis-Image Nano.")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "Ovis-Image-Nano")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    pipeline, read = load_pipeline(args.model, dtype=torch.float32), RapidReader()
    examples = held_out_examples(args.count, args.seed)
    images, seconds = [], []
    for number, example in enumerate(examples):
        start = time.perf_counter()
        width, height = example.image.size
        image = pipeline(
            example.caption, width=width, height=height, steps=args.steps, cfg=args.cfg, seed=number
        )
        seconds.append(time.perf_counter() - start)
        images.append(to_image(image[0]))
    figures, framed = judged(examples, images, read)
    best, _ = judged(examples, [example.image for example in examples], read)
    result = {
        **{name: round(value, 4) for name, value in figures.items()},
        "seconds_per_image": round(sorted(seconds)[len(seconds) // 2], 3),
        "targets": TARGETS,
        "of_rendered_pictures": {name: round(value, 4) for name, value in best.items()},
        "pictures": len(examples),
        "size": f"{width}x{height}",
        "command": f"python3 tests/bench/nano_text.py --count {args.count} --seed {args.seed} "
        f"--steps {args.steps} --cfg {args.cfg}",
        **conditions(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    # The languages' shares are those of all examples.
    step = max(len(framed) // SHEET, 1)
    draw_sheet(framed[::step][:SHEET], columns=8).save(args.out.with_suffix(".png"), optimize=True)
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
