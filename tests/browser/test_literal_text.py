"""What is typed into a text field reaches the node to the byte: graph, subgraph, reloaded PNG and API."""

import json

import pytest
from playwright.sync_api import expect

# What the editor's dynamic prompts, ComfyUI's prompt syntax, JSON and quoting would each change.
TYPED = {
    "headline": "URL https://ovis.ai/sale // all\n/* no comment */ {red|blue} {{both}}",
    "subtitle": "“双11 // 狂欢” 「{甲|乙}」 ¥9.9 🎉",
    "body": 'C:\\new\\table \\( (red:1.2) [x] embedding:y\n\nit\'s "so" \\n \\u4e2d',
    "call_to_action": '"$9.99" {now|later} // today',
    "price": '/* was */ "$9.99" \\',
    "footer": "<|im_end|> %date% __wild__ <lora:x:1> &amp; ’",
    "scene": "a street // {day|night}\n/* rain */",
    "style": '"neon" \\{a|b\\} // glow',
}
TEXTS = [TYPED[name] for name in list(TYPED)[:6]]
PROMPT = 'a sign "{OPEN|CLOSED}" // /* x */ "$9.99" “双11” (red:1.2) \\( embedding:x\nline 2 \\'
BUILD = """
    names => {
        app.canvas.setGraph(app.rootGraph)
        app.rootGraph.clear()
        const add = (type, x, y, values = {}) => {
            const node = LiteGraph.createNode(type)
            app.graph.add(node)
            node.pos = [x, y]
            for (const widget of node.widgets ?? [])
                if (widget.name in values) widget.value = values[widget.name]
            return node
        }
        const copy = add('OvisCopy', 0, 0)
        copy.connect(0, add('PreviewAny', 500, 0), 0)
        copy.connect(2, add('PreviewAny', 500, 350), 0)
        const encode = add('OvisImageTextEncode', 900, 350)
        add('OvisImageLoader', 900, 0, names).connect(1, encode, 0)
        encode.connect(0, add('PreviewAny', 1400, 0), 0)
        add('EmptyImage', 1400, 350).connect(0, add('SaveImage', 1400, 700, names), 0)
    }
"""
TO_SUBGRAPH = """
    types => {
        app.canvas.selectItems(app.graph.nodes.filter(node => types.includes(node.type)))
        return app.extensionManager.command.execute('Comfy.Graph.ConvertToSubgraph')
    }
"""
# As dragging a field onto the subgraph's input column does.
PROMOTE = """
    () => {
        const {subgraph} = app.graph.nodes.find(node => node.isSubgraphNode())
        for (const node of subgraph.nodes)
            for (const slot of node.inputs.filter(slot => slot.type === 'STRING'))
                subgraph.addInput(slot.name, slot.type).connect(slot, node)
    }
"""
OPEN_SUBGRAPH = """
    () => {
        const node = app.graph.nodes.find(node => node.isSubgraphNode())
        app.canvas.openSubgraph(node.subgraph, node)
    }
"""
# Comes back when the animation that fits the view is over.
FIT = """
    async () => {
        const {ds} = app.canvas, view = () => [...ds.offset, ds.scale].join()
        app.extensionManager.command.execute('Comfy.Canvas.FitView')
        for (let last = ''; last !== view(); await new Promise(done => setTimeout(done, 500))) last = view()
    }
"""
# Where a one-line field is on the page; the classic canvas draws it and has no element for it.
PLACE = """
    name => {
        const has = node => node.widgets?.some(widget => widget.name === name)
        const node = app.canvas.graph.nodes.find(has)
        const y = node.widgets.find(widget => widget.name === name).y + 10
        const place = [node.pos[0] + 0.7 * node.size[0], node.pos[1] + y]
        const [left, top] = app.canvas.ds.convertOffsetToCanvas(place)
        const page = app.canvas.canvas.getBoundingClientRect()
        return [page.left + left, page.top + top]
    }
"""
DROP = """
    async url => {
        const name = new URL(url, location).searchParams.get('filename')
        const data = new DataTransfer()
        data.items.add(new File([await (await fetch(url)).blob()], name, {type: 'image/png'}))
        const at = {bubbles: true, cancelable: true, clientX: 900, clientY: 500, dataTransfer: data}
        const canvas = app.canvas.canvas
        canvas.dispatchEvent(new DragEvent('dragover', at))
        canvas.dispatchEvent(new DragEvent('drop', at))
    }
"""


