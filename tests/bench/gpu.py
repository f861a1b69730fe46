"""Measures the full-size network on a GPU beside diffusers and ComfyUI, with the same random weights.

    python3 dev.py bench gpu --part 1      ceilings; diffusers, ComfyUI and ours at 1024x1024, whole images
    python3 dev.py bench gpu --part 2      fp8, int8, cache, attention kernels; 512x512 and 1536x1536
    python3 dev.py bench gpu --part 3      what each feature is worth; cards of 24, 16, 12 and 8 GB
    python3 dev.py bench gpu --part 1 --small      every line of this on a small network, also on a CPU

Each part ends within --budget seconds, writes what it has after every figure, and leaves the other parts'
results as they are. Needs 48 GB of GPU memory. Where no ComfyUI is installed, any Python with torch, triton,
diffusers, comfy_kitchen, comfy_aimdo, torchsde and ComfyUI's other requirements runs this file itself, with
COMFYUI_PATH set to a folder that has ComfyUI's `comfy/` (its tokenizers can be left out), node_helpers.py and
comfyui_version.py.
"""

import argparse
import datetime as dt
import gc
import math
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import gpu_offload  # before all that imports ComfyUI
import timer
import torch
from gpu_list import COMPILED, Implementations, Unavailable
from gpu_models import Diffusers, Inputs
from gpu_rows import NAMES, merge, page, rows_of
from meter import Meter
from pack import layouts, transformer
from table import RESULTS, versions, write
from torch import Tensor
from weights import Weights, random_weights, relative_error

ATTENTIONS = ("U0-comfyui", "U0-flash", "U0-cudnn")
PARTS = {
    "1": ("D0", "D1", "N0", "N0c", "U0", "U1"),
    "2": ("D0", "N0", "U0", "U1", "U2", "U3", "U3-behind", "U3-int8", "U5", *ATTENTIONS),
    "3": ("D0", "U0", *(id for id in NAMES if id.startswith("U0-") and id not in ATTENTIONS)),
}
IMAGES = {"1": ("D0", "N0", "U1", "D1", "U0"), "2": ("U3", "U1", "U5"), "3": ()}
OTHER_SIDES = {"1": (), "2": ("D0", "N0", "U0", "U1", "U3"), "3": ()}
MEASURED = "gpu_measured.json"
SIDES, SMALL_SIDES = (1024, 512, 1536), (128, 64, 192)
MAX_ERROR = 0.01  # of a velocity, or 1.5 times that of diffusers where its rounding is worse
MAX_ERROR_BESIDE_D0 = 0.05  # where diffusers in the same precision replaces the float32 reference
MAX_LOW_ERROR = 0.2  # of fp8 and int8
PACKAGES = ("diffusers", "triton", "comfy-kitchen", "comfy-aimdo")


def main() -> None:
    """Measures one part and writes the results."""
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
        shutil.copy(RESULTS / MEASURED, out)  # to keep the other parts
    bench = Bench(args.part, args.small, time.monotonic() + args.budget, out)
    bench.run()
    print(f"written to {out}")


