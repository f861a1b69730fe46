"""The blueprints from the node search and the apps from the template browser, filled in and run."""

import example_workflows as examples
import pytest
import tiny_model
from playwright.sync_api import expect

BLUEPRINTS = sorted(path.stem for path in (tiny_model.ROOT / "subgraphs").glob("*.json"))
HEADLINE = 'A "//" B {a|b} /* x */ “双11” $9.99\nline 2 \\'
STEPS = {"draft": 20, "standard": 30, "reference": 50}
# Of the search, which a user opens by a double click on the canvas.
OPENED_BY_COMMAND = "The trigger event was undefined"
NODE_IS_THERE = "title => app.graph.nodes.length === 1 && app.graph.nodes[0].title === title"
VALUES = "Object.fromEntries(app.graph.nodes[0].widgets.map(widget => [widget.name, widget.value]))"
SAVE = """
    () => {
        const [poster] = app.graph.nodes
        const save = LiteGraph.createNode('SaveImage')
        app.graph.add(save)
        save.pos = [poster.pos[0] + poster.size[0] + 60, poster.pos[1]]
        poster.connect(0, save, 0)
    }
"""
# Two steps are enough here for every quality; the table of steps lies inside.
FEWER_STEPS = """
    () => {
        const {nodes} = app.graph.nodes[0].subgraph
        const table = nodes.find(node => node.type === 'JsonExtractString').widgets[0]
        table.value = table.value.replaceAll(/\\d+/g, '2')
    }
"""


@pytest.fixture(scope="module", autouse=True)
def files(server):
    examples.write_model(server.models)


@pytest.mark.parametrize("name", BLUEPRINTS)
def test_a_blueprint_is_found_placed_and_run(shared_editor, server, name):
    editor, page = shared_editor, shared_editor.page
    editor.complaints.clear()
    place(editor, name)
    as_placed = editor.evaluate(VALUES)
    assert (as_placed["quality"], as_placed["seed"]) == ("reference", 42)
    values = {"headline": HEADLINE, "aspect_ratio": "custom", "width": 96, "height": 128}
    values |= {"style": "chalk", "colour": "mint", "language": "Chinese"}
    editor.set_widgets(editor.evaluate("app.graph.nodes[0].id"), values | one_try(name))
    editor.evaluate(SAVE)

    for quality, steps in STEPS.items():
        editor.set_widgets(editor.evaluate("app.graph.nodes[0].id"), {"quality": quality})
        graph = editor.evaluate("app.graphToPrompt().then(({output}) => output)")
        (combo,) = (node["inputs"] for node in graph.values() if node["class_type"] == "CustomCombo")
        (table,) = (node["inputs"] for node in graph.values() if node["class_type"] == "JsonExtractString")
        assert combo["choice"] == quality
        assert f'"{quality}": {steps}' in table["json_string"]

    editor.evaluate(FEWER_STEPS)
    with page.expect_response(lambda response: response.url.endswith("/api/prompt")) as answer:
        page.get_by_test_id("queue-button").click()
    entry = server.process.wait(answer.value.json()["prompt_id"])
    assert entry["status"]["status_str"] == "success", entry["status"]
    (copy,) = (n["inputs"] for n in entry["prompt"][2].values() if n["class_type"] == "OvisCopy")
    assert (copy["headline"], copy["language"]) == (HEADLINE, "Chinese")
    (style,) = (n["inputs"] for n in entry["prompt"][2].values() if n["class_type"] == "OvisStyle")
    assert style == {"style": "chalk", "colour": "mint", "language": "Chinese"}
    (image,) = (image for output in entry["outputs"].values() for image in output.get("images", ()))
    assert [said for said in editor.complaints if OPENED_BY_COMMAND not in said] == []
    assert server.process.view(image).startswith(b"\x89PNG")


def one_try(name: str) -> dict:
    return {"max_tries": 1} if "verified" in name else {}


def place(editor, name: str) -> None:
    page = editor.page
    editor.evaluate("app.canvas.setGraph(app.rootGraph), app.rootGraph.clear()")
    editor.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    search = page.get_by_role("combobox", name="Add a node...")
    search.fill(name)
    expect(page.get_by_role("option").first).to_contain_text(name)
    search.press("Enter")
    expect(search).to_be_hidden()
    page.mouse.click(700, 200)  # the node hangs on the pointer until it is put down
    page.wait_for_function(NODE_IS_THERE, arg=name)


# The form is the same page on both renderers. {app: label of its first field, what to type}
FIRST_FIELDS = {
    "nano_sign.app": ("Word: 2 to 6 capital letters", "BREAD"),
    "nano_sign.zh.app": ("文字：64 个汉字中的 2 到 3 个", "夏天"),
    "poster.app": ("Headline", HEADLINE),
    "poster.zh.app": ("标题", HEADLINE),
    "verified_poster.app": ("Headline", HEADLINE),
    "verified_poster.zh.app": ("标题", HEADLINE),
}


@pytest.mark.parametrize("shared_editor", ["classic canvas"], indirect=True)
@pytest.mark.parametrize("name", examples.APPS)
def test_an_app_opens_as_one_and_runs(shared_editor, server, name):
    editor, page = shared_editor, shared_editor.page
    editor.complaints.clear()
    editor.open_template(examples.editor_graph(name), examples.TEMPLATES[name])
    label, text = FIRST_FIELDS[name]
    form = page.get_by_test_id("linear-widgets")
    expect(form.get_by_text(label, exact=True)).to_be_visible()
    assert editor.evaluate("app.graphToPrompt().then(({output}) => output)") == examples.api_graph(name)
    form.locator("textarea, input[type=text], input:not([type])").first.fill(text)
    for node, values in examples.quick_values(name).items():
        editor.set_widgets(node, values)

    with page.expect_response(lambda response: response.url.endswith("/api/prompt")) as answer:
        page.get_by_role("button", name="Run", exact=True).filter(visible=True).last.click()
    entry = server.process.wait(answer.value.json()["prompt_id"])
    assert entry["status"]["status_str"] == "success", entry["status"]
    assert text in [value for node in entry["prompt"][2].values() for value in node["inputs"].values()]
    (picture,) = (image for output in entry["outputs"].values() for image in output.get("images", ()))
    expect(page.locator(f"img[src*='{picture['filename']}']:visible").first).to_be_visible()
    assert editor.complaints == []
    editor.evaluate("app.extensionManager.command.execute('Comfy.ToggleLinear')")
    expect(page.get_by_test_id("queue-button")).to_be_visible()
