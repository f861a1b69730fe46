"""Measures how often verification finds a wrong character, and how often it raises a false alarm.

    python3 tests/bench/verify_text.py

draws 300 pictures with the typography renderer, in three sizes, and verifies each: every second one against
its own texts with one character changed, left out, added or swapped. Needs rapidocr, onnxruntime and the
renderer's fonts. Not a test: it measures, prints, and writes results/verify_text.json.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from datetime import date
from pathlib import Path
from random import Random

import numpy as np

_spec = importlib.util.spec_from_file_location("tiny_model", Path(__file__).parents[1] / "tiny_model.py")
sys.modules["tiny_model"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["tiny_model"])  # makes `ovis_core` importable

from ovis_core.evaluation.ocr import RapidReader  # noqa: E402
from ovis_core.evaluation.text_metrics import Rules, fold  # noqa: E402
from ovis_core.evaluation.verify import verify  # noqa: E402
from ovis_core.typography.lexicon import CHARACTERS  # noqa: E402
from ovis_core.typography.rendering import Renderer  # noqa: E402
from ovis_core.typography.settings import Typography  # noqa: E402

SIZES = ((1024, 1024), (512, 512), (128, 128))
RESULTS = Path(__file__).parent / "results" / "verify_text.json"


def misspell(rng: Random, texts: tuple[str, ...]) -> list[str]:
    """Makes one mistake in the texts, in any character but spaces, that counts by the rules."""
    while True:
        wrong = list(texts)
        line = rng.randrange(len(wrong))
        text = wrong[line]
        i = rng.randrange(len(text))
        letters = CHARACTERS if "\u4e00" <= text[i] <= "\u9fff" else "abcdefghijklmnopqrstuvwxyz"
        letters = "0123456789" if text[i].isdigit() else letters
        letter = rng.choice(letters)
        kind = rng.choice(("replace", "leave out", "add", "swap"))
        changed = {
            "replace": text[:i] + letter + text[i + 1 :],
            "leave out": text[:i] + text[i + 1 :],
            "add": text[:i] + letter + text[i:],
            "swap": text[:i] + text[i + 1 : i + 2] + text[i] + text[i + 2 :],
        }[kind]
        wrong[line] = changed
        if text[i] != " " and changed.strip() and fold(changed, Rules()) != fold(text, Rules()):
            return wrong


def measure(count: int, seed: int) -> list[dict]:
    """Measures a row for each picture."""
    renderer, reader = Renderer(Typography(sizes=SIZES)), RapidReader()
    rows = []
    for index in range(count):
        example = renderer(seed, index)
        is_wrong = index % 2 == 1
        texts = misspell(Random(f"{seed}/{index}"), example.texts) if is_wrong else list(example.texts)
        start = time.perf_counter()
        verdict = verify(np.asarray(example.image), texts, reader)
        rows.append(
            {
                "side": max(example.image.size),
                "language": example.language,
                "drawn": list(example.texts),
                "expected": texts,
                "misspelled": is_wrong,
                "failed": not verdict.passed,
                "read": [region.text for region in verdict.regions],
                "seconds": time.perf_counter() - start,
            }
        )
        if rows[-1]["failed"] != is_wrong:
            print(f"picture {index}: {rows[-1]}", flush=True)
    return rows


def summary(rows: list[dict]) -> dict:
    """Summarises shares and times of some pictures."""
    wrong = [row["failed"] for row in rows if row["misspelled"]]
    right = [row["failed"] for row in rows if not row["misspelled"]]
    times = {
        name: sorted(row["seconds"] for row in rows if row["failed"] == failed)
        for name, failed in (("passed", False), ("failed", True))
    }
    return {
        "pictures": len(rows),
        "detection": round(sum(wrong) / len(wrong), 4),
        "false_alarms": round(sum(right) / len(right), 4),
        "seconds_median_passed": round(times["passed"][len(times["passed"]) // 2], 3),
        "seconds_median_failed": round(times["failed"][len(times["failed"]) // 2], 3),
    }


def main() -> None:
    """Measures, prints and writes the results."""
    parser = argparse.ArgumentParser(description="Measures verification on rendered pictures.")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = measure(args.count, args.seed)
    groups = {f"{side} pixels": [row for row in rows if row["side"] == side] for side, _ in SIZES}
    groups |= {language: [row for row in rows if row["language"] == language] for language in ("en", "zh")}
    result = {
        "command": f"python3 tests/bench/verify_text.py --count {args.count} --seed {args.seed}",
        "date": date.today().isoformat(),
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}, {platform.system()}",
        "packages": {name: importlib.metadata.version(name) for name in ("rapidocr", "onnxruntime")},
        "all": summary(rows),
        **{name: summary(group) for name, group in groups.items()},
        "mistaken": [row for row in rows if row["failed"] != row["misspelled"]],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "mistaken"}, indent=1))


if __name__ == "__main__":
    main()
