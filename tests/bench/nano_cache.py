"""Measures the cache's cost in legibility on Ovis-Image Nano: words, and distance from exact pictures.

    python3 dev.py bench nano-cache [--model FOLDER] [--prompts 24] [--steps 50] [--cfg 4]

Makes the same pictures without the cache and at some thresholds. Needs rapidocr, onnxruntime and the
renderer's fonts. Not a test: it measures, prints, and writes results/nano_cache.json and .md.
"""

import argparse
from pathlib import Path

import torch
from nano_text import ROOT, held_out_examples, judged, write_rows
from reports import counting

from ovis_core.evaluation.ocr import RapidReader
from ovis_core.pipeline import load_pipeline
from ovis_core.residual_cache import CacheSettings
from ovis_core.training.report import to_image

RESULTS = Path(__file__).parent / "results" / "nano_cache.json"
SETTINGS = {
    "off": None,
    **{f"threshold {t}": CacheSettings(t) for t in (0.05, 0.08, 0.1, 0.2)},
    "threshold 0.2, Taylor order 1": CacheSettings(0.2, order=1),
    **{f"threshold 0.4, up to {n} skips": CacheSettings(0.4, max_skips=n) for n in (6, 12)},
}


def main() -> None:
    """Measures, prints and writes the results."""
    parser = argparse.ArgumentParser(description="Measures what the cache costs in legibility.")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "Ovis-Image-Nano")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--cfg", type=float, default=4.0)
    args = parser.parse_args()

    pipeline, read = load_pipeline(args.model, dtype=torch.float32), RapidReader()
    examples = held_out_examples(args.prompts, seed=2)
    rows, exact = [], None
    for name, settings in SETTINGS.items():
        width, height = examples[0].image.size
        with counting() as reports:
            images = [
                pipeline(
                    e.caption,
                    width=width,
                    height=height,
                    steps=args.steps,
                    cfg=args.cfg,
                    seed=number,
                    cache=settings,
                )
                for number, e in enumerate(examples)
            ]
        made = torch.cat(images)
        exact = made if exact is None else exact
        error = (made - exact).square().mean((1, 2, 3))
        figures, _ = judged(examples, [to_image(image) for image in made], read)
        rows.append(
            {
                "cache": name,
                "computed": round(reports.computed / reports.forwards, 3) if settings else 1.0,
                "word_accuracy_en": round(figures["word_accuracy_en"], 3),
                "word_accuracy_zh": round(figures["word_accuracy_zh"], 3),
                "psnr_db": round(float(-10 * error.clamp(min=1e-10).log10().mean()), 1) if settings else None,
            }
        )
        print(rows[-1], flush=True)
    command = (
        f"python3 dev.py bench nano-cache --prompts {args.prompts} --steps {args.steps} --cfg {args.cfg}"
    )
    columns = {
        "cache": lambda row: row["cache"],
        "forwards computed": lambda row: f"{row['computed']:.0%}",
        "words right, English": lambda row: f"{row['word_accuracy_en']:.0%}",
        "Chinese": lambda row: f"{row['word_accuracy_zh']:.0%}",
        "PSNR, dB": lambda row: f"{row['psnr_db'] or '-'}",
    }
    write_rows(RESULTS, rows, command, columns)


if __name__ == "__main__":
    main()
