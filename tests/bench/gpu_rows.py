"""Turns what the GPU bench measured into rows beside their peers, and a page; needs no GPU or ComfyUI.

`measured` is {part: {command, date, hardware, steps, ceilings, reference, errors, left_out, sizes, cards}};
sizes are {side: {tflop, runs: {id: figures}}}, with tflop those of a guided step and figures what `gpu` finds
of one implementation; cards are what `gpu_offload` finds. Ratios are of one part, whose implementations ran
in turns.
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
    "U3-behind": "ours, compiled, fp8 weights, products scaled behind the kernel",
    "U3-int8": "ours, compiled, int8 weights",
    "U5": "ours, compiled, every second step skipped",
    "U0-comfyui": "ours, eager, attention as ComfyUI chooses it",
    "U0-flash": "ours, eager, FlashAttention forced",
    "U0-cudnn": "ours, eager, cuDNN attention forced",
    "U0-table": "ours, eager, modulation on the device and computed every time",
    "U0-parts": "ours, eager, single blocks in parts",
    "U0-textbook": "ours, eager, blocks as the textbook has them",
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
    ("U3", "U3-behind"),
    ("U3-int8", "D0"),
    ("U3-int8", "U1"),
    ("U1", "U2"),
    ("U5", "U1"),
    *(("U0", id) for id in NAMES if id.startswith("U0-")),
)
# Of a guided step: the least speed-up over the peer; and the largest figures allowed.
TARGET_SIDE, TARGET_STEPS = "1024", 50
TARGET_RATIOS = (("U1", "D0", 1.5), ("U1", "D1", 1.05), ("U1", "N0", 1.3), ("U0", "N0", 1.15))
TARGET_FIGURES = (("image", "U1", 8.6), ("memory", "U1", 12.3), ("memory", "U0", 12.3), ("image", "U3", 6.0))
PROFILED, LONGEST = ("U1", "U0", "N0"), 5
CEILING = "product 4352x3072x33792, sustained"  # of the precision that exact weights are multiplied in


def merge(path: Path, part: str, new: dict) -> dict:
    """Replaces one of the file's parts, and writes them back."""
    measured = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    measured = dict(sorted((measured | {part: new}).items()))
    path.write_text(json.dumps(measured, indent=1) + "\n", "utf-8")
    return measured


def rows_of(measured: dict) -> list[Row]:
    """Lists each figure of ours that has a peer in the same part; of equal rows, the first part's."""
    rows: dict[str, Row] = {}
    for part in measured.values():
        for id, what, ours, peer, peer_name, unit, more_is_better in _comparisons(part):
            ratio = ours / peer if more_is_better else peer / ours
            source = part["command"], part["hardware"], part["date"]
            rows.setdefault(id, Row(id, what, ours, peer, peer_name, ratio, unit, *source))
    return list(rows.values())


Comparison = tuple[str, str, float, float, str, str, bool]
KINDS = (  # id, what, key, unit, how many of the key's unit make one
    ("step", "a guided step", "ms", "ms", 1),
    ("image", "an image", "image_s", "s", 1),
    ("memory", "weights and activations, peak", "peak_bytes", "GiB", 2**30),
)


def _comparisons(part: dict) -> Iterator[Comparison]:
    """Lists (id, what, ours, peer, peer's name, unit, more is better)."""
    ceilings = [figure for what, figure, *_ in part["ceilings"] if CEILING in what and "fp8" not in what]
    for side, size in part["sizes"].items():
        runs, picture = size["runs"], f"{side}x{side}"
        for ours, peer in PAIRS:
            if ours in runs and peer in runs:
                yield from _pair(side, ours, peer, runs[ours], runs[peer])
        if "U5" in runs and "U1" in runs:
            full = runs["U1"]["ms"]
            skipped = max(2 * runs["U5"]["ms"] - full, 0.001)  # computed and skipped in turns
            what = f"a step that the cache skips, {picture}"
            yield f"skipped-{side}", what, skipped, full, "one computed", "ms", False
        if "U1" in runs and ceilings:
            rate = 1000 * size["tflop"] / runs["U1"]["ms"]
            what, peer = f"operations a second, {picture}: {NAMES['U1']}", "a matrix product alone, sustained"
            yield f"rate-{side}", what, rate, ceilings[0], peer, "TFLOP/s", True
    yield from _errors(part)
    yield from _cards(part)


