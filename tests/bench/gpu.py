"""The full-size network on a GPU, with the same random weights as diffusers and as ComfyUI has it.

    python3 dev.py bench gpu --part 1      ceilings; diffusers, ComfyUI and ours at 1024x1024, whole images
    python3 dev.py bench gpu --part 2      ablations, fp8, cache; 512x512 and 1536x1536
    python3 dev.py bench gpu --part 1 --small      every line of this on a small network, also on a CPU

Each part ends within --budget seconds, writes what it has after every figure, and leaves the other part's
results as they are. Needs 48 GB of GPU memory. Where no ComfyUI is installed, any Python with torch, triton,
diffusers, comfy_kitchen, comfy_aimdo, torchsde and ComfyUI's other requirements runs this file itself, with
COMFYUI_PATH set to a folder that has ComfyUI's `comfy/` (its tokenizers can be left out), node_helpers.py and
comfyui_version.py.
"""

import argparse
import datetime as dt
import gc
import importlib.metadata
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import timer
import torch
from gpu_list import COMPILED, Implementations, Unavailable
from gpu_models import Diffusers, Inputs
from gpu_rows import NAMES, merge, page, rows_of
from meter import Meter
from pack import layouts, transformer
from table import RESULTS, write
from weights import Weights, random_weights, relative_error

PARTS = {
    "1": ("D0", "D1", "N0", "N0c", "U0", "U1"),
    "2": ("D0", "N0", "U0", "U1", "U2", "U3", "U5", *(id for id in NAMES if id.startswith("U0-"))),
}
IMAGES = {"1": ("D0", "N0", "U1", "D1", "U0"), "2": ("U3", "U1", "U5")}
OTHER_SIDES = {"1": (), "2": ("D0", "N0", "U0", "U1", "U3")}
MEASURED = "gpu_measured.json"
SIDES, SMALL_SIDES = (1024, 512, 1536), (128, 64, 192)
MAX_ERROR = 0.01  # of a velocity, or 1.5 times that of diffusers where its rounding is worse
MAX_FP8_ERROR = 0.2
PACKAGES = ("diffusers", "triton", "comfy-kitchen", "comfy-aimdo")


def main() -> None:
    parser = argparse.ArgumentParser(description="The full-size network on a GPU.")
    parser.add_argument("--part", choices=tuple(PARTS), default="1")
    parser.add_argument("--small", action="store_true", help="a small network, for trying this out")
    parser.add_argument("--budget", type=float, default=500.0, help="seconds; default: 500")
    parser.add_argument("--out", type=Path, help="folder of the results; default: tests/bench/results")
    args = parser.parse_args()
    if not args.small and not torch.cuda.is_available():
        sys.exit("this needs a CUDA GPU; --small runs the same on a small network without one")
    out = args.out or (Path(tempfile.mkdtemp()) if args.small else RESULTS)
    if not args.small and (RESULTS / MEASURED).is_file() and not (out / MEASURED).is_file():
        out.mkdir(parents=True, exist_ok=True)
        shutil.copy(RESULTS / MEASURED, out)  # to keep the other part
    bench = Bench(args.part, args.small, time.monotonic() + args.budget, out)
    bench.run()
    print(f"written to {out}")


