"""The README's screenshots, taken from the real editor: `python3 dev.py screenshots`.

No trained model is needed: where a picture must show writing, the renderer of `ovis_core.typography` draws
it. Writes docs/screenshots/*.png. Needs Chromium, rapidocr, onnxruntime and the renderer's fonts.
"""

import importlib.util
import io
import itertools
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

_spec = importlib.util.spec_from_file_location("tests_conftest", Path(__file__).parents[1] / "conftest.py")
sys.modules["tests_conftest"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["tests_conftest"])  # makes the tests' modules importable

import example_workflows as examples  # noqa: E402
import tiny_model  # noqa: E402
from PIL import Image  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

from ovis_core.typography.rendering import Renderer  # noqa: E402
from ovis_core.typography.settings import Typography  # noqa: E402

FOLDER = tiny_model.ROOT / "docs" / "screenshots"
MAX_BYTES = 300_000
MARGIN = 24  # pixels of the page around the nodes
NUM_ROWS = 6
BUILD = """
    nodes => {
        app.graph.clear()
        const made = {}
        for (const {key, type, pos, size, widgets, links} of nodes) {
            const node = made[key] = LiteGraph.createNode(type)
            app.graph.add(node)
            node.pos = pos
            node.setSize(size)
            for (const [name, value] of Object.entries(widgets ?? {}))
                node.widgets.find(widget => widget.name === name).value = value
            for (const [from, output, input] of links ?? []) {
                const slot = node.inputs.findIndex(slot => slot.name === input)
                made[from].connect(output, node, slot)
            }
        }
    }
"""
BOUNDS = """
    () => {
        const nodes = [...document.querySelectorAll('[data-node-id]')]
        const boxes = nodes.map(node => node.getBoundingClientRect())
        const least = side => Math.min(...boxes.map(box => box[side]))
        const most = side => Math.max(...boxes.map(box => box[side]))
        return [least('left'), least('top'), most('right'), most('bottom')]
    }
"""
PICTURE_IS_SHOWN = """
    id => [...document.querySelectorAll(`[data-node-id="${id}"] img`)].some(image => image.naturalWidth > 1)
"""


def main() -> None:
    dev = tiny_model.import_by_path("dev", tiny_model.ROOT / "dev.py")
    browser_tests = tiny_model.import_by_path("browser_conftest", Path(__file__).with_name("conftest.py"))
    path = next(filter(None, map(shutil.which, dev.BROWSERS)), None)
    if path is None:
        sys.exit(f"screenshots need one of {', '.join(dev.BROWSERS)} on the PATH")
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ovis-image-") as folder, sync_playwright() as playwright:
        base = Path(folder)
        examples.write_model(base / "models")
        drawn = draw(base / "input")
        options = Path(sys.executable), Path(os.environ["COMFYUI_PATH"]), base, ["--disable-api-nodes"]
        with dev.ComfyServer(*options, base / "log.txt") as process:
            process.post("/api/settings/Comfy.TutorialCompleted", True)
            process.post("/api/settings/Comfy.Minimap.Visible", False)
            server = browser_tests.Server(process, base / "models", {})
            browser = playwright.chromium.launch(executable_path=path, args=browser_tests.CHROMIUM_OPTIONS)
            with browser_tests.open_editor(browser, server, base) as editor:
                editor.render_with("Nodes 2.0")
                editor.evaluate("graph => app.loadGraphData(graph)", examples.editor_graph("text_to_image"))
                shoot(editor, "text_to_image")
                run(editor, process, verification(drawn))
                shoot(editor, "verification")
                run(editor, process, campaign_sheet(drawn))
                shoot(editor, "campaign_sheet")
            browser.close()


def draw(folder: Path) -> list[tuple[str, ...]]:
    """Rendered writing as 0.png, 1.png, ..., the first with several texts -> what each says."""
    folder.mkdir(parents=True)
    renderer = Renderer(Typography(sizes=((512, 512),)))
    examples_of_seed = (renderer(0, index) for index in itertools.count())
    chosen = [next(example for example in examples_of_seed if len(example.texts) > 1)]
    chosen += itertools.islice(examples_of_seed, NUM_ROWS - 1)
    for number, example in enumerate(chosen):
        example.image.save(folder / f"{number}.png")
    return [example.texts for example in chosen]


