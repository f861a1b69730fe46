"""A ComfyUI server with this pack, for the length of a `with` block, and the HTTP requests to it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .environment import ROOT, DevError, ask, base_directory_arguments, tail


class ComfyServer:
    """A ComfyUI process on a loopback port for the length of a `with` block.

    base_dir: models, custom_nodes, input, output and user live here, made if missing with what a fresh
        ComfyUI has, and this pack is linked into it; None is ComfyUI's own, as it is.
    log: a file for ComfyUI's output; None is the terminal.
    """

    def __init__(
        self,
        python: Path,
        comfyui: Path,
        base_dir: Path | None,
        extra_args: Sequence[str] = (),
        log: Path | None = None,
        port: int | None = None,
    ) -> None:
        self.log = log
        port = port or free_port()
        self.address = f"127.0.0.1:{port}"
        self.command = [str(python), str(comfyui / "main.py"), "--listen", "127.0.0.1", "--port", str(port)]
        self.command += ["--disable-auto-launch", *extra_args]
        if base_dir is not None:
            (base_dir / "custom_nodes").mkdir(parents=True, exist_ok=True)
            self.command += base_directory_arguments(base_dir)
            link_pack(base_dir / "custom_nodes")
            copy_example_picture(comfyui, base_dir)
        if "--cpu" not in extra_args and not has_accelerator(python):
            self.command.append("--cpu")

    def __enter__(self) -> ComfyServer:
        # A group of its own, so that a Ctrl-C reaches it through us, and stop() its children through it.
        new_group = {"creationflags": 0x200} if os.name == "nt" else {"start_new_session": True}
        with self.log.open("wb") if self.log else contextlib.nullcontext() as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self.process = subprocess.Popen(self.command, **streams, **new_group)
        if os.name != "nt":
            # The pipe ends with us, however we end; then the guard kills what is left of the group.
            guard = ["sh", "-c", f"read _; kill -9 -{self.process.pid}"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            self.guard = subprocess.Popen(guard, **pipes, **new_group)
        try:
            self.wait_until_up()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def wait_until_up(self, timeout: float = 300) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.alive():
            with contextlib.suppress(OSError):
                self.get("/queue")
                return
            time.sleep(0.2)
        state = f"does not answer after {timeout:.0f} s" if self.alive() else "ended while starting"
        raise DevError(f"ComfyUI {state}.\n{self.log_tail()}")

    def stop(self) -> None:
        """End the process and whatever it started."""
        if os.name == "nt":
            subprocess.run(["taskkill", "/T", "/F", "/PID", str(self.process.pid)], capture_output=True)
        else:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self.process.pid, signal.SIGTERM)
                self.process.wait(10)
            self.guard.communicate(b"\n")
        self.process.wait()

    def alive(self) -> bool:
        return self.process.poll() is None

    def log_tail(self) -> str:
        if self.log is None:
            return "See its output above."
        return f"The end of ComfyUI's log {self.log}:\n{tail(self.log, 25)}"

    def get(self, path: str) -> Any:
        return json.loads(self.request(path)[1])

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """The HTTP status and the parsed answer: None where it is empty, text where it is not JSON."""
        status, answer = self.request(path, json.dumps(body).encode())
        try:
            return status, json.loads(answer or "null")
        except ValueError:
            return status, answer.decode(errors="replace")

    def queue(self, workflow: dict[str, Any], **extra: Any) -> str:
        """Queue an API-format workflow and return its prompt id, or raise DevError with ComfyUI's reasons."""
        status, answer = self.post("/prompt", {"prompt": workflow, **extra})
        if status != 200:
            raise DevError(f"ComfyUI refuses the workflow (HTTP {status}): {json.dumps(answer, indent=1)}")
        return answer["prompt_id"]

    def wait(self, prompt_id: str, timeout: float = 300) -> dict[str, Any]:
        """The history entry of a prompt once it has ended, well or not: see its `status`."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.alive():
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.1)
        state = f"has not ended after {timeout:.0f} s" if self.alive() else "ended ComfyUI itself"
        raise DevError(f"Prompt {prompt_id} {state}.\n{self.log_tail()}")

    def view(self, image: dict[str, str]) -> bytes:
        """The file behind one entry of `images` in a history."""
        return self.request(f"/view?{urllib.parse.urlencode(image)}")[1]

    def request(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        json_type = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.address}{path}", body, json_type)
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy cannot reach loopback
        try:
            with direct.open(request, timeout=60) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            if body is None:
                raise
            return error.code, error.read()


def copy_example_picture(comfyui: Path, base_dir: Path) -> None:
    """Put the one picture of a fresh ComfyUI, which workflows load, where this one looks for pictures."""
    picture = Path("input", "example.png")
    if (comfyui / picture).is_file():
        (base_dir / picture).parent.mkdir(exist_ok=True)
        shutil.copy(comfyui / picture, base_dir / picture)


def link_pack(custom_nodes: Path) -> Path:
    """Put this pack on a ComfyUI unless it is there, and return its place in custom_nodes."""
    for entry in custom_nodes.iterdir():
        if entry.resolve() == ROOT:
            return entry
    link = custom_nodes / "ovis-image"
    if link.is_symlink():
        link.unlink()
    try:
        link.symlink_to(ROOT, target_is_directory=True)
    except FileExistsError:
        raise DevError(f"{link} is another copy of the pack; move it away first.") from None
    except OSError:
        if os.name != "nt":
            raise
        # Windows keeps symbolic links for administrators; anyone may make a junction.
        junction = ["cmd", "/c", "mklink", "/J", str(link), str(ROOT)]
        subprocess.run(junction, check=True, capture_output=True)
    return link


@functools.cache
def has_accelerator(python: Path) -> bool:
    """Whether torch there sees a GPU or its like; ComfyUI stops without one unless told --cpu."""
    code = "import torch; print(getattr(torch, 'accelerator', torch.cuda).is_available())"
    return ask(python, code).endswith("True")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
