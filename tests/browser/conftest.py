"""The real editor in headless Chromium, on a ComfyUI with the small model."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import tiny_model
from playwright.sync_api import sync_playwright

COMFYUI = Path(os.environ["COMFYUI_PATH"])
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
EDITOR_IS_UP = (
    "window.app?.canvas && window.app.extensionManager && !!LiteGraph.registered_node_types.OvisImageSampler"
)


class Server:
    """A running ComfyUI and the names of the small model on it."""

    def __init__(self, process, names: dict[str, str]):
        self.process, self.names = process, names


class Editor:
    """The editor's page, and what it has complained about since `watch` was called."""

    def __init__(self, page):
        self.page = page
        self.complaints: list[str] = []
        self.evaluate = page.evaluate

    def watch(self) -> None:
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._note)

    def _note(self, message) -> None:
        # The editor asks the internet for the sizes of missing files and for packs; the server forbids it to.
        if message.type in ("error", "warning") and "Content Security Policy" not in message.text:
            self.complaints.append(f"{message.type}: {message.text}")


# Module-wide, not session-wide: while playwright runs, no other test of the process can use asyncio.
@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)} on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(browser, tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    names = tiny_model.write("authors", base / "models")
    dev = tiny_model.import_by_path("dev", tiny_model.ROOT / "dev.py")
    with dev.ComfyServer(
        Path(sys.executable), COMFYUI, base, ["--disable-api-nodes"], base / "log.txt"
    ) as process:
        process.post(
            "/api/settings/Comfy.TutorialCompleted", True
        )  # else a newcomer's dialog covers the page
        yield Server(process, names)
        assert process.alive(), process.log_tail()


@pytest.fixture
def editor(browser, server, tmp_path):
    """A page with the editor started; a picture of it lies in the test's folder afterwards."""
    page = browser.new_page(viewport={"width": 1800, "height": 1000})
    page.goto(f"http://{server.process.address}")
    page.wait_for_function(EDITOR_IS_UP)
    page.wait_for_load_state("networkidle")
    yield Editor(page)
    page.screenshot(path=tmp_path / "editor.png")
    page.close()