def _errors(part: dict) -> Iterator[Comparison]:
    if part["reference"] != "float32":
        return
    errors = {id: error for id, error in part["errors"].items() if error}
    for peer in ("D0", "N0"):
        for ours in ("U0", "U1"):
            if ours in errors and peer in errors:
                what = f"distance from float32: {NAMES[ours]}"
                yield f"error-{ours}-{peer}", what, errors[ours], errors[peer], NAMES[peer], "", False


def _cards(part: dict) -> Iterator[Comparison]:
    found = {(row["card"], row["way"], row["id"]): row for row in part["cards"]}
    for (card, way, id), ours in found.items():
        peer = found.get((card, way, "N0"))
        if id == "U0" and peer is not None:
            where = f"{ours['side']}x{ours['side']} on a card of {card}, {way}: {NAMES[id]}"
            row = f"{card}-{way}".replace(" ", "-")
            steps = ours["step_s"], peer["step_s"]
            yield f"card-step-{row}", f"a guided step, {where}", *steps, NAMES["N0"], "s", False
            moved = ours["moved_bytes"] / 2**30, peer["moved_bytes"] / 2**30
            if all(moved):
                yield (
                    f"card-moved-{row}",
                    f"weights moved a forward, {where}",
                    *moved,
                    NAMES["N0"],
                    "GiB",
                    False,
                )


def _pair(side: str, ours: str, peer: str, a: dict, b: dict) -> Iterator[Comparison]:
    for kind, what, key, unit, scale in KINDS:
        if key in a and key in b:
            id = f"{kind}-{side}-{ours}-{peer}"
            what = f"{what}, {side}x{side}: {NAMES[ours]}"
            yield id, what, a[key] / scale, b[key] / scale, NAMES[peer], unit, False


def page(measured: dict) -> str:
    """Writes the page: targets, every implementation's figures, ceilings, what was left out."""
    lines = [
        "Random weights (normal, sigma 0.02; fixed seed), the same for all: nothing is said about pictures. "
        "A guided step is both branches of guidance, two passes in diffusers and one batch else; medians of "
        "calls taken in turns, with quartiles. But for cards of less memory, ComfyUI's models lie on the "
        "device as a whole, without dynamic VRAM. Peaks are a network's own weights on the device and what "
        "a step takes beside them, with all that the step before has kept for it: our tables of modulation "
        "and rotation (diffusers makes its rotary table in every step). Ratios are of "
        "one run."
    ]
    lines += ["", "## Targets (for an H200)", "", *_targets(measured)]
    for number, part in measured.items():
        source = f"`{part['command']}`, {part['date']}, {part['hardware']}"
        lines += [
            "",
            f"## Part {number}",
            "",
            source,
            "",
            *_runs(part),
            *_kernels(part),
            *_card_table(part),
            "",
        ]
        lines += [f"- {what}: {figure:.4g} {unit}" for what, figure, unit, *_ in part["ceilings"]]
        lines += [f"- left out: {what} ({reason})" for what, reason in part["left_out"].items()]
    return "\n".join(lines)


