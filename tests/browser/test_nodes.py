"""Every node of the pack, found in the editor's search and put on the canvas, on both renderers."""

import re

from playwright.sync_api import expect

OURS = """
    () => Object.values(LiteGraph.registered_node_types)
        .filter(type => type.nodeData?.python_module?.endsWith('.ovis-image'))
        .map(type => [type.nodeData.name, type.nodeData.display_name])
"""
NODE_IS_THERE = "type => app.graph.nodes.length === 1 && app.graph.nodes[0].type === type"


def test_what_the_editor_shows_beyond_the_schemas(shared_editor):
    editor, page = shared_editor, shared_editor.page
    editor.evaluate("app.canvas.setGraph(app.rootGraph), app.rootGraph.clear()")
    sides = editor.evaluate(
        """() => {
            const node = LiteGraph.createNode('OvisImageEmptyLatent')
            app.graph.add(node)
            const [ratio, ...sides] = node.widgets
            const disabled = () => sides.slice(0, 2).map(side => !!side.disabled)
            const ruled = disabled()
            ratio.value = 'custom'
            ratio.callback('custom')
            return [ruled, disabled()]
        }"""
    )
    assert sides == [[True, True], [False, False]]

    editor.evaluate(
        """() => {
            app.graph.clear()
            const node = LiteGraph.createNode('OvisCopy')
            app.graph.add(node)
            node.pos = [400, 100]
        }"""
    )
    headline = "headline" if editor.vue else "textarea[placeholder='headline']"
    field = page.get_by_label(headline, exact=True) if editor.vue else page.locator(headline)
    field.press_sequentially("50% OFF")
    wanted = 'tokens:\nText from top to bottom: the large headline "50% OFF".'
    page.wait_for_function(
        "wanted => app.graph.nodes[0].widgets.some(widget => String(widget.value).endsWith(wanted))",
        arg=wanted,
    )


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


def test_a_chinese_word_finds_the_text_nodes_in_an_english_editor(shared_editor):
    editor, page = shared_editor, shared_editor.page
    editor.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    search = page.get_by_role("combobox", name="Add a node...")
    search.fill("文字")
    for name in ("Ovis Copy", "Ovis Text Verify", "Ovis-Image Text Encode"):
        first_line = re.compile(f"^{name}")
        expect(page.get_by_role("option").filter(has_text=first_line)).to_have_count(1)
    search.press("Escape")
    expect(search).to_be_hidden()


def test_list_values_are_in_the_language_of_the_editor(server, open_editor_in):
    with open_editor_in("zh") as editor:
        editor.render_with("Nodes 2.0")
        editor.evaluate("app.graph.clear(), app.graph.add(LiteGraph.createNode('OvisStyle'))")
        expect(editor.page.get_by_role("combobox").filter(has_text="霓虹灯")).to_be_visible()
        style = editor.evaluate(
            """() => {
                const [widget] = app.graph.nodes[0].widgets
                return [widget.value, widget.options.getOptionLabel(widget.value)]
            }"""
        )
        assert style == ["neon", "霓虹灯"]


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
