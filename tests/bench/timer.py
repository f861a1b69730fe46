"""Measures times, memory, kernels and ceilings of a device; on the CPU with the CPU's clock."""

import math
import random
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]
# Kernels and operators of attention itself, without layout changes around it.
ATTENTION = re.compile(r"flash|fmha|sdpa|_attention_for|efficient_attention|attention_kernel", re.I)
BACKENDS = {
    "FlashAttention": SDPBackend.FLASH_ATTENTION,
    "cuDNN attention": SDPBackend.CUDNN_ATTENTION,
    "memory-efficient attention": SDPBackend.EFFICIENT_ATTENTION,
}
FULL_GEMMS = ((8192, 8192, 8192), (4352, 3072, 33792))  # M, K, N; the second is a single block's first linear
SMALL_GEMMS = ((256, 256, 256), (64, 384, 1024))


def synchronize(device: torch.device) -> None:
    """Waits for a GPU's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(step: Step, device: torch.device) -> float:
    """Times one call in seconds, by CUDA events where possible."""
    if device.type != "cuda":
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    step()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1000


def interleaved(
    steps: dict[str, Step],
    device: torch.device,
    warm_ups: int,
    repeats: int,
    deadline: float = math.inf,
    guard: Callable[[str], AbstractContextManager] = nullcontext,
) -> dict[str, list[float]]:
    """Times every call of every step in seconds, in turns of random order.

    Takes fewer turns past the deadline, a `time.monotonic`, but at least three. Leaves out a step whose
    exception its guard suppresses.
    """
    rng, taken = random.Random(0), {id: [] for id in steps}
    for turn in range(warm_ups + repeats):
        if turn >= warm_ups + 3 and time.monotonic() > deadline:
            break
        for id in rng.sample(list(taken), len(taken)):
            with guard(id):
                duration = seconds(steps[id], device)
                if turn >= warm_ups:
                    taken[id].append(duration)
                continue
            del taken[id]
    return taken


def summary(durations: list[float]) -> dict[str, float]:
    """Converts seconds to their median and quartiles in milliseconds."""
    first, median, third = statistics.quantiles(durations, n=4, method="inclusive")
    return {
        "ms": round(1000 * median, 3),
        "quartiles_ms": [round(1000 * first, 3), round(1000 * third, 3)],
        "repeats": len(durations),
    }


def peak_bytes(step: Step, device: torch.device) -> int | None:
    """Measures the second of two calls: its peak bytes beyond those before the first; None on the CPU.

    Includes what the first call keeps for the second.
    """
    if device.type != "cuda":
        return None
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    step()
    synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def weight_bytes(network: torch.nn.Module, device: torch.device) -> int:
    """Counts the bytes of a network's parameters and buffers that lie on the device now."""
    parts = []
    for tensor in (*network.parameters(), *network.buffers()):
        quantised = getattr(tensor, "_qdata", None)
        parts += [tensor] if quantised is None else [quantised, tensor._params.scale]
    distinct = {part.data_ptr(): part.nbytes for part in parts if part.device.type == device.type}
    return sum(distinct.values())


def kernels(step: Step, device: torch.device) -> dict:
    """Profiles the kernels of one call, on the CPU its operators.

    `attention`: the name of the attention kernel; `longest`: [name, ms, calls] of the longest; `total_ms`.
    """
    is_cuda = device.type == "cuda"
    synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as profiler:
        step()
        synchronize(device)
    rows = []
    for event in profiler.key_averages():
        if is_cuda and event.device_type != torch.autograd.DeviceType.CUDA:
            continue  # the host's part of launching it
        microseconds = event.self_device_time_total if is_cuda else event.self_cpu_time_total
        if microseconds:
            rows.append([event.key[:120], round(microseconds / 1000, 3), event.count])
    rows.sort(key=lambda row: -row[1])
    attention = next((name for name, *_ in rows if ATTENTION.search(name)), "none found")
    return {
        "attention": attention,
        "total_ms": round(sum(row[1] for row in rows), 3),
        "longest": rows[:14],
    }


def ceilings(device: torch.device, burn: float) -> Iterator[tuple[str, float, str]]:
    """Measures the device's fastest products, copies and attention: (what, figure, unit).

    burn: seconds of a sustained product.
    """
    is_cuda = device.type == "cuda"
    factory = {"device": device, "dtype": torch.bfloat16 if is_cuda else torch.float32}
    for m, k, n in FULL_GEMMS if is_cuda else SMALL_GEMMS:
        a, b = torch.randn(m, k, **factory), torch.randn(n, k, **factory)
        yield from _product("bf16" if is_cuda else "fp32", lambda: a @ b.t(), (m, k, n), device, burn)  # noqa: B023
        if is_cuda:
            a, b = (x.to(torch.float8_e4m3fn) for x in (a, b))
            one = torch.ones((), device=device)

            def multiply(a=a, b=b, one=one) -> Tensor:
                return torch._scaled_mm(
                    a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
                )

            yield from _product("fp8", multiply, (m, k, n), device, burn / 2)
    yield "copy, read and written", _copied(2 << 30 if is_cuda else 2 << 22, device) / 1e12, "TB/s"
    yield from _attentions(device, factory)


def _copied(size: int, device: torch.device) -> float:
    """Measures a copy's bytes a second, read and written."""
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * size / _fastest(lambda: target.copy_(source), device)


def _product(
    dtype: str, multiply: Step, sizes: tuple[int, int, int], device: torch.device, burn: float
) -> Iterator[tuple[str, float, str]]:
    m, k, n = sizes
    what, tera = f"{dtype} product {m}x{k}x{n}", 2 * m * k * n / 1e12
    burst = _fastest(multiply, device)
    yield f"{what}, burst", tera / burst, "TFLOP/s"
    count = max(1, int(burn / 10 / burst))

    def many() -> None:
        for _ in range(count):
            multiply()

    last, end = 0.0, time.monotonic() + burn
    while time.monotonic() < end:
        last = seconds(many, device) / count
    yield f"{what}, sustained {burn:g} s", tera / last, "TFLOP/s"


def _attentions(device: torch.device, factory: dict) -> Iterator[tuple[str, float, str]]:
    is_cuda = device.type == "cuda"
    shape = (2, 24, 4352, 128) if is_cuda else (2, 2, 128, 128)
    q, k, v = (torch.randn(shape, **factory) for _ in range(3))
    tera = 4 * shape[0] * shape[1] * shape[2] ** 2 * shape[3] / 1e12
    for name, backend in BACKENDS.items() if is_cuda else {"attention": None}.items():

        def attend(backend=backend) -> Tensor:
            if backend is None:
                return functional.scaled_dot_product_attention(q, k, v)
            with sdpa_kernel(backend):
                return functional.scaled_dot_product_attention(q, k, v)

        try:
            fastest = _fastest(attend, device)
        except RuntimeError as error:
            print(f"left out: {name} ({str(error).splitlines()[0][:100]})", flush=True)
            continue
        yield f"{name} {shape}", tera / fastest, "TFLOP/s"


def _fastest(step: Step, device: torch.device, repeats: int = 10) -> float:
    """Times a call in seconds: the median of some after three warm-ups."""
    for _ in range(3):
        step()
    return statistics.median(seconds(step, device) for _ in range(repeats))


def driver_state() -> dict[str, str]:
    """Reads driver, clock, power and temperature from nvidia-smi; empty without it."""
    names = "driver_version", "clocks.sm", "power.draw", "temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(names, (value.strip() for value in line.splitlines()[0].split(",")), strict=True))
