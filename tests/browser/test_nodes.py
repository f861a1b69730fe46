"""Every node of the pack, found in the editor's search and put on the canvas, on both renderers."""

from playwright.sync_api import expect

OURS = """
    () => Object.values(LiteGraph.registered_node_types)
        .filter(type => type.nodeData?.python_module?.endsWith('.ovis-image'))
        .map(type => [type.nodeData.name, type.nodeData.display_name])
"""
NODE_IS_THERE = "type => app.graph.nodes.length === 1 && app.graph.nodes[0].type === type"


def test_each_is_found_by_its_name_and_put_down(shared_editor):
    editor = shared_editor
    editor.complaints.clear()
    nodes = editor.evaluate(OURS)
    assert len(nodes) >= 22
    for node_id, display_name in nodes:
        put_down(editor, node_id, display_name)
        expect(editor.page.locator("[data-node-id]")).to_have_count(1 if editor.vue else 0)
    complaints = [said for said in editor.complaints if "The trigger event was undefined" not in said]
    assert complaints == []


def put_down(editor, node_id: str, display_name: str) -> None:
    page = editor.page
    editor.evaluate("app.canvas.setGraph(app.rootGraph), app.rootGraph.clear()")
    editor.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    search = page.get_by_role("combobox", name="Add a node...")
    name = display_name.partition(" (")[0]  # the search shortens long names
    search.fill(name)
    page.get_by_role("option").filter(has_text=name).first.click()
    expect(search).to_be_hidden()
    page.mouse.click(700, 200)  # the node hangs on the pointer until it is put down
    page.wait_for_function(NODE_IS_THERE, arg=node_id)