def verification(drawn: list[tuple[str, ...]]) -> list[dict]:
    """A picture beside texts of which the first has lost a letter and the last is asked for in vain."""
    first, *others = drawn[0]
    wanted = [first[:-2] + first[-1], *others, "SALE"]
    return [
        load(0, [0, 0]),
        {
            "key": "verify",
            "type": "OvisTextVerify",
            "pos": [380, 0],
            "size": [360, 360],
            "widgets": {"texts": "\n".join(wanted)},
            "links": [["0", 0, "image"]],
        },
        {
            "key": "report",
            "type": "PreviewAny",
            "pos": [380, 480],
            "size": [360, 200],
            "links": [["verify", 3, "source"]],
        },
        show("verify", 0, [780, 0], [620, 680]),
    ]


def campaign_sheet(drawn: list[tuple[str, ...]]) -> list[dict]:
    rows = "\n".join(["headline", *(json.dumps(texts[0], ensure_ascii=False) for texts in drawn)])
    pictures = [load(i, [i % 2 * 260, i // 2 * 380], 240) for i in range(NUM_ROWS)]
    return [
        *pictures,
        {
            "key": "list",
            "type": "CreateList",
            "pos": [540, 0],
            "size": [240, 200],
            "links": [[str(i), 0, f"inputs.input{i}"] for i in range(NUM_ROWS)],
        },
        {
            "key": "rows",
            "type": "OvisCampaignRows",
            "pos": [540, 330],
            "size": [400, 560],
            "widgets": {"rows": rows, "style": ""},
        },
        {
            "key": "grid",
            "type": "OvisLabelledGrid",
            "pos": [980, 0],
            "size": [340, 400],
            "widgets": {"columns": 3, "cell_size": 320},
            "links": [["list", 0, "images"], ["rows", 0, "labels"]],
        },
        show("grid", 0, [1360, 0], [760, 700]),
    ]


def load(index: int, pos: list[int], width: int = 340) -> dict:
    widgets = {"image": f"{index}.png"}
    return {"key": str(index), "type": "LoadImage", "pos": pos, "size": [width, 290], "widgets": widgets}


def show(key: str, output: int, pos: list[int], size: list[int]) -> dict:
    return {
        "key": "show",
        "type": "PreviewImage",
        "pos": pos,
        "size": size,
        "links": [[key, output, "images"]],
    }


def run(editor, process, nodes: list[dict]) -> None:
    """Builds the graph, runs it and waits for the picture of its last node."""
    editor.evaluate(BUILD, nodes)
    with editor.page.expect_response(lambda response: response.url.endswith("/api/prompt")) as answer:
        editor.evaluate("app.queuePrompt(0)")
    entry = process.wait(answer.value.json()["prompt_id"])
    assert entry["status"]["status_str"] == "success", entry["status"]
    last = editor.evaluate("app.graph.nodes.at(-1).id")
    editor.page.wait_for_function(PICTURE_IS_SHOWN, arg=last)


def shoot(editor, name: str) -> None:
    """A PNG of all nodes, in 256 colours lest it be large."""
    editor.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    editor.page.wait_for_load_state("networkidle")
    editor.page.wait_for_timeout(2000)  # FitView glides to its place
    left, top, right, bottom = editor.evaluate(BOUNDS)
    page = Image.open(io.BytesIO(editor.page.screenshot())).convert("RGB")
    box = left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN
    limits = zip(map(round, box), (0, 0, 0, 0), (*page.size, *page.size), strict=True)
    picture = page.crop(tuple(min(max(side, low), high) for side, low, high in limits))
    path = FOLDER / f"{name}.png"
    picture.quantize(256).save(path, optimize=True)
    if path.stat().st_size > MAX_BYTES:
        sys.exit(f"{path} has {path.stat().st_size} bytes, more than the README's pictures may have")
    sys.stdout.write(f"{path}: {picture.width}x{picture.height}, {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    main()
