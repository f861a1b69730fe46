"""The real editor in headless Chromium, on a ComfyUI with the small model."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_model
from playwright.sync_api import expect, sync_playwright

COMFYUI = Path(os.environ["COMFYUI_PATH"])
RENDERERS = ("classic canvas", "Nodes 2.0")
CHROMIUM_OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
PATIENCE = 60_000  # milliseconds
EDITOR_IS_UP = (
    "window.app?.canvas && window.app.extensionManager && !!LiteGraph.registered_node_types.OvisImageSampler"
)

OPEN_TEMPLATE = """
    ([graph, name]) => app.loadGraphData(graph, true, true, name, {openSource: 'template'})
"""
# A field that a subgraph's node shows is set there, as its user would.
SET_WIDGETS = """
    ([id, values]) => {
        const [first, ...inner] = id.split(':')
        let node = app.rootGraph.getNodeById(first), outer
        for (const id of inner) {
            outer = node
            node = node.subgraph.getNodeById(id)
        }
        const shownAs = name => {
            const link = outer?.subgraph.getLink(node.inputs.find(slot => slot.widget?.name === name)?.link)
            return link && outer.subgraph.inputs[link.origin_slot].name
        }
        for (const [name, value] of Object.entries(values)) {
            const shown = shownAs(name)
            const {widgets} = shown ? outer : node
            const widget = widgets.find(widget => widget.name === (shown ?? name))
            widget.value = value
            widget.callback?.(value)
        }
    }
"""


class Server:
    """A running ComfyUI, its models folder and the names of the small model there."""

    def __init__(self, process, models: Path, names: dict[str, str]):
        self.process, self.models, self.names = process, models, names


class Editor:
    """The editor's page on one of its renderers, and what it has complained about since `watch`."""

    def __init__(self, page):
        self.page = page
        self.vue = False
        self.complaints: list[str] = []
        self.evaluate = page.evaluate

    def render_with(self, renderer: str) -> None:
        self.vue = renderer == "Nodes 2.0"
        self.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", self.vue)

    def open_templates(self):
        """Opens the template browser -> its dialog."""
        self.page.get_by_role("button", name="Templates").click()
        return self.page.get_by_role("dialog")

    def open_template(self, graph: dict, name: str) -> None:
        """Opens a graph as the template browser does once its card is clicked."""
        self.evaluate(OPEN_TEMPLATE, [graph, name])

    def choose_template(self, name: str) -> None:
        dialog = self.open_templates()
        dialog.get_by_text("ovis-image", exact=True).click()
        dialog.get_by_placeholder("Search").fill(name[:30])  # else cards further down are not there yet
        card = dialog.get_by_test_id(f"template-workflow-{name}")
        expect(card).to_be_visible()
        while card.is_visible():  # until a card's picture is loaded, clicks may be lost
            card.click()
            self.page.wait_for_timeout(1000)
        expect(dialog).to_be_hidden()

    def set_widgets(self, node: int | str, values: dict) -> None:
        """Sets fields of a node, `7`, or of one inside a subgraph's node, `21:7`."""
        self.evaluate(SET_WIDGETS, [str(node), values])

    def watch(self) -> None:
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._note)

    def _note(self, message) -> None:
        # The editor asks the internet for the sizes of missing files and for packs; the server forbids it to.
        if message.type in ("error", "warning") and "Content Security Policy" not in message.text:
            self.complaints.append(f"{message.type}: {message.text}")


@pytest.fixture(scope="session")
def dev():
    return tiny_model.import_by_path("dev", tiny_model.ROOT / "dev.py")


# Module-wide, not session-wide: while playwright runs, no other test of the process can use asyncio.
@pytest.fixture(scope="module")
def browser(dev):
    path = next(filter(None, map(shutil.which, dev.BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs one of {', '.join(dev.BROWSERS)} on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(browser, dev, tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    names = tiny_model.write("authors", base / "models")
    with dev.ComfyServer(
        Path(sys.executable), COMFYUI, base, ["--disable-api-nodes"], base / "log.txt"
    ) as process:
        # Else a newcomer's dialog covers the page.
        process.post("/api/settings/Comfy.TutorialCompleted", True)
        # A page that draws without a GPU may see the second click of two so late.
        process.post("/api/settings/Comfy.Pointer.DoubleClickTime", 1000)
        yield Server(process, base / "models", names)
        assert process.alive(), process.log_tail()


@contextlib.contextmanager
def open_editor(browser, server, folder: Path) -> Iterator[Editor]:
    """A page with the editor started; a picture of it lies in the folder afterwards."""
    page = browser.new_page(viewport={"width": 1800, "height": 1000})
    # How fast a machine is decides no test: the test's own limit is the only one.
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page.goto(f"http://{server.process.address}")
    page.wait_for_function(EDITOR_IS_UP)
    page.wait_for_load_state("networkidle")
    yield Editor(page)
    page.screenshot(path=folder / "editor.png")
    page.close()


@pytest.fixture(params=RENDERERS)
def editor(browser, server, tmp_path, request):
    with open_editor(browser, server, tmp_path) as editor:
        editor.render_with(request.param)
        yield editor


@pytest.fixture(scope="module", params=RENDERERS)
def shared_editor(browser, server, tmp_path_factory, request):
    """One page for all tests of a module on a renderer, since starting the editor takes seconds."""
    with open_editor(browser, server, tmp_path_factory.mktemp("editor")) as editor:
        editor.render_with(request.param)
        editor.watch()
        yield editor


@pytest.fixture
def open_editor_in(browser, server, tmp_path):
    """Opens the editor in a language: `open_editor_in("zh")`; afterwards it is English again."""

    @contextlib.contextmanager
    def opened(language: str) -> Iterator[Editor]:
        server.process.post("/api/settings/Comfy.Locale", language)
        try:
            with open_editor(browser, server, tmp_path) as editor:
                yield editor
        finally:
            server.process.post("/api/settings/Comfy.Locale", "en")

    return opened
