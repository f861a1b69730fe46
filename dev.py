#!/usr/bin/env python3
"""The developer command: this pack on a real ComfyUI, whether or not one is installed.

    python3 dev.py demo [--prompt TEXT] [--out FILE]    one image from the model in the pack
    python3 dev.py test [pytest arguments]              lint, format and type check, all tests
    python3 dev.py serve [--port N] [-- arguments]      ComfyUI with this pack, for the browser
    python3 dev.py bench [NAME [its arguments]]         a measurement, written to tests/bench/results
    python3 dev.py screenshots                          the README's pictures, from the editor in Chromium

The first run sets ComfyUI up in the user's cache directory (about 6 GB); later runs and other clones use it.
With COMFYUI_PATH=<folder>, an existing ComfyUI and its Python are used and nothing is installed into them.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent

# By path, because tests load this file too: with its folder on sys.path, our `nodes` would hide ComfyUI's.
_spec = importlib.util.spec_from_file_location("tools", ROOT / "tools" / "__init__.py")
sys.modules["tools"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["tools"])

from tools.environment import DevError, cache_directory, find_comfyui, require_packages  # noqa: E402
from tools.server import ComfyServer, link_pack  # noqa: E402

API_EXAMPLE = ROOT / "workflows" / "api" / "text_to_image.py"
DEMO_WORKFLOW = ROOT / "workflows" / "api" / "nano_text_to_image.json"
SCREENSHOTS = ROOT / "tests" / "browser" / "screenshots.py"
BENCHES = ROOT / "tests" / "bench"
# torch, oneDNN and MKL as on a processor that rounds otherwise, whichever this one is. They read it once, as
# torch is imported: tests of numbers with bounds run with it in processes of their own.
OTHER_ROUNDING = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}
NUMBERS = (
    "tests/core/test_transformer.py::test_float32_velocity_equals_diffusers",
    "tests/comfyui/test_hooked_weights.py::test_a_lora_on_both_branches_is_the_loaders",
    "tests/comfyui/test_low_precision.py",
    "tests/comfyui/test_parts.py",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo_parser = commands.add_parser("demo", help="one image from the small model that comes with the pack")
    demo_parser.add_argument("--prompt", default='"HELLO" in white on blue')
    demo_parser.add_argument("--out", type=Path, default=Path("ovis_image_demo.png"), metavar="FILE")
    commands.add_parser("test", help="lint, format and type check, all tests; arguments go to pytest")
    serve_parser = commands.add_parser(
        "serve", help="ComfyUI with this pack; arguments after -- go to ComfyUI"
    )
    serve_parser.add_argument("--port", type=int, default=8188, help="default: 8188")
    bench_parser = commands.add_parser("bench", help="a measurement, written to tests/bench/results")
    bench_parser.add_argument("name", choices=bench_names(), nargs="?", default="cpu", help="default: cpu")
    bench_parser.add_argument("arguments", nargs=argparse.REMAINDER)
    commands.add_parser("screenshots", help="the README's pictures, from the editor in Chromium")

    split = 1 if argv[:1] == ["test"] else argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:split])
    try:
        if args.command == "demo":
            return demo(args.prompt, args.out)
        if args.command == "bench":
            return bench(args.name, args.arguments)
        if args.command == "screenshots":
            return script(SCREENSHOTS)
        return test(argv[1:]) if args.command == "test" else serve(args.port, argv[split + 1 :])
    except DevError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndev.py: stopped", file=sys.stderr)
        return 130


def demo(prompt: str, out: Path) -> int:
    if not out.resolve().parent.is_dir():
        raise DevError(f"The folder for --out does not exist: {out.resolve().parent}")
    python, comfyui = find_comfyui()
    require_packages(python, ["websocket-client"])

    with tempfile.TemporaryDirectory(prefix="ovis-image-", ignore_cleanup_errors=True) as folder:
        base_dir = Path(folder)
        print("starting ComfyUI", flush=True)
        with ComfyServer(python, comfyui, base_dir, log=base_dir / "comfyui.log") as server:
            client = [python, API_EXAMPLE, "--server", server.address, "--workflow", DEMO_WORKFLOW]
            client += ["--prompt", prompt, "--out", out.resolve()]
            if call(client, comfyui):
                raise DevError(f"The demo workflow failed.\n{server.log_tail()}")
    print("Ovis-Image Nano made this picture; Ovis-Image itself goes through the same nodes.")
    return 0


def test(arguments: list[str]) -> int:
    python, comfyui = find_comfyui()
    require_packages(python)

    # Not every argument that exists is a path: -k nodes.
    paths = [argument.split("::")[0] for argument in arguments if "/" in argument or os.sep in argument]
    selection = [] if any((ROOT / path).exists() for path in paths) else ["tests"]
    # `python -m pytest` would put the repository root on sys.path, where our `nodes` hides ComfyUI's.
    pytest = ["-c", "import sys; del sys.path[0]; import pytest; sys.exit(pytest.main())"]
    pytest += ["-c", "tests/pytest.ini"]
    if arguments:
        runs = [([*selection, *arguments], {})]
    else:
        two_at_a_time = ["-n", "2", "--dist", "loadfile"]  # files, as tests/conftest.py has it
        runs = [([*two_at_a_time, "tests"], {}), ([*two_at_a_time, *NUMBERS], OTHER_ROUNDING)]
    steps = (
        (["-m", "ruff", "check", "."], {}),
        (["-m", "ruff", "format", "--check", "."], {}),
        (["-m", "pyright", "--pythonpath", python], {}),
        *(([*pytest, *run], settings) for run, settings in runs),
    )
    codes = [call([python, *step], comfyui, settings) for step, settings in steps]
    if not any(shutil.which(browser) for browser in BROWSERS):
        print(f"The browser tests did not run: none of {', '.join(BROWSERS)} is on the PATH.")
        print("To get them, install the system's Chromium, on Debian with: apt install chromium")
    return next((code for code in codes if code), 0)


def serve(port: int, arguments: list[str]) -> int:
    python, comfyui = find_comfyui()
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise DevError(f"Port {port} is taken; choose another one with --port.")
    if os.environ.get("COMFYUI_PATH"):
        base_dir = None
        print(f"the pack is on this ComfyUI as {link_pack(comfyui / 'custom_nodes')}")
    else:
        base_dir = cache_directory() / f"serve-{hashlib.sha256(bytes(ROOT)).hexdigest()[:12]}"
        print(f"models, input, output and settings are in {base_dir}")
    with ComfyServer(python, comfyui, base_dir, arguments, port=port) as server:
        print(f"open http://{server.address} in a browser; Ctrl-C stops it", flush=True)
        return server.process.wait()


def bench_names() -> list[str]:
    """The scripts of the bench that can be run by themselves."""
    scripts = (path for path in BENCHES.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
    return sorted(path.stem.replace("_", "-") for path in scripts)


def bench(name: str, arguments: Sequence[str]) -> int:
    return script(BENCHES / f"{name.replace('-', '_')}.py", arguments)


def script(path: Path, arguments: Sequence[str] = ()) -> int:
    python, comfyui = find_comfyui()
    require_packages(python)
    return call([python, path, *arguments], comfyui)


def call(command: Sequence[str | Path], comfyui: Path, settings: Mapping[str, str] | None = None) -> int:
    """Run a command in the repository; unlike subprocess.call, let it clean up before it is ended."""
    environment = {**os.environ, "COMFYUI_PATH": str(comfyui), **(settings or {})}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            return process.wait()
        except SystemExit:  # only we were signalled; a Ctrl-C reaches both
            process.send_signal(signal.SIGINT)
            raise


def clean_up_when_told_to_end() -> None:
    # A shell's background job ignores SIGINT, and so would pytest, which gets one from us to clean up.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):  # Windows has no SIGHUP
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))


if __name__ == "__main__":
    clean_up_when_told_to_end()
    sys.exit(main(sys.argv[1:]))