def _targets(measured: dict) -> Iterator[str]:
    """Lists a target a line; the figure is the first part's that has one."""
    sizes = [part["sizes"][TARGET_SIDE]["runs"] for part in measured.values() if TARGET_SIDE in part["sizes"]]
    for ours, peer, least in TARGET_RATIOS:
        found = [runs[peer]["ms"] / runs[ours]["ms"] for runs in sizes if ours in runs and peer in runs]
        what = f"{ours} {NAMES[ours]}, a step at least {least} times as fast as {peer} {NAMES[peer]}"
        yield f"- {what}: " + (_judged(found[0], "times", found[0] >= least) if found else "not measured")
    kinds = {kind: rest for kind, *rest in KINDS}
    for kind, id, most in TARGET_FIGURES:
        what, key, unit, scale = kinds[kind]
        found = [runs[id][key] / scale for runs in sizes if key in runs.get(id, {})]
        what = f"{id} {NAMES[id]}, {what} at most {most} {unit}"
        yield f"- {what}: " + (_judged(found[0], unit, found[0] <= most) if found else "not measured")


def _judged(figure: float, unit: str, is_met: bool) -> str:
    return f"{figure:.2f} {unit}, {'met' if is_met else 'missed'}"


def _runs(part: dict) -> Iterator[str]:
    yield (
        f"| picture | implementation | a step, ms | quartiles | TFLOP/s | {part['steps']} steps, s "
        f"| peak, GiB | first call, s | distance from {part['reference']} | attention kernel |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for side, size in part["sizes"].items():
        for id, run in size["runs"].items():
            rate = "" if id == "U5" else f"{1000 * size['tflop'] / run['ms']:.0f}"
            low, high = run["quartiles_ms"]
            peak = f"{run['peak_bytes'] / 2**30:.2f}" if "peak_bytes" in run else ""
            error = part["errors"].get(id)
            yield (
                f"| {side} | {id} {NAMES[id]} | {run['ms']:.1f} | {low:.1f} to {high:.1f} | {rate} "
                f"| {run.get('image_s', '')} | {peak} | {run.get('first_call_s', '')} "
                f"| {'' if error is None else f'{error:.2g}'} | `{run.get('attention', '')[:60]}` |"
            )


def _kernels(part: dict) -> Iterator[str]:
    """Lists the longest kernels of a step at the first size."""
    for side, size in [*part["sizes"].items()][:1]:
        for id in PROFILED:
            if not (longest := size["runs"].get(id, {}).get("longest")):
                continue
            total = size["runs"][id]["total_ms"]
            yield from (
                "",
                f"Longest kernels of a step, {side}x{side}, {id} {NAMES[id]}, of {total:.1f} ms:",
                "",
            )
            for name, taken, calls in longest[:LONGEST]:
                yield f"- `{name[:60]}`: {taken:.1f} ms, {calls} calls"


def _card_table(part: dict) -> Iterator[str]:
    if not part["cards"]:
        return
    yield from (
        "",
        "Three pictures of one process with as much memory as such a card has; a step is that of the second "
        "and third. Weights that do not fit come over in every forward; several sizes on the card are those "
        "behind one picture after the other. Alike: the second and third are equal to the first to the bit.",
        "",
        "| card | way | implementation | picture | a step, s | pictures, s | weights on the card, GiB "
        "| moved a forward, GiB | forwards a step | alike |",
        "|---|---|---|---|---|---|---|---|---|---|",
    )
    for row in sorted(part["cards"], key=lambda row: (row["way"] != "static", -row["memory"])):
        pictures = ", ".join(f"{taken:.1f}" for taken in row["image_s"])
        sizes = [f"{size / 2**30:.2f}" for size in row["resident_bytes"]]
        resident = ", ".join(sizes if len({*sizes}) > 1 else sizes[:1])
        moved = row["moved_bytes"] / 2**30
        yield (
            f"| {row['card']} | {row['way']} | {row['id']} {NAMES[row['id']]} "
            f"| {row['side']}, {row['steps']} steps | {row['step_s']:.3f} | {pictures} | {resident} "
            f"| {moved:.2f} | {row['forwards']:g} | {'yes' if row['alike'] else 'no'} |"
        )
