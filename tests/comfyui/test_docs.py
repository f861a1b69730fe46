"""Help pages, translations and the example graph beside the schemas that the server gives.

After a wanted change of a text in a schema, `UPDATE_GOLDEN=1 python3 dev.py test tests/comfyui/test_docs.py`
writes it into the English locale; the Chinese locale and the help pages are written by hand.
"""

import io
import itertools
import json
import os
import re

import pytest
import tiny_model
from PIL import Image

DOCS = tiny_model.ROOT / "web" / "docs"
LOCALES = tiny_model.ROOT / "locales"
WORKFLOWS = tiny_model.ROOT / "workflows"
LANGUAGES = ("en", "zh")
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NODES = sorted(folder.name for folder in DOCS.iterdir())
TITLE_HEIGHT = 30  # of a node in the editor, above its position
HAN = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def schemas(server) -> dict:
    return server.get("/object_info")


@pytest.fixture(scope="module")
def graph() -> dict:
    return read_json(WORKFLOWS / "text_to_image.json")


@pytest.fixture(scope="module")
def api_graph() -> dict:
    return read_json(WORKFLOWS / "api" / "text_to_image.json")


def read_json(path) -> dict:
    return json.loads(path.read_text("utf-8"))


def fields(schema: dict) -> dict[str, tuple[str, dict]]:
    """Inputs in the editor's order: required before optional."""
    inputs = schema["input"].get("required", {}) | schema["input"].get("optional", {})
    return {name: (field[0], field[1] if len(field) > 1 else {}) for name, field in inputs.items()}


def texts(schema: dict) -> dict:
    """A schema's texts in the form of a locale's nodeDefs.json."""
    return {
        "display_name": schema["display_name"],
        "description": schema["description"],
        "inputs": {
            name: {"name": name, "tooltip": options["tooltip"]}
            for name, (_, options) in fields(schema).items()
        },
        "outputs": {
            str(i): {"name": name, "tooltip": tooltip}
            for i, (name, tooltip) in enumerate(
                zip(schema["output_name"], schema["output_tooltips"], strict=True)
            )
        },
    }


def table_row(page: str, name: str) -> str:
    rows = [line for line in page.splitlines() if line.startswith("|") and f"`{name}` |" in line]
    assert rows, f"no table row for {name}"
    return rows[0]


def test_every_node_has_its_help(schemas):
    ours = [name for name, schema in schemas.items() if schema["python_module"] == "custom_nodes.ovis-image"]
    assert sorted(ours) == NODES


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_help_page_names_all_that_the_node_has(schemas, language, node):
    page = (DOCS / node / f"{language}.md").read_text("utf-8")
    names = read_json(LOCALES / language / "nodeDefs.json")[node]
    assert page.startswith(f"# {names['display_name']}\n")
    inputs, outputs = re.split(r"^## (?:Outputs|输出)$", page, flags=re.MULTILINE)
    for name, (kind, options) in fields(schemas[node]).items():
        row = table_row(inputs, name)
        assert f"| {kind} |" in row
        assert names["inputs"][name]["name"] in row
        if options.get("default") not in (None, ""):
            assert str(options["default"]).split(" ")[0] in row
        if "min" in options:
            assert f"{options['min']}-{options['max']}" in row
    for i, (name, kind) in enumerate(zip(schemas[node]["output_name"], schemas[node]["output"], strict=True)):
        row = table_row(outputs, name)
        assert row.endswith(f"| {kind} |")
        assert names["outputs"][str(i)]["name"] in row


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_page_lists_the_sizes(schemas, language):
    page = (DOCS / "OvisImageEmptyLatent" / f"{language}.md").read_text("utf-8")
    presets = fields(schemas["OvisImageEmptyLatent"])["aspect_ratio"][1]["options"][:-1]
    written = re.findall(r"\| (\d+:\d+) \| (\d+x\d+) ", page)
    assert sorted(f"{ratio} ({size})" for ratio, size in written) == sorted(presets)


def test_english_locale_is_the_schemas(schemas):
    path = LOCALES / "en" / "nodeDefs.json"
    wanted = {node: texts(schemas[node]) for node in NODES}
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(json.dumps(wanted, indent=2, ensure_ascii=False) + "\n", "utf-8")
    assert read_json(path) == wanted


@pytest.mark.parametrize("node", NODES)
def test_chinese_locale_has_every_text(schemas, node):
    translated, english = read_json(LOCALES / "zh" / "nodeDefs.json")[node], texts(schemas[node])
    options = {name: spec.get("options", []) for name, (_, spec) in fields(schemas[node]).items()}
    assert HAN.search(translated["display_name"])
    assert HAN.search(translated["description"])
    for part in ("inputs", "outputs"):
        assert translated[part].keys() == english[part].keys()
        for name, entry in translated[part].items():
            assert entry["name"]
            assert HAN.search(entry["tooltip"]), name
            assert set(entry.get("options", {})) <= set(options.get(name, [])), name


