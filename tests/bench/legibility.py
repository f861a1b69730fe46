"""Measures how much damage verification finds, by correctness alone and with legibility.

    python3 dev.py bench legibility [--part rendered | nano] [--fresh]

rendered: 144 pictures of the typography renderer, damaged in known steps (`writing_damage.py`), and 72 as
they were drawn. Judged beforehand: every step is damage.

nano: 200 pictures of Ovis-Image Nano, 50 held-out captions at 2, 3, 5 and 20 steps. Judged beforehand by the
renderer's own picture of the caption, which has the text at the same place: the correlation of both pictures'
ink in each character's cell, of which the lowest counts. Below 0.8 a picture is damaged, from 0.85 on it is
sound, between them it is not counted.

The threshold is the 5 % quantile of the sound pictures that pass correctness, in one half of the blocks or
captions; what is reported is the other half. A picture is a line of results/legibility_*.jsonl: a run that
was stopped goes on there, and --fresh begins anew. Needs rapidocr, onnxruntime and the renderer's fonts. Not
a test: it measures, prints, and writes results/legibility.json and results/legibility.md.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
from nano_text import ROOT, conditions, held_out_examples
from writing_damage import STEPS, damage, swap

from ovis_core.drawing.fonts import FILES
from ovis_core.evaluation.legibility import Legibility, plain_faces
from ovis_core.evaluation.ocr import RapidReader
from ovis_core.evaluation.verify import measured, verify
from ovis_core.pipeline import load_pipeline
from ovis_core.training.report import to_image
from ovis_core.typography.rendering import Example, Renderer
from ovis_core.typography.settings import Typography

RESULTS = Path(__file__).parent / "results"
SEED = 2
SIZES = ((384, 384), (256, 256))
GROUNDS = {
    "plain": 0.7,
    "frame": 0.15,
    "stripe": 0.15,
}  # one colour below the writing, which cuts are filled with
DAMAGES = [(kind, step) for kind in ("melted", "broken") for step in STEPS] + [
    ("swapped", n) for n in (1, 2, 3)
]
BLOCK = [case for damaged in DAMAGES for case in (damaged, damaged, ("none", ""))]
BLOCKS = 8
CAPTIONS, NANO_STEPS, CFG = 50, (2, 3, 5, 20), 4.0
DAMAGED_BELOW, SOUND_FROM = 0.8, 0.85
ADVANCES = {"en": 16, "zh": 32}  # pixels of a character in the Nano's pictures
FALSE_ALARMS = 0.05
FIGURES = {
    "legibility": "legibility",
    "other_fonts": "legibility, without the files of the pictures' own fonts",
    "confidence": "the reader's mean confidence",
}


class Judge:
    """Verifies a picture, and measures it by all fonts and by those that the renderer does not use."""

    def __init__(self) -> None:
        used = {name for fonts in FILES.values() for _, name, _ in fonts}
        faces = plain_faces()
        self.read, self.measure = RapidReader(), Legibility(faces)
        self.others = Legibility([face for face in faces if not face.path or face.path.name not in used])

    def __call__(self, image: np.ndarray, texts: Sequence[str]) -> dict:
        """Makes the figures of a row."""
        start = time.perf_counter()
        verdict = verify(image, texts, self.read)
        read = time.perf_counter()
        legible = measured(verdict, image, self.measure, 0.0)
        end = time.perf_counter()
        regions = [i for match in verdict.matches for i in match.regions]
        return {
            "texts": list(texts),
            "passed": verdict.passed,
            "legibility": round(legible.legibility, 4),
            "other_fonts": round(measured(verdict, image, self.others, 0.0).legibility, 4),
            "confidence": round(min((verdict.regions[i].score for i in regions), default=0.0), 4),
            "seconds": [round(read - start, 3), round(end - read, 3)],
        }


def rendered(done: set[int]) -> Iterator[dict]:
    """Draws, damages and judges the pictures that are not done."""
    renderer, judge = Renderer(Typography(sizes=SIZES, backgrounds=GROUNDS)), Judge()
    for number in sorted({*range(len(BLOCK) * BLOCKS)} - done):
        kind, step = BLOCK[number % len(BLOCK)]
        example, image = _damaged(renderer, number, kind, step)
        yield {
            "number": number,
            "half": number // len(BLOCK) % 2,
            "group": f"{kind} {step}".strip(),
            "damaged": kind != "none",
            **judge(np.asarray(image), example.texts),
        }


def _damaged(renderer: Renderer, number: int, kind: str, step: str | int) -> tuple[Example, object]:
    for index in range(number, 1_000_000, 1000):  # until a text has so many look-alikes
        if kind == "swapped" and (swapped := swap(renderer, SEED, index, int(step))):
            return swapped
        if kind != "swapped":
            break
    example = renderer(SEED, number)
    if kind == "none":
        return example, example.image
    return example, damage(example, kind, STEPS[str(step)], Random(f"damage/{SEED}/{number}"))


def nano(done: set[int]) -> Iterator[dict]:
    """Makes and judges the pictures that are not done."""
    judge = Judge()
    pipeline = load_pipeline(ROOT / "models" / "Ovis-Image-Nano", dtype=torch.float32)
    examples = held_out_examples(CAPTIONS, SEED)
    for number in sorted({*range(CAPTIONS * len(NANO_STEPS))} - done):
        seed, turn = divmod(number, len(NANO_STEPS))
        example = examples[seed]
        width, height = example.image.size
        image = pipeline(
            example.caption, width=width, height=height, steps=NANO_STEPS[turn], cfg=CFG, seed=seed
        )
        pixels = np.asarray(to_image(image[0]))
        alike = likeness(pixels, example)
        damaged = True if alike < DAMAGED_BELOW else False if alike >= SOUND_FROM else None
        yield {
            "number": number,
            "half": seed % 2,
            "group": f"{NANO_STEPS[turn]} steps",
            "damaged": damaged,
            "likeness": round(alike, 4),
            **judge(pixels, example.texts),
        }


def likeness(image: np.ndarray, example: Example) -> float:
    """Correlates the ink of each character's cell with that of the renderer's picture -> the lowest."""
    ours, theirs = (_distance(pixels) for pixels in (image, np.asarray(example.image)))
    (box,), (text,) = example.boxes, example.texts
    advance = ADVANCES[example.language]
    left = box.left // 16 * 16  # the grid of the recipe
    found = []
    for i in range(len(text)):
        cell = slice(box.top - 2, box.bottom + 2), slice(left + i * advance, left + (i + 1) * advance)
        a, b = ours[cell].ravel(), theirs[cell].ravel()
        found.append(float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 else 0.0)
    return min(found)


def _distance(pixels: np.ndarray) -> np.ndarray:
    """Measures how far each pixel is from the colour of the picture's edge."""
    pixels = pixels.astype(float)
    edge = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
    return np.abs(pixels - np.median(edge, axis=0)).sum(-1)


