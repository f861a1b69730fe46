"""What can be known without a GPU: operations, operators and memory of a forward of the full-size network.

python3 dev.py bench cpu

Counted on tensors without data, so the 7.37 B parameters need no memory. Seconds are of a small network on
the CPU and a smoke signal only: they say nothing about a GPU.
"""

import statistics
import time
from collections.abc import Iterator

import torch
from meter import Meter
from networks import FULL, PEERS, SMALL, Forward, forwards
from table import Row, less_is_better, markdown, write

COMMAND = "python3 dev.py bench cpu"
SIDES = (512, 1024, 1536)  # pixels
WARM_UPS, REPEATS = 3, 9
NOTE = (
    "Full size: the shapes of the released model in bfloat16, both guidance branches as one batch, attention "
    "counted as one fused kernel. Seconds: a small network with random weights in float32, medians."
)


def main() -> None:
    rows = [*counted(), *timed()]
    write("cpu", rows, NOTE)
    print(markdown(rows, NOTE))


def counted() -> Iterator[Row]:
    for side in SIDES:
        runs = forwards(FULL, 2, side // 8, side // 8, "meta", torch.bfloat16)
        meters = {name: measure(run) for name, run in runs.items()}
        for peer in PEERS:
            ours, theirs = meters["ours"], meters[peer]
            for id, what, unit, value in (
                ("flops", "operations a forward and picture", "TFLOP", lambda m: m.flops / 2e12),
                ("operators", "operators a forward", "", lambda m: sum(m.operators.values())),
                ("memory", "activations at their peak, batch 2", "GiB", lambda m: m.peak_bytes / 2**30),
            ):
                figures = value(ours), value(theirs), peer, unit, COMMAND
                yield less_is_better(f"{id}-{side}-{peer}", f"{what}, {side}x{side}", *figures)


def measure(run: Forward) -> Meter:
    with torch.no_grad():
        run()  # what is made once is not counted
        with Meter() as meter:
            run()
    return meter


def timed() -> Iterator[Row]:
    runs = forwards(SMALL, 2, 16, 16, "cpu", torch.float32)
    seconds = {name: [] for name in runs}
    with torch.no_grad():
        for repeat in range(WARM_UPS + REPEATS):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if repeat >= WARM_UPS:
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: 1000 * statistics.median(times) for name, times in seconds.items()}
    for peer in PEERS:
        what = "a small network's forward on the CPU (smoke signal)"
        yield less_is_better(f"seconds-{peer}", what, medians["ours"], medians[peer], peer, "ms", COMMAND)


if __name__ == "__main__":
    main()