class Bench:
    """The measurements of one part, which are saved after each figure."""

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
            "reference": "float32",
            "errors": {},
            "left_out": {},
            "sizes": {},
            "cards": [],
        }

    def run(self) -> None:
        """Takes all measurements of the part."""
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
        if self.part == "3":
            weights = gpu_offload.off_device(weights)
            del self.implementations
            self.measure_cards(weights)
        self.save()

    def save(self) -> None:
        """Writes the figures, the rows and the page."""
        self.out.mkdir(parents=True, exist_ok=True)
        measured = merge(self.out / MEASURED, self.part, self.figures)
        if rows := rows_of(measured):
            write("gpu", rows, page(measured), self.out)

    @contextmanager
    def leaving_out(self, what: str, estimate: float = 0.0, deadline: float = math.inf) -> Iterator[bool]:
        """Yields False when less than `estimate` seconds are left; notes what fails by name and reason."""
        has_time = time.monotonic() + estimate < min(self.deadline, deadline)
        if not has_time:
            self.leave_out(what, "no time left")
        with self.surviving(what):
            yield has_time

    @contextmanager
    def surviving(self, what: str) -> Iterator[None]:
        """Goes on after a failure, and notes it by name and reason."""
        reason = None
        try:
            yield
        except Unavailable as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001, a failure must not stop the rest
            traceback.print_exc()
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        if reason:
            self.leave_out(what, reason)
            self.free()

    def leave_out(self, what: str, reason: str) -> None:
        """Notes what is left out, and why."""
        self.figures["left_out"][what] = reason
        print(f"left out: {what} ({reason})", flush=True)

    def measure_ceilings(self) -> None:
        """Measures the device's ceilings."""
        with self.leaving_out("ceilings"):
            for what, figure, unit in timer.ceilings(self.device, burn=0.2 if self.small else 10.0):
                state = timer.driver_state() if "sustained" in what else {}
                self.figures["ceilings"].append([what, round(figure, 4), unit, state])
                print(f"{what}: {figure:.4g} {unit} {state or ''}", flush=True)
                self.save()
        self.free()

    def make_weights(self) -> Weights:
        """Makes the random weights that all share."""
        network = transformer.OvisImageTransformer(self.config, device="meta")
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        return random_weights(self.config, layouts, shapes, self.device, self.dtype)

    def check(self, ids: tuple[str, ...], weights: Weights) -> list[str]:
        """Selects those whose first velocity equals the reference's up to rounding."""
        inputs, good = self.inputs(self.sides[0]), []
        expected = self.make_reference(weights, inputs)
        self.free()
        if expected is None:
            return good
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
                took = round(time.monotonic() - start, 1)
                print(f"{id} {NAMES[id]}: first call {took} s, error {error:.2g}", flush=True)
                if not error <= self.max_error(id):
                    raise ValueError(f"its velocity is {error:.2g} away from {self.figures['reference']}'s")
                if id in COMPILED:
                    self.size(self.sides[0])["runs"][id] = {"first_call_s": took}
                good.append(id)
        return good

    def make_reference(self, weights: Weights, inputs: Inputs) -> Tensor | None:
        """Makes the first velocity of diffusers in float32, or in its shipped precision where that fails."""
        expected = None
        with self.surviving("the velocity in float32"):
            expected = self.wide_velocity(weights, inputs)
        if expected is None:
            self.figures["reference"] = "D0"
            with self.surviving("all, which have nothing to be compared with"):
                expected = self.implementations.get("D0").velocity(inputs)
        if expected is not None and not 0.1 <= (spread := expected.std().item()) <= 10:
            self.leave_out("all", f"a velocity of spread {spread:.3g} is no use for measuring")
            return None
        return expected

    def wide_velocity(self, weights: Weights, inputs: Inputs) -> Tensor:
        """Computes the velocity of diffusers in float32."""
        wide = Weights({}, {name: tensor.float() for name, tensor in weights.diffusers.items()})
        wide_inputs = replace(inputs, x=inputs.x.float(), context=inputs.context.float())
        return Diffusers(self.config, wide).velocity(wide_inputs)

    def max_error(self, id: str) -> float:
        """Gives the largest error allowed for an implementation."""
        if id.startswith("U3"):
            return MAX_LOW_ERROR
        if self.figures["reference"] == "D0":
            return MAX_ERROR_BESIDE_D0
        return max(MAX_ERROR, 1.5 * self.figures["errors"].get("D0", 0.0))

    def measure(self, side: int, ids: list[str]) -> None:
        """Times a step of each, in turns."""
        inputs, size = self.inputs(side), self.size(side)
        what = f"steps at {side}x{side}"
        with self.leaving_out(what, estimate=10 if self.small else 30) as has_time:
            if has_time:
                self.take_turns(side, ids, inputs, size["runs"])
                self.save()
        # The figures of a first call alone do not make a run.
        size["runs"] = {id: size["runs"][id] for id in ids if "ms" in size["runs"].get(id, {})}
        if not size["runs"]:
            del self.figures["sizes"][str(side)]

    def take_turns(self, side: int, ids: list[str], inputs: Inputs, runs: dict[str, dict]) -> None:
        """Times the steps in turns, and notes their figures."""

        def guard(id: str) -> AbstractContextManager:
            return self.surviving(f"steps of {id} {NAMES[id]} at {side}x{side}")

        makers, steps = {}, {}
        for id in ids:
            with guard(id):
                makers[id] = self.implementations.get(id)
                steps[id] = makers[id].stepper(inputs)
        deadline = min(self.deadline, time.monotonic() + 120)
        taken = timer.interleaved(steps, self.device, 3, self.repeats, deadline, guard)
        for id, durations in taken.items():
            each = [duration / makers[id].evaluations for duration in durations]
            runs[id] = {**runs.get(id, {}), **timer.summary(each)}
            print(f"{side}x{side} {id} {NAMES[id]}: {runs[id]['ms']} ms", flush=True)

    def look_inside(self, side: int, ids: list[str]) -> None:
        """Measures memory and kernels of one step of each."""
        inputs = self.inputs(side)
        for id in ids:
            run = self.figures["sizes"].get(str(side), {"runs": {}})["runs"].get(id)
            if run is None:
                continue
            with self.leaving_out(f"memory and kernels of {id} at {side}x{side}", estimate=3) as has_time:
                if not has_time:
                    continue
                implementation = self.implementations.get(id)
                step = implementation.stepper(inputs)
                with implementation.running():
                    weights = timer.weight_bytes(implementation.network, self.device)
                implementation.forget()
                peak = timer.peak_bytes(step, self.device)
                if peak is not None:
                    run["peak_bytes"] = peak + weights
                run |= timer.kernels(step, self.device)
                print(f"{side}x{side} {id}: {run.get('peak_bytes')} bytes, {run['attention']}", flush=True)
                self.save()

    def make_image(self, side: int, id: str) -> None:
        """Times a whole run, after a short one that loads the models."""
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

    def measure_cards(self, weights: Weights) -> None:
        """Makes pictures on cards of less memory; both ways of ComfyUI get the same time."""
        side, steps = self.sides[0], 2 if self.small else 6
        inputs = self.inputs(side)
        self.free()
        for i, way in enumerate(gpu_offload.WAYS):
            now = time.monotonic()
            deadline = now + (self.deadline - now) / (len(gpu_offload.WAYS) - i)
            with self.surviving(way):
                gpu_offload.turn_on(way, self.device)
                for card in gpu_offload.cards(self.device):
                    for id in ("U0", "N0"):
                        self.measure_card(id, way, card, weights, inputs, steps, deadline)

    def measure_card(self, id: str, way: str, card, weights: Weights, inputs, steps, deadline) -> None:
        """Makes pictures on a card of less memory, and notes their figures."""
        what = f"{id} {NAMES[id]} on a card of {card.name}, {way}"
        with self.leaving_out(what, 5 if self.small else 20, deadline) as has_time:
            if has_time:
                row = gpu_offload.measure(id, self.config, weights, card, inputs, steps)
                self.figures["cards"].append({"way": way, "side": self.sides[0], "steps": steps, **row})
                print(f"{what}: {row}", flush=True)
                self.save()
        self.free()

    def inputs(self, side: int) -> Inputs:
        """Makes the inputs of a picture of `side` pixels."""
        return Inputs.random(self.config, side, self.device, self.dtype)

    def size(self, side: int) -> dict:
        """Gets the figures of a size; counts a guided step's operations without data."""
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
        """Frees memory that is no longer used."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def hardware(device: torch.device) -> str:
    """Names device, driver and versions."""
    if device.type != "cuda":
        return ", ".join([f"CPU, {torch.get_num_threads()} threads", *versions(PACKAGES)])
    name = f"{torch.cuda.get_device_name(device)}, driver {timer.driver_state().get('driver_version')}"
    return ", ".join([name, f"cuDNN {torch.backends.cudnn.version()}", *versions(PACKAGES)])


if __name__ == "__main__":
    main()