class Bench:
    """One part's measurements, on disk after each of them."""

    def __init__(self, part: str, small: bool, deadline: float, out: Path):
        self.part, self.small, self.deadline, self.out = part, small, deadline, out
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.config = transformer.TransformerConfig()
        if small:
            self.config = replace(
                self.config, hidden_size=384, num_heads=3, depth=2, depth_single_blocks=3, mlp_size=1536
            )
        self.sides = SMALL_SIDES if small else SIDES
        self.steps = 2 if small else 50
        self.repeats = 3 if small else 20
        self.figures = {
            "command": f"python3 dev.py bench gpu --part {part}" + " --small" * small,
            "date": dt.date.today().isoformat(),
            "hardware": hardware(self.device),
            "steps": self.steps,
            "ceilings": [],
            "errors": {},
            "left_out": {},
            "sizes": {},
        }

    def run(self) -> None:
        print(self.figures["hardware"], timer.driver_state(), flush=True)
        if self.part == "1":
            self.measure_ceilings()
        weights = self.make_weights()
        backend = "eager" if self.small else "inductor"
        self.implementations = Implementations(self.config, weights, self.device, backend)
        good = self.check(PARTS[self.part], weights)
        self.measure(self.sides[0], good)
        self.look_inside(self.sides[0], good)
        for id in IMAGES[self.part]:
            if id in good:
                self.make_image(self.sides[0], id)
        for side in self.sides[1:]:
            some = [id for id in OTHER_SIDES[self.part] if id in good]
            if some:
                self.measure(side, some)
                self.look_inside(side, some)
        self.save()

    def save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        measured = merge(self.out / MEASURED, self.part, self.figures)
        if rows := rows_of(measured):
            write("gpu", rows, page(measured), self.out)

    @contextmanager
    def leaving_out(self, what: str, estimate: float = 0.0) -> Iterator[bool]:
        """False when `estimate` seconds are no longer left. What fails is left out, by name and reason."""
        has_time = time.monotonic() + estimate < self.deadline
        reason = None if has_time else "no time left"
        try:
            yield has_time
        except Unavailable as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001, what fails must not take the rest along
            traceback.print_exc()
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        if reason:
            self.figures["left_out"][what] = reason
            print(f"left out: {what} ({reason})", flush=True)

    def measure_ceilings(self) -> None:
        with self.leaving_out("ceilings"):
            for what, figure, unit in timer.ceilings(self.device, burn=0.2 if self.small else 10.0):
                state = timer.driver_state() if "sustained" in what else {}
                self.figures["ceilings"].append([what, round(figure, 4), unit, state])
                print(f"{what}: {figure:.4g} {unit} {state or ''}", flush=True)
                self.save()
        self.free()

    def make_weights(self) -> Weights:
        network = transformer.OvisImageTransformer(self.config, device="meta")
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        return random_weights(self.config, layouts, shapes, self.device, self.dtype)

    def check(self, ids: tuple[str, ...], weights: Weights) -> list[str]:
        """Those whose first velocity is the float32 one of diffusers but for rounding."""
        inputs, good = self.inputs(self.sides[0]), []
        wide = Weights({}, {name: tensor.float() for name, tensor in weights.diffusers.items()})
        wide_inputs = replace(inputs, x=inputs.x.float(), context=inputs.context.float())
        expected = Diffusers(self.config, wide).velocity(wide_inputs)
        del wide
        self.free()
        spread = expected.std().item()
        assert 0.1 <= spread <= 10, f"a velocity of spread {spread} is no use for measuring"
        for id in ids:
            seconds_at_most = 90 if id in COMPILED and not self.small else 10
            with self.leaving_out(f"{id} {NAMES[id]}", seconds_at_most) as has_time:
                if not has_time:
                    continue
                implementation = self.implementations.get(id)
                start = time.monotonic()
                error = relative_error(implementation.velocity(inputs), expected)
                timer.synchronize(self.device)
                self.figures["errors"][id] = error
                limit = max(MAX_ERROR, 1.5 * self.figures["errors"].get("D0", 0.0))
                took = round(time.monotonic() - start, 1)
                print(f"{id} {NAMES[id]}: first call {took} s, error {error:.2g}", flush=True)
                if not error <= (MAX_FP8_ERROR if id == "U3" else limit):
                    raise ValueError(f"its velocity is {error:.2g} away from float32's")
                if id in COMPILED:
                    self.size(self.sides[0])["runs"][id] = {"first_call_s": took}
                good.append(id)
        return good

    def measure(self, side: int, ids: list[str]) -> None:
        """Seconds a step of all, in turns."""
        inputs, size = self.inputs(side), self.size(side)
        what = f"steps at {side}x{side}"
        with self.leaving_out(what, estimate=10 if self.small else 30) as has_time:
            if not has_time:
                return
            makers = {id: self.implementations.get(id) for id in ids}
            steps = {id: implementation.stepper(inputs) for id, implementation in makers.items()}
            taken = timer.interleaved(
                steps, self.device, 3, self.repeats, min(self.deadline, time.monotonic() + 120)
            )
            for id, durations in taken.items():
                each = [duration / makers[id].evaluations for duration in durations]
                size["runs"][id] = {**size["runs"].get(id, {}), **timer.summary(each)}
                print(f"{side}x{side} {id} {NAMES[id]}: {size['runs'][id]['ms']} ms", flush=True)
            self.save()
        # A first call's figures alone are no run.
        size["runs"] = {id: size["runs"][id] for id in ids if "ms" in size["runs"].get(id, {})}
        if not size["runs"]:
            del self.figures["sizes"][str(side)]

    def look_inside(self, side: int, ids: list[str]) -> None:
        """Memory and kernels of one step of each."""
        inputs = self.inputs(side)
        for id in ids:
            run = self.figures["sizes"].get(str(side), {"runs": {}})["runs"].get(id)
            if run is None:
                continue
            with self.leaving_out(f"memory and kernels of {id} at {side}x{side}", estimate=3) as has_time:
                if not has_time:
                    return
                implementation = self.implementations.get(id)
                step = implementation.stepper(inputs)
                peak = timer.peak_bytes(step, self.device)
                if peak is not None:
                    run["peak_bytes"] = peak + timer.weight_bytes(implementation.network, self.device)
                run |= timer.kernels(step, self.device)
                print(f"{side}x{side} {id}: {run.get('peak_bytes')} bytes, {run['attention']}", flush=True)
                self.save()

    def make_image(self, side: int, id: str) -> None:
        """Seconds of a whole run, behind a short one that loads what there is to load."""
        run = self.figures["sizes"].get(str(side), {"runs": {}})["runs"].get(id)
        if run is None:
            return
        estimate = 1.5 * self.steps * run["ms"] / 1000
        with self.leaving_out(f"an image by {id}", estimate) as has_time:
            if has_time:
                implementation, inputs = self.implementations.get(id), self.inputs(side)
                implementation.image(inputs, 2)
                image = lambda: implementation.image(inputs, self.steps)  # noqa: E731
                run["image_s"] = round(timer.seconds(image, self.device), 3)
                run["image_state"] = timer.driver_state()
                print(f"{side}x{side} {id}: an image in {run['image_s']} s {run['image_state']}", flush=True)
                self.save()

    def inputs(self, side: int) -> Inputs:
        return Inputs.random(self.config, side, self.device, self.dtype)

    def size(self, side: int) -> dict:
        """The figures of a size; a guided step's operations are counted without data."""
        sizes = self.figures["sizes"]
        if str(side) not in sizes:
            network = transformer.OvisImageTransformer(self.config, device="meta", dtype=torch.bfloat16)
            inputs = Inputs.random(self.config, 16, self.device, self.dtype)
            x = inputs.x.new_empty((2, inputs.x.shape[1], side // 8, side // 8), device="meta")
            context = inputs.context.to("meta")
            with torch.no_grad(), Meter() as meter:
                network(x.bfloat16(), torch.ones(2, device="meta"), context.bfloat16())
            sizes[str(side)] = {"tflop": meter.flops / 1e12, "runs": {}}
        return sizes[str(side)]

    def free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def hardware(device: torch.device) -> str:
    """Device, driver and versions."""
    versions = [f"torch {torch.__version__}"]
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, driver {timer.driver_state().get('driver_version')}"
        versions.append(f"cuDNN {torch.backends.cudnn.version()}")
    else:
        name = f"CPU, {torch.get_num_threads()} threads"
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    version = Path(os.environ["COMFYUI_PATH"]) / "comfyui_version.py"
    found = re.search(r'"(.+)"', version.read_text("utf-8")) if version.is_file() else None
    return ", ".join([name, *versions, f"ComfyUI {found[1] if found else 'of unknown version'}"])


if __name__ == "__main__":
    main()
