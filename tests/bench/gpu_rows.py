"""What the GPU bench measured -> rows beside their peers, and a page. Arithmetic alone: no GPU, no ComfyUI.

`measured` is {part: {command, date, hardware, steps, ceilings, errors, left_out, sizes}}; sizes are {side:
{tflop, runs: {id: figures}}}, with tflop those of a guided step and figures what `gpu` finds of one
implementation. Ratios are of one part, whose implementations ran in turns.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from table import Row

NAMES = {
    "D0": "diffusers as shipped",
    "D1": "diffusers, compile_repeated_blocks",
    "N0": "ComfyUI as shipped",
    "N0c": "ComfyUI, cuDNN attention by override",
    "U0": "ours, eager",
    "U1": "ours, compiled",
    "U2": "ours, compiled, guidance in two passes",
    "U3": "ours, compiled, fp8 weights",
    "U5": "ours, compiled, every second step skipped",
    "U0-comfyui": "ours, eager, attention as ComfyUI chooses it",
    "U0-flash": "ours, eager, FlashAttention forced",
    "U0-cudnn": "ours, eager, cuDNN attention forced",
    "U0-table": "ours, eager, modulation and text tokens computed every time",
    "U0-text": "ours, eager, text tokens computed every time",
    "U0-parts": "ours, eager, single blocks in one part",
    "U0-joined": "ours, eager, norms, modulation and rotation not joined",
    "U0-rope": "ours, eager, rotary table made every time",
    "U0-split": "ours, eager, guidance in two passes",
}
PEERS = ("D0", "D1", "N0", "N0c")
PAIRS = (
    *(("U1", peer) for peer in PEERS),
    *(("U0", peer) for peer in PEERS),
    ("U3", "D0"),
    ("U3", "U1"),
    ("U1", "U2"),
    ("U5", "U1"),
    *(("U0", id) for id in NAMES if id.startswith("U0-")),
)
CEILING = "product 4352x3072x33792, sustained"  # of the precision that exact weights are multiplied in


def merge(path: Path, part: str, new: dict) -> dict:
    """The file's parts with one replaced, written back."""
    measured = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    measured = dict(sorted((measured | {part: new}).items()))
    path.write_text(json.dumps(measured, indent=1) + "\n", "utf-8")
    return measured


def rows_of(measured: dict) -> list[Row]:
    """Every figure of ours that has a peer in the same part; of two parts' alike, the first."""
    rows: dict[str, Row] = {}
    for part in measured.values():
        for id, what, ours, peer, peer_name, unit, more_is_better in _comparisons(part):
            ratio = ours / peer if more_is_better else peer / ours
            source = part["command"], part["hardware"], part["date"]
            rows.setdefault(id, Row(id, what, ours, peer, peer_name, ratio, unit, *source))
    return list(rows.values())


Comparison = tuple[str, str, float, float, str, str, bool]
KINDS = (  # id, what, key, unit, how many of the key's are one
    ("step", "a guided step", "ms", "ms", 1),
    ("image", "an image", "image_s", "s", 1),
    ("memory", "weights and activations, peak", "peak_bytes", "GiB", 2**30),
)


def _comparisons(part: dict) -> Iterator[Comparison]:
    """(id, what, ours, peer, peer's name, unit, more is better)."""
    ceilings = [figure for what, figure, *_ in part["ceilings"] if CEILING in what and "fp8" not in what]
    for side, size in part["sizes"].items():
        runs, picture = size["runs"], f"{side}x{side}"
        for ours, peer in PAIRS:
            if ours in runs and peer in runs:
                yield from _pair(side, ours, peer, runs[ours], runs[peer])
        if "U5" in runs and "U1" in runs:
            full = runs["U1"]["ms"]
            skipped = max(2 * runs["U5"]["ms"] - full, 0.001)  # computed and skipped by turns
            what = f"a step that the cache skips, {picture}"
            yield f"skipped-{side}", what, skipped, full, "one computed", "ms", False
        if "U1" in runs and ceilings:
            rate = 1000 * size["tflop"] / runs["U1"]["ms"]
            what, peer = f"operations a second, {picture}: {NAMES['U1']}", "a matrix product alone, sustained"
            yield f"rate-{side}", what, rate, ceilings[0], peer, "TFLOP/s", True
    errors = {id: error for id, error in part["errors"].items() if error}
    for peer in ("D0", "N0"):
        for ours in ("U0", "U1"):
            if ours in errors and peer in errors:
                what = f"distance from float32: {NAMES[ours]}"
                yield f"error-{ours}-{peer}", what, errors[ours], errors[peer], NAMES[peer], "", False


def _pair(side: str, ours: str, peer: str, a: dict, b: dict) -> Iterator[Comparison]:
    for kind, what, key, unit, scale in KINDS:
        if key in a and key in b:
            id = f"{kind}-{side}-{ours}-{peer}"
            what = f"{what}, {side}x{side}: {NAMES[ours]}"
            yield id, what, a[key] / scale, b[key] / scale, NAMES[peer], unit, False


def page(measured: dict) -> str:
    """What stands behind the rows: every implementation's figures, ceilings, and what was left out."""
    lines = [
        "Random weights (normal, sigma 0.02; fixed seed), the same for all: nothing is said about pictures. "
        "A guided step is both branches of guidance, two passes in diffusers and one batch else; medians of "
        "calls taken in turns, with quartiles. ComfyUI's models lie on the device as a whole, without "
        "dynamic VRAM. Peaks are a network's own weights and what a step takes beside them. Ratios are of "
        "one run."
    ]
    for number, part in measured.items():
        source = f"`{part['command']}`, {part['date']}, {part['hardware']}"
        lines += ["", f"## Part {number}", "", source, ""]
        lines += [
            "| picture | implementation | a step, ms | quartiles | TFLOP/s "
            f"| {part['steps']} steps, s | peak, GiB "
            "| first call, s | distance from float32 | attention kernel |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for side, size in part["sizes"].items():
            for id, run in size["runs"].items():
                rate = "" if id == "U5" else f"{1000 * size['tflop'] / run['ms']:.0f}"
                low, high = run["quartiles_ms"]
                peak = f"{run['peak_bytes'] / 2**30:.2f}" if "peak_bytes" in run else ""
                error = part["errors"].get(id)
                lines.append(
                    f"| {side} | {id} {NAMES[id]} | {run['ms']:.1f} | {low:.1f} to {high:.1f} | {rate} "
                    f"| {run.get('image_s', '')} | {peak} | {run.get('first_call_s', '')} "
                    f"| {'' if error is None else f'{error:.2g}'} | `{run.get('attention', '')[:60]}` |"
                )
        lines += ["", *(f"- {what}: {figure:.4g} {unit}" for what, figure, unit, *_ in part["ceilings"])]
        lines += [f"- left out: {what} ({reason})" for what, reason in part["left_out"].items()]
    return "\n".join(lines)
