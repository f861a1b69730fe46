"""Every template, from the template browser: found, readable as it opens, and run to its pictures."""

import itertools
import re

import example_workflows as examples
import pytest
from playwright.sync_api import expect

SCREEN = {"width": 1600, "height": 1000}
LEAST_ZOOM = 0.62  # texts are drawn, as in ComfyUI's own templates
UNRELATED = re.compile("^template-workflow-api_")
BOXES = """
    () => [app.graph.nodes, app.graph.groups].map(things => things.map(thing => {
        const [left, top, width, height] = thing.boundingRect
        return {title: thing.title, left, top, right: left + width, bottom: top + height}
    }))
"""
# A live preview on every node that draws, by the message that the server sends. That of a node in a subgraph
# is the subgraph's, too, and not waited for.
PREVIEW = """
    async types => {
        const canvas = new OffscreenCanvas(128, 128)
        canvas.getContext('2d').fillRect(0, 0, 128, 128)
        const blob = await canvas.convertToBlob()
        const ids = nodes => nodes.filter(node => types.includes(node.type)).map(node => String(node.id))
        const inside = app.graph.nodes.flatMap(
            node => ids(node.subgraph?.nodes ?? []).map(id => `${node.id}:${id}`)
        )
        const outside = ids(app.graph.nodes)
        for (const displayNodeId of [...outside, ...inside])
            app.api.dispatchCustomEvent('b_preview_with_metadata', {blob, displayNodeId, jobId: 'test'})
        return outside
    }
"""
DRAWING = ["OvisImageSampler", "OvisTextRetry", "SamplerCustomAdvanced"]
PREVIEWS_ARE_SHOWN = """
    ([vue, ids]) => {
        app.canvas.setDirty(true, true)  // as the progress of a run does
        return ids.every(id => vue
            ? document.querySelector(`[data-node-id="${id}"] img`)?.naturalWidth
            : app.graph.getNodeById(id).imgs?.[0]?.naturalWidth
        )
    }
"""
# The pictures on the nodes are those of this run: {node id: [[file, width, height], ...]}.
PICTURES_ARE_SHOWN = """
    wanted => Object.entries(wanted).every(([id, pictures]) => {
        const shown = [...app.graph.getNodeById(id).imgs ?? []].map(image => [
            new URL(image.src).searchParams.get('filename'), image.naturalWidth, image.naturalHeight
        ])
        const same = (got, want) => want.every((value, place) => value === got[place])
        return shown.length === pictures.length && shown.every((got, i) => same(got, pictures[i]))
    })
"""


@pytest.fixture(scope="module", autouse=True)
def files(server):
    """The small model and a LoRA under the names that the workflows ask for."""
    examples.write_model(server.models)
    examples.write_lora(server.models)


@pytest.fixture
def screen(shared_editor):
    shared_editor.page.set_viewport_size(SCREEN)
    shared_editor.complaints.clear()
    return shared_editor


on_the_classic_canvas = pytest.mark.parametrize("shared_editor", ["classic canvas"], indirect=True)


@on_the_classic_canvas
def test_searching_all_templates_finds_them(screen):
    dialog = screen.open_templates()
    search = dialog.get_by_placeholder("Search")
    dialog.get_by_text("ovis-image", exact=True).click()  # 500 cards fewer to draw while one types
    at_once = [examples.TEMPLATES[name] for name in examples.NANO]
    for words, wanted in {"ovis": examples.TEMPLATES.values(), "试用": at_once}.items():
        search.fill(words)
        dialog.get_by_text("All Templates").first.click()
        expect(dialog.get_by_test_id(UNRELATED)).to_have_count(0)  # until then all are shown
        for template in wanted:
            expect(dialog.get_by_test_id(f"template-workflow-{template}")).to_have_count(1)
    screen.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    screen.choose_template(at_once[0])
    screen.page.wait_for_function("app.graph.nodes.some(node => node.type === 'OvisImageSampler')")


@pytest.mark.parametrize("name", examples.NAMES)
def test_it_opens_readable_with_room_for_previews(screen, name):
    editor, page = screen, screen.page
    editor.open_template(examples.editor_graph(name), examples.TEMPLATES[name])
    if name in examples.APPS:  # which opens as a form
        expect(page.get_by_test_id("linear-widgets")).to_be_visible()
        editor.evaluate("app.extensionManager.command.execute('Comfy.ToggleLinear')")
        expect(page.get_by_test_id("queue-button")).to_be_visible()
        editor.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    num_nodes = editor.evaluate("app.graph.nodes.length")
    expect(page.locator("[data-node-id]")).to_have_count(num_nodes if editor.vue else 0)
    page.wait_for_function(f"app.canvas.ds.scale >= {LEAST_ZOOM} && !app.canvas.low_quality")
    check_layout(editor)
    drawing = editor.evaluate(PREVIEW, DRAWING)
    page.wait_for_function(PREVIEWS_ARE_SHOWN, arg=[editor.vue, drawing])
    check_layout(editor)
    assert editor.complaints == []


@on_the_classic_canvas
@pytest.mark.parametrize("name", [name for name in examples.NAMES if name not in examples.APPS])
def test_it_is_the_graph_of_its_api_file_and_shows_its_pictures(screen, server, name):
    editor, page, api = screen, screen.page, examples.api_graph(name)
    editor.open_template(examples.editor_graph(name), examples.TEMPLATES[name])
    page.wait_for_function(
        "num => app.graph.nodes.length === num", arg=len(examples.editor_graph(name)["nodes"])
    )
    assert editor.evaluate("app.graphToPrompt().then(({output}) => output)") == api
    if name not in examples.RUN:
        return

    for node, values in examples.quick_values(name).items():
        editor.set_widgets(node, values)
    with page.expect_response(lambda response: response.url.endswith("/api/prompt")) as answer:
        page.get_by_test_id("queue-button").click()
    entry = server.process.wait(answer.value.json()["prompt_id"])
    assert entry["status"]["status_str"] == "success", entry["status"]

    saves = sorted((node for node in api if api[node]["class_type"] == "SaveImage"), key=int)
    saved = {node: [image["filename"] for image in entry["outputs"][node]["images"]] for node in saves}
    assert sum(map(len, saved.values())) == len(examples.PICTURES[name])
    sizes = iter(examples.PICTURES[name])
    wanted = {node: [[file, *(next(sizes) or ())] for file in files] for node, files in saved.items()}
    page.wait_for_function(PICTURES_ARE_SHOWN, arg=wanted)
    check_layout(editor)
    expect(page.get_by_text("errors found")).to_have_count(0)
    assert editor.complaints == []


def check_layout(editor) -> None:
    """No node covers another or a group's edge. Nodes 2.0 gives nodes their real heights."""
    nodes, groups = editor.evaluate(BOXES)
    for a, b in itertools.combinations(nodes, 2):
        assert apart(a, b), f"{a} covers {b}"
    for node, group in itertools.product(nodes, groups):
        assert apart(node, group) or inside(node, group), f"{node['title']} stands on an edge of {group}"


def apart(a: dict, b: dict) -> bool:
    beside = a["right"] <= b["left"] or b["right"] <= a["left"]
    return beside or a["bottom"] <= b["top"] or b["bottom"] <= a["top"]


def inside(node: dict, group: dict) -> bool:
    across = group["left"] <= node["left"] and node["right"] <= group["right"]
    return across and group["top"] <= node["top"] and node["bottom"] <= group["bottom"]
