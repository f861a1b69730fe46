"""Help pages and translations beside the schemas that the server gives.

After a wanted change of a text in a schema, `UPDATE_GOLDEN=1 python3 dev.py test tests/comfyui/test_docs.py`
writes it into the English locale; the Chinese locale and the help pages are written by hand.
"""

import itertools
import json
import os
import re
from collections.abc import Iterator

import pytest
import tiny_model

DOCS = tiny_model.ROOT / "web" / "docs"
LOCALES = tiny_model.ROOT / "locales"
LANGUAGES = ("en", "zh")
NODES = sorted(folder.name for folder in DOCS.iterdir())
HAN = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def schemas(server) -> dict:
    return server.get("/object_info")


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


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_pages_name_all_that_the_nodes_have(schemas, language):
    locale = read_json(LOCALES / language / "nodeDefs.json")
    missing = [
        f"{node}: {what}"
        for node in NODES
        for what in missing_in_page(
            (DOCS / node / f"{language}.md").read_text("utf-8"), schemas[node], locale[node]
        )
    ]
    assert not missing


def missing_in_page(page: str, schema: dict, names: dict) -> Iterator[str]:
    """What a help page says otherwise than the schema and the locale, or not at all."""
    if not page.startswith(f"# {names['display_name']}\n"):
        yield "the title"
    if re.search(r"^\| ?(---\s*\|\s*){3}$", page, flags=re.MULTILINE):
        yield "a table of three columns, too wide for the side panel"
    inputs, outputs = re.split(r"^## (?:Outputs|输出)$", page, flags=re.MULTILINE)
    for name, (kind, options) in fields(schema).items():
        wanted = [f"<br>*{kind}", names["inputs"][name]["name"]]
        if options.get("default") not in (None, ""):
            wanted.append(str(options["default"]).split(" ")[0])
        if "min" in options:
            wanted.append(f"{options['min']}-{options['max']}")
        row = table_row(inputs, name)
        yield from (f"{name}: {text}" for text in wanted if text not in row)
    for i, (name, kind) in enumerate(zip(schema["output_name"], schema["output"], strict=True)):
        row = table_row(outputs, name)
        if not row.endswith(f"<br>*{kind}* |") or names["outputs"][str(i)]["name"] not in row:
            yield f"output {name}"


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


def test_chinese_locale_has_every_text(schemas):
    locale = read_json(LOCALES / "zh" / "nodeDefs.json")
    missing = [f"{node}: {what}" for node in NODES for what in untranslated(locale[node], schemas[node])]
    assert not missing


def untranslated(translated: dict, schema: dict) -> Iterator[str]:
    """The texts of a schema that the Chinese locale lacks, and options that no input has."""
    options = {name: spec.get("options", []) for name, (_, spec) in fields(schema).items()}
    yield from (key for key in ("display_name", "description") if not HAN.search(translated[key]))
    for part in ("inputs", "outputs"):
        yield from translated[part].keys() ^ texts(schema)[part].keys()
        for name, entry in translated[part].items():
            if not entry["name"] or not HAN.search(entry["tooltip"]):
                yield name
            yield from set(entry.get("options", {})) - set(options.get(name, []))


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
