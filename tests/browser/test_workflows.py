"""Every example workflow, from the template browser to its pictures, on both of the editor's renderers."""

import itertools

import example_workflows as examples
import pytest
from playwright.sync_api import expect

BOXES = """
    () => [app.graph.nodes, app.graph.groups].map(things => things.map(thing => {
        const [left, top, width, height] = thing.boundingRect
        return {title: thing.title, left, top, right: left + width, bottom: top + height}
    }))
"""
# The pictures on the nodes are those of this run: {node id: [[file, width, height], ...]}.
PICTURES_ARE_SHOWN = """
    ([vue, wanted]) => Object.entries(wanted).every(([id, pictures]) => {
        const images = vue
            ? document.querySelectorAll(`[data-node-id="${id}"] img`)
            : app.graph.getNodeById(id).imgs ?? []
        const shown = [...images].map(image => [
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


@pytest.mark.parametrize("name", [name for name in examples.NAMES if name not in examples.APPS])
def test_it_opens_from_the_template_browser_and_shows_its_pictures(shared_editor, server, name):
    editor, page = shared_editor, shared_editor.page
    editor.complaints.clear()
    open_template(editor, name)
    check_layout(editor)

    api = examples.api_graph(name)
    for node, values in examples.quick_values(api).items():
        editor.set_widgets(node, values)
    with page.expect_response(lambda response: response.url.endswith("/api/prompt")) as answer:
        page.get_by_test_id("queue-button").click()
    entry = server.process.wait(answer.value.json()["prompt_id"])
    assert entry["status"]["status_str"] == "success", entry["status"]

    saves = [node for node in sorted(api, key=int) if api[node]["class_type"] == "SaveImage"]
    saved = {node: [image["filename"] for image in entry["outputs"][node]["images"]] for node in saves}
    assert sum(map(len, saved.values())) == len(examples.PICTURES[name])
    sizes = iter(examples.PICTURES[name])
    wanted = {node: [[file, *(next(sizes) or ())] for file in files] for node, files in saved.items()}
    page.wait_for_function(PICTURES_ARE_SHOWN, arg=[editor.vue, wanted])
    check_layout(editor)
    expect(page.get_by_text("errors found")).to_have_count(0)
    assert editor.complaints == []


def open_template(editor, name: str) -> None:
    page, nodes = editor.page, examples.editor_graph(name)["nodes"]
    editor.choose_template(name)
    page.wait_for_function(
        "wanted => app.graph.nodes.map(node => node.type).sort().join() === wanted",
        arg=",".join(sorted(node["type"] for node in nodes)),
    )
    assert editor.evaluate("app.graph.nodes.every(node => node.type in LiteGraph.registered_node_types)")
    expect(page.locator("[data-node-id]")).to_have_count(len(nodes) if editor.vue else 0)
    editor.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")


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
