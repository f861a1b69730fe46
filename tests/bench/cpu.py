"""Counts what can be known without a GPU: operations, operators and memory of a full-size forward.

python3 dev.py bench cpu

Counted on tensors without data, so the 7.37 B parameters need no memory. Seconds are of a small network on
the CPU and only a smoke test: they say nothing about a GPU. How many forwards the residual cache computes
is counted on the model in the pack.
"""

import dataclasses
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from meter import Meter
from networks import (
    ABLATIONS,
    FULL,
    PEERS,
    SMALL,
    Forward,
    comfyui_run,
    decoders,
    forwards,
    samplers,
    tabulated,
)
from reports import counting
from table import Row, fewer_is_better, less_is_better, markdown, write
from timer import interleaved, summary
from weights import relative_error

from ovis_core.pipeline import load_pipeline
from ovis_core.residual_cache import CacheSettings

COMMAND = "python3 dev.py bench cpu"
NANO = Path(__file__).resolve().parents[2] / "models" / "Ovis-Image-Nano"
PROMPTS = ('"HELLO" in white on blue', '"OPEN" in black on yellow', '"你好" in red on white')
THRESHOLDS = (0.0, 0.05, 0.1, 0.2)
MAX_DISTANCE = 1e-5  # of two velocities in float32, relative
SIDES = (512, 1024, 1536)  # pixels
STEP_FIGURES = {  # of a Meter: what, unit, value
    "operators": ("operators a step in ComfyUI", "", lambda m: sum(m.operators.values())),
    "weights": ("weights read a step in ComfyUI", "GiB", lambda m: m.given_bytes / 2**30),
    "memory": ("activations at their peak in ComfyUI", "GiB", lambda m: m.peak_bytes / 2**30),
}
WARM_UPS, REPEATS = 3, 9
NOTE = (
    "Full size: the shapes of the released model in bfloat16, both guidance branches as one batch, attention "
    "counted as one fused kernel, RMSNorm as its six pieces. Waits are numbers that the host reads and "
    "copies between devices; as they may be none, their ratio is that of the counts plus one. Distances: "
    "relative, in float32, with the same weights. The Nano's forwards: 20 steps with guidance, 3 prompts "
    "together; what the cache leaves out changes the picture. Seconds: a small network with random weights "
    "in float32, medians and quartiles."
)


def main() -> None:
    """Measures, prints and writes the rows."""
    rows = [*counted(), *in_comfyui(), *ablated(), *decoded(), *waiting(), *running(), *agreeing()]
    rows += [*cached(), *timed()]
    write("cpu", rows, NOTE)
    print(markdown(rows, NOTE))