def summary(rows: Sequence[dict]) -> dict:
    """Chooses each figure's threshold in one half, and counts in the other."""
    chosen, told = ([row for row in rows if row["half"] == half] for half in (0, 1))
    passing = [row for row in told if row["passed"]]
    result: dict = {"correctness alone": _rates(told, lambda row: not row["passed"])}
    for figure in FIGURES:
        sound = [row[figure] for row in chosen if row["damaged"] is False and row["passed"]]
        threshold = float(np.quantile(sound, FALSE_ALARMS))

        def fails(row: dict, figure: str = figure, threshold: float = threshold) -> bool:
            return row[figure] < threshold

        groups = {row["group"]: None for row in rows}
        result[figure] = {
            "threshold": round(threshold, 3),
            "with correctness": _rates(told, lambda row: not row["passed"] or fails(row)),
            "of those that pass correctness": _rates(passing, fails),
            "groups that pass": {
                group: _rates([row for row in passing if row["group"] == group], fails) for group in groups
            },
        }
    seconds = np.median([row["seconds"] for row in rows if row["passed"]], axis=0)
    result["median seconds of reading, of legibility"] = [round(float(value), 3) for value in seconds]
    return result


def _rates(rows: Sequence[dict], fails: Callable[[dict], bool]) -> dict:
    """Gives (found, of) for damaged pictures, and for sound ones that were called damaged."""
    counts = {}
    for name, damaged in (("detected", True), ("false alarms", False)):
        failed = [fails(row) for row in rows if row["damaged"] is damaged]
        counts[name] = [sum(failed), len(failed)]
    return counts


def page(results: dict[str, dict]) -> str:
    """Writes the results as Markdown tables."""
    lines = []
    for part, result in results.items():
        lines += [f"## {part}", "", "| judged by | threshold | pictures | damage detected | false alarms |"]
        lines += ["|---|---|---|---|---|"]
        lines.append(_line("correctness alone", "1", "all", result["correctness alone"]))
        for figure, title in FIGURES.items():
            found = result[figure]
            for name, pictures in (
                ("with correctness", "all"),
                ("of those that pass correctness", "passing"),
            ):
                lines.append(_line(title, f"{found['threshold']:.2f}", pictures, found[name]))
        for group, rates in result["legibility"]["groups that pass"].items():
            lines.append(
                _line("legibility", f"{result['legibility']['threshold']:.2f}", f"passing, {group}", rates)
            )
        read, legible = result["median seconds of reading, of legibility"]
        lines += [
            "",
            f"Median of a passing picture: {read} s to read it, {legible} s for its legibility.",
            "",
        ]
    return "\n".join(lines)


def _line(title: str, threshold: str, pictures: str, rates: dict) -> str:
    cells = [f"{a / b:.3f} ({a} of {b})" if b else "-" for a, b in rates.values()]
    return f"| {title} | {threshold} | {pictures} | {' | '.join(cells)} |"


def main() -> None:
    """Measures, prints and writes the results."""
    parser = argparse.ArgumentParser(description="Measures what legibility finds.")
    parser.add_argument("--part", choices=("rendered", "nano"), help="default: both")
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    args = parser.parse_args()
    results = {}
    for part, rows_of in (("rendered", rendered), ("nano", nano)):
        path = RESULTS / f"legibility_{part}.jsonl"
        if args.fresh and args.part in (None, part):
            path.unlink(missing_ok=True)
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
        if args.part in (None, part):
            for row in rows_of({row["number"] for row in rows}):
                rows.append(row)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if rows:
            results[part] = summary(rows)
    result = {**results, "command": "python3 dev.py bench legibility", **conditions()}
    (RESULTS / "legibility.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    (RESULTS / "legibility.md").write_text(page(results), "utf-8")
    print(page(results))


if __name__ == "__main__":
    main()