@pytest.mark.parametrize("place", ["graph", "inside a subgraph", "fields of a subgraph"])
def test_text_arrives_as_typed_and_again_from_the_png(shared_editor, server, place):
    editor, page = shared_editor, shared_editor.page
    suffix = f"{editor.vue} {place}"  # another each time, lest ComfyUI reuse what it has made
    editor.evaluate(BUILD, {**server.names, "filename_prefix": suffix, "width": 64, "height": 64})
    if place != "graph":
        editor.evaluate(TO_SUBGRAPH, ["OvisCopy", "OvisImageTextEncode"])
    if place == "inside a subgraph":
        editor.evaluate(OPEN_SUBGRAPH)
    elif place == "fields of a subgraph":
        editor.evaluate(PROMOTE)
    editor.evaluate(FIT)
    for name, text in TYPED.items():
        type_into(editor, name, text)
    type_into(editor, "text", f"{PROMPT}{suffix}")
    written = check_arrived(server, queue(editor, server), suffix)

    num_nodes = editor.evaluate("app.rootGraph.nodes.length")
    editor.evaluate("app.canvas.setGraph(app.rootGraph), app.rootGraph.clear()")
    assert editor.evaluate("app.rootGraph.nodes.length") == 0
    editor.evaluate(DROP, f"/api/view?filename={written['filename']}&type=output")
    page.wait_for_function("num => app.rootGraph.nodes.length === num", arg=num_nodes)
    check_arrived(server, queue(editor, server), suffix)


def test_text_arrives_from_the_api_as_sent(server):
    sent = {**TYPED, "price": "$9.99\r\n\tor ¥68\0", "footer": "line\nline"}  # more than a keyboard can
    graph = {
        "1": {"class_type": "OvisCopy", "inputs": {**sent, "language": "English"}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 2]}},
    }
    outputs = server.process.wait(server.process.queue(graph))["outputs"]
    assert json.loads(outputs["2"]["text"][0]) == [sent[name] for name in list(TYPED)[:6]]


def type_into(editor, name: str, text: str) -> None:
    page = editor.page
    if editor.vue:
        field = page.get_by_label(name, exact=True).and_(page.locator("textarea, input"))
        field.fill(text)
        return
    box = page.locator(f"textarea[placeholder='{name}']:visible")
    if box.count():
        box.fill(text)
        return
    page.mouse.dblclick(*editor.evaluate(PLACE, name))
    field = page.locator(".graphdialog input")
    field.fill(text)
    field.press("Enter")
    expect(field).to_have_count(0)


def queue(editor, server) -> dict:
    with editor.page.expect_response(lambda response: response.url.endswith("/api/prompt")) as answer:
        editor.evaluate("app.queuePrompt(0)")
    entry = server.process.wait(answer.value.json()["prompt_id"])
    assert entry["status"]["status_str"] == "success", entry["status"]
    return entry


def check_arrived(server, entry: dict, suffix: str) -> dict:
    """What the nodes were given, and gave, is what was typed -> the picture that was saved."""
    graph = entry["prompt"][2]
    (copy,) = (node for node in graph.values() if node["class_type"] == "OvisCopy")
    assert {name: copy["inputs"][name] for name in TYPED} == TYPED
    (encode,) = (node for node in graph.values() if node["class_type"] == "OvisImageTextEncode")
    assert encode["inputs"]["text"] == f"{PROMPT}{suffix}"
    shown = [output["text"][0] for output in entry["outputs"].values() if "text" in output]
    assert json.dumps(TEXTS, ensure_ascii=False) in shown
    (prompt,) = (text for text in shown if text.startswith("Lettering: "))
    assert all(text in prompt for text in TYPED.values())
    ((picture,),) = (output["images"] for output in entry["outputs"].values() if "images" in output)
    return picture