@cache
def full_size(side: int) -> dict[str, Meter]:
    """Counts a forward of each full-size network on a picture of `side` pixels."""
    runs = forwards(FULL, 2, side // 8, side // 8, "meta", torch.bfloat16)
    return {name: measure(run) for name, run in runs.items()}


def counted() -> Iterator[Row]:
    """Compares what a forward takes: operations, operators, memory."""
    for side in SIDES:
        meters = full_size(side)
        for peer in PEERS:
            ours, theirs = meters["ours"], meters[peer]
            for id, what, unit, value in (
                ("flops", "operations a forward and picture", "TFLOP", lambda m: m.flops / 2e12),
                ("operators", "operators a forward", "", lambda m: sum(m.operators.values())),
                ("memory", "activations at their peak, batch 2", "GiB", lambda m: m.peak_bytes / 2**30),
            ):
                figures = value(ours), value(theirs), peer, unit, COMMAND
                yield less_is_better(f"{id}-{side}-{peer}", f"{what}, {side}x{side}", *figures)


def in_comfyui() -> Iterator[Row]:
    """Counts a forward in ComfyUI, where a schedule's modulation is computed before the first step.

    Cards with room take single blocks at once, others in parts.
    """
    for side in SIDES[:2]:
        roomy, short = (measure(tabulated(FULL, 2, side // 8, side // 8, room)) for room in (True, False))
        for peer in PEERS:
            theirs = full_size(side)[peer]
            for id, name, ours in (("step", "with room", roomy), ("short", "short of memory", short)):
                for kind, (what, unit, value) in STEP_FIGURES.items():
                    what = f"{what} on a card {name}, {side}x{side}"
                    figures = value(ours), value(theirs), peer, unit, COMMAND
                    yield less_is_better(f"{id}-{kind}-{side}-{peer}", what, *figures)


def ablated() -> Iterator[Row]:
    """Counts a step in ComfyUI at 1024x1024 with one saving left out at a time."""
    full = {room: measure(tabulated(FULL, 2, 128, 128, room)) for room in (True, False)}
    for without, has_room, kinds in (
        ("single blocks in parts", False, ("memory",)),
        ("lean blocks", True, ("memory",)),
        ("the table of modulation", True, ("weights", "operators")),
        ("a rotary table kept for a size", True, ("operators",)),
    ):
        with ABLATIONS[without](None):
            less = measure(tabulated(FULL, 2, 128, 128, has_room))
        for kind in kinds:
            what, unit, value = STEP_FIGURES[kind]
            what += f", 1024x1024, on a card {'with room' if has_room else 'short of memory'}"
            figures = value(full[has_room]), value(less), f"without {without}", unit, COMMAND
            yield less_is_better(f"ablation-{kind}-{without.replace(' ', '-')}", what, *figures)


def decoded() -> Iterator[Row]:
    """Compares the peak memory of decoding."""
    runs = decoders(128, 128)
    meters = {name: measure(run) for name, run in runs.items()}
    for peer in PEERS:
        ours, theirs = (meters[name].peak_bytes / 2**30 for name in ("ours", peer))
        what = "activations at their peak, decoding 1024x1024"
        yield less_is_better(f"decode-memory-{peer}", what, ours, theirs, peer, "GiB", COMMAND)


def waiting() -> Iterator[Row]:
    """Counts how often the host waits in a forward and in the sampler around it.

    Numbers read show on a CPU, copies between devices only without data, so forwards run on both.
    """
    waits = {name: measure(run).waits for name, run in samplers(8).items()}
    for device, dtype in (("cpu", torch.float32), ("meta", torch.bfloat16)):
        for name, run in forwards(SMALL, 2, 16, 16, device, dtype).items():
            waits[name] += measure(run).waits
    for peer in PEERS:
        what = "times the host waits, a forward and 8 Euler steps"
        yield fewer_is_better(f"waits-{peer}", what, waits["ours"], waits[peer], peer, COMMAND)


def running() -> Iterator[Row]:
    """Counts the host's waits in 8 further steps of ComfyUI's sampler, with each MODEL of a small network.

    Sigma is read for the table of modulation. The host does not wait for what it reads a step
    later, when the device has finished it.
    """
    for what, settings in (("", {}), (" with guidance in an interval", {"start": 0.9, "end": 0.2})):
        waits = {
            name: run_waits(name, 16, settings) - run_waits(name, 8, settings) for name in ("ours", "ComfyUI")
        }
        yield fewer_is_better(
            f"run-waits{'-interval' if settings else ''}",
            f"times the host waits, 8 Euler steps in ComfyUI{what}",
            *waits.values(),
            "ComfyUI's model" + " with the same guider" * bool(settings),
            COMMAND,
        )


def run_waits(name: str, steps: int, settings: dict[str, float]) -> int:
    """Counts the host's waits in a run of `steps` steps."""
    comfyui_run(name, steps, **settings)  # what is made once is not counted
    with Meter() as meter:
        comfyui_run(name, steps, **settings)
    return meter.waits


def agreeing() -> Iterator[Row]:
    """Compares the velocities of a small network."""
    with torch.no_grad():
        velocities = {name: run() for name, run in forwards(SMALL, 2, 16, 16, "cpu", torch.float32).items()}
    for peer in PEERS:
        distance = relative_error(velocities["ours"], velocities[peer])
        what = f"distance from the velocity of {peer}, small network"
        yield less_is_better(f"parity-{peer}", what, distance, MAX_DISTANCE, "the bar", "", COMMAND)


def cached() -> Iterator[Row]:
    """Counts the forwards of the pack's model that the cache computes: 20 steps at cfg 4, some prompts."""
    pipeline = load_pipeline(NANO, dtype=torch.float32)
    for threshold in THRESHOLDS:
        with counting() as reports:
            for seed, prompt in enumerate(PROMPTS):
                settings = CacheSettings(threshold=threshold)
                pipeline.sample(prompt, width=128, height=128, steps=20, cfg=4.0, seed=seed, cache=settings)
        what = f"forwards of the Nano, cache threshold {threshold}"
        figures = reports.computed, reports.forwards, "without the cache", "", COMMAND
        yield less_is_better(f"cache-{threshold}", what, *figures)


def measure(run: Forward) -> Meter:
    """Counts a second run, without what the first makes once."""
    with torch.no_grad():
        run()  # what is made once is not counted
        with Meter() as meter:
            run()
    return meter


def timed() -> Iterator[Row]:
    """Times a small network's forward on the CPU."""
    runs = forwards(SMALL, 2, 16, 16, "cpu", torch.float32)
    with torch.no_grad():
        taken = interleaved(runs, torch.device("cpu"), WARM_UPS, REPEATS)
    found = {name: summary(durations) for name, durations in taken.items()}
    for peer in PEERS:
        what = "a small network's forward on the CPU (smoke signal)"
        figures = found["ours"]["ms"], found[peer]["ms"], peer, "ms", COMMAND
        spread = tuple(tuple(found[name]["quartiles_ms"]) for name in ("ours", peer))
        yield dataclasses.replace(less_is_better(f"seconds-{peer}", what, *figures), spread=spread)


if __name__ == "__main__":
    main()