def test_server_serves_help_and_translations(server):
    for node, language in itertools.product(NODES, LANGUAGES):
        status, page = server.process.request(f"/extensions/ovis-image/docs/{node}/{language}.md")
        assert (status, page) == (200, (DOCS / node / f"{language}.md").read_bytes())
    translations = server.get("/i18n")
    for language in LANGUAGES:
        served = translations[language]["nodeDefs"]
        for node, wanted in read_json(LOCALES / language / "nodeDefs.json").items():
            assert served[node] == wanted
        assert translations[language]["nodeCategories"]["Ovis-Image"]


def test_server_lists_the_graph_with_its_thumbnail(server):
    assert "text_to_image" in server.get("/workflow_templates")["ovis-image"]
    assert server.get("/api/workflow_templates/ovis-image/text_to_image.json")["nodes"]
    status, thumbnail = server.process.request("/api/workflow_templates/ovis-image/text_to_image.jpg")
    assert status == 200
    assert len(thumbnail) <= 100 * 1024
    assert Image.open(io.BytesIO(thumbnail)).format == "JPEG"


def test_graph_fits_the_schemas(schemas, graph):
    for node in graph["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        inputs, schema = fields(schemas[node["type"]]), schemas[node["type"]]
        written = [(slot["name"], slot["type"]) for slot in node["inputs"]]
        assert sorted(written) == sorted((name, kind) for name, (kind, _) in inputs.items())
        assert [slot["name"] for slot in node["outputs"]] == schema["output_name"]
        for name, value in widget_values(node, schema).items():
            kind, options = inputs[name]
            if kind == "COMBO" and node["type"] != "OvisImageLoader":
                assert value in options["options"]
            elif "min" in options:
                assert options["min"] <= value <= options["max"]


def widget_values(node: dict, schema: dict) -> dict:
    """The editor's positional values by name; a seed is followed by what becomes of it after a run."""
    values, named = iter(node["widgets_values"]), {}
    for name, (kind, options) in fields(schema).items():
        if kind in WIDGET_TYPES:
            named[name] = next(values)
            if options.get("control_after_generate"):
                assert next(values) == "fixed"
    assert next(values, None) is None, f"{node['type']} has too many widget values"
    return named


def test_links_of_the_graph_are_whole(graph):
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert graph["last_node_id"] == max(nodes)
    assert graph["last_link_id"] == max(link[0] for link in graph["links"])
    for number, source, output, target, slot, kind in graph["links"]:
        assert number in nodes[source]["outputs"][output]["links"]
        assert nodes[source]["outputs"][output]["type"] == kind
        assert nodes[target]["inputs"][slot]["link"] == number
        assert nodes[target]["inputs"][slot]["type"] == kind
    ends = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    starts = [n for node in nodes.values() for slot in node["outputs"] for n in slot["links"] or ()]
    assert sorted(ends) == sorted(starts) == sorted(link[0] for link in graph["links"])


def test_graph_is_its_api_twin(schemas, graph, api_graph):
    links = {number: [str(source), output] for number, source, output, *_ in graph["links"]}
    converted = {}
    for node in graph["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        schema = schemas[node["type"]]
        linked = {slot["name"]: links[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        converted[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": widget_values(node, schema) | linked,
            "_meta": {"title": node.get("title", schema["display_name"])},
        }
    assert converted == api_graph


def test_graph_offers_the_files_it_needs(graph):
    (loader,) = (node for node in graph["nodes"] if node["type"] == "OvisImageLoader")
    models = loader["properties"]["models"]
    assert [model["name"] for model in models] == loader["widgets_values"][:3]
    assert [model["directory"] for model in models] == ["diffusion_models", "text_encoders", "vae"]
    (note,) = (node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote")
    for model in models:
        # The editor downloads from this host only.
        assert model["url"].startswith("https://huggingface.co/")
        assert model["url"].endswith("/" + model["name"])
        assert model["url"] in note


def test_nodes_of_the_graph_do_not_overlap(graph):
    boxes = {node["id"]: (*node["pos"], *node["size"]) for node in graph["nodes"]}
    for (a, (ax, ay, aw, ah)), (b, (bx, by, bw, bh)) in itertools.combinations(boxes.items(), 2):
        apart = ax + aw <= bx or bx + bw <= ax or ay + ah <= by - TITLE_HEIGHT or by + bh <= ay - TITLE_HEIGHT
        assert apart, f"nodes {a} and {b} overlap"
