"""The example graph in the editor, from opening it to a picture, on both of the editor's renderers."""

import re

import example_workflows as examples
import pytest
from playwright.sync_api import expect

WORKFLOW = examples.editor_graph("text_to_image")
# All that the editor's dynamic prompts and ComfyUI's prompt syntax would change.
PROMPT = 'URL "https://ovis.ai/sale" {a|b} /* x */ "$9.99" “双11 // 狂欢” (red:1.2) \\( embedding:x\nline2'


@pytest.fixture
def graph(editor):
    """The editor with the example open and in view, complaints counted from before it was opened."""
    editor.watch()
    editor.evaluate("graph => app.loadGraphData(graph, true, true, 'text_to_image')", WORKFLOW)
    editor.page.get_by_text("errors found").wait_for()  # the model files are missing, as they should be
    expect(editor.page.locator("[data-node-id]")).to_have_count(8 if editor.vue else 0)
    editor.evaluate("app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    return editor


def test_graph_opens_and_offers_the_missing_models(graph):
    written = {node["id"]: node["type"] for node in WORKFLOW["nodes"]}
    opened = graph.evaluate("app.graph.nodes.map(node => [node.id, node.type])")
    assert {int(id): kind for id, kind in opened} == written
    assert len(written) == 8
    assert graph.evaluate("app.graph.nodes.every(node => node.type in LiteGraph.registered_node_types)")

    graph.page.get_by_text("View details").click()
    panel = graph.page.get_by_text("Missing Models")
    expect(panel).to_be_visible()
    expect(graph.page.get_by_text("Download", exact=True)).to_have_count(3)
    expect(graph.page.get_by_text("Missing Node")).to_have_count(0)
    assert graph.complaints == []


def test_graph_runs_and_the_prompt_arrives_as_typed(graph, server):
    graph.set_widgets(1, server.names)
    graph.set_widgets(4, {"aspect_ratio": "custom", "width": 128, "height": 192})
    graph.set_widgets(5, {"steps": 2})
    prompt = f"{PROMPT}\n{graph.vue}"  # another each time, lest ComfyUI reuse the first
    box = graph.page.evaluate_handle(
        "[...document.querySelectorAll('textarea')].find(box => box.value.includes('SLOW MORNINGS'))"
    )
    box.as_element().fill(prompt)

    with graph.page.expect_response(lambda response: response.url.endswith("/api/prompt")) as answer:
        graph.evaluate("app.queuePrompt(0)")
    entry = server.process.wait(answer.value.json()["prompt_id"])
    assert entry["status"]["status_str"] == "success", entry["status"]
    _, _, executed, extra, *_ = entry["prompt"]
    assert executed["2"]["inputs"]["text"] == prompt
    assert executed["3"]["inputs"]["text"] == ""
    saved = {node["id"]: node for node in extra["extra_pnginfo"]["workflow"]["nodes"]}
    assert saved[2]["widgets_values"] == [prompt]

    shown = "[...document.querySelectorAll('[data-node-id=\"7\"] img')]" if graph.vue else "node.imgs ?? []"
    graph.page.wait_for_function(
        f"() => {{ const node = app.graph.getNodeById(7);"
        f" return ({shown}).some(image => image.naturalWidth === 128 && image.naturalHeight === 192) }}"
    )
    expect(graph.page.get_by_text(re.compile(r"\d+ of 284 tokens")).first).to_be_visible()
    assert graph.complaints == []
