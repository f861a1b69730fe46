"""The example workflows: each in the editor's format and the API's, of one graph, whole, and run."""

import functools
import io
import itertools

import example_workflows as examples
import numpy as np
import pytest
from PIL import Image

# What is a widget in the editor; the other inputs are sockets only.
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR")
UPLOAD = "IMAGEUPLOAD"  # the button that the editor puts below the name of a picture
LATER = {"min_legibility"}  # inputs that are younger than some workflows
COMBO = "CustomCombo"  # whose options are widgets that the editor makes
TITLE_HEIGHT = 30  # of a node in the editor, above its position
MODEL_FOLDERS = ("diffusion_models", "text_encoders", "vae")

each_workflow = pytest.mark.parametrize("name", examples.NAMES)


@pytest.fixture(scope="module")
def schemas(server) -> dict:
    return server.get("/object_info")


@pytest.fixture(scope="module")
def num_lora_layers(server) -> int:
    return examples.write_lora(server.base / "models")


@pytest.fixture(scope="module")
def saved(server, num_lora_layers):
    """`saved(name)`: what a workflow saves; each is run once."""
    return functools.cache(lambda name: pictures(server, quick(server, name)))


def fields(schema: dict) -> dict[str, tuple[str, dict]]:
    """Inputs in the editor's order: required before optional."""
    inputs = schema["input"].get("required", {}) | schema["input"].get("optional", {})
    named = {name: (field[0], field[1] if len(field) > 1 else {}) for name, field in inputs.items()}
    old = {name: ("COMBO", {**o, "options": kind}) for name, (kind, o) in named.items() if type(kind) is list}
    return named | old


def nodes_of(graph: dict) -> list[dict]:
    """The nodes that are more than a note."""
    return [node for node in graph["nodes"] if node["type"] != "MarkdownNote"]


def widget_values(node: dict, schema: dict) -> dict:
    """The editor's positional values by name; a seed is followed by what becomes of it after a run."""
    if node["type"] == COMBO:
        choice, index, *options = node["widgets_values"]
        assert options[index] == choice
        return {"choice": choice, "index": index} | {f"option{n}": o for n, o in enumerate(options, 1)}
    values, named = iter(node["widgets_values"]), {}
    for name, (kind, options) in fields(schema).items():
        if kind in WIDGET_TYPES:
            if name in LATER and (value := next(values, None)) is None:
                continue  # saved before there was such an input: the editor takes the default
            named[name] = value if name in LATER else next(values)
            if options.get("control_after_generate"):
                assert next(values) in ("fixed", "randomize")
            if options.get("image_upload"):
                assert next(values) == "image"  # of the upload button
    assert next(values, None) is None, f"{node['type']} has too many widget values"
    return named


def quick(server, name: str) -> dict:
    graph = examples.api_graph(name)
    for number, values in examples.quick_values(graph).items():
        graph[number]["inputs"].update(values)
    if name != examples.NANO:
        only(graph, "OvisImageLoader")["inputs"].update(server.names["comfyui"])
    return graph


def only(graph: dict, class_type: str) -> dict:
    (node,) = (node for node in graph.values() if node["class_type"] == class_type)
    return node


def pictures(server, graph: dict) -> dict[str, Image.Image]:
    """Runs a graph -> what it saves, by file name, node by node in the order of their ids."""
    outputs = server.run(graph)
    saves = [number for number, node in graph.items() if node["class_type"] == "SaveImage"]
    files = [image for number in sorted(saves, key=int) for image in outputs[number]["images"]]
    return {file["filename"]: Image.open(io.BytesIO(server.process.view(file))) for file in files}


def picture(server, graph: dict) -> np.ndarray:
    (image,) = pictures(server, graph).values()
    return np.asarray(image)


def test_nothing_is_forgotten():
    twins, thumbnails = (
        sorted(path.stem for path in examples.FOLDER.glob(pattern)) for pattern in ("api/*.json", "*.jpg")
    )
    assert examples.NAMES == [name for name in twins if name not in examples.API_ONLY] == thumbnails
    assert sorted(examples.PICTURES) == examples.NAMES


@each_workflow
def test_the_file_is_whole(server, schemas, name):
    """Listed with a thumbnail; nodes, links, files and places as they must be; the same graph as its twin."""
    check_listing_and_thumbnail(server, name)
    check_schemas(schemas, name)
    check_links(name)
    check_connections(schemas, name)
    check_twin(schemas, name)
    check_files(name)
    check_places(name)


def check_listing_and_thumbnail(server, name):
    assert name in server.get("/workflow_templates")["ovis-image"]
    assert server.get(f"/api/workflow_templates/ovis-image/{name}.json") == examples.editor_graph(name)
    status, thumbnail = server.process.request(f"/api/workflow_templates/ovis-image/{name}.jpg")
    assert status == 200
    assert len(thumbnail) <= 100 * 1024
    image = Image.open(io.BytesIO(thumbnail))
    assert image.format == "JPEG"
    assert image.width == image.height, "the template browser's cards are square"


def check_schemas(schemas, name):
    for node in nodes_of(examples.editor_graph(name)):
        inputs, schema = fields(schemas[node["type"]]), schemas[node["type"]]
        grown = {field for field, (kind, _) in inputs.items() if kind == "COMFY_AUTOGROW_V3"}
        written = {slot["name"]: slot["type"] for slot in node["inputs"] if slot["type"] != UPLOAD}
        inputs = {field: kind for field, kind in inputs.items() if field in written or field not in LATER}
        assert {slot.split(".")[0] for slot in written} == inputs.keys()
        plain = {field: kind for field, (kind, _) in inputs.items() if field not in grown}
        assert {slot: kind for slot, kind in written.items() if slot.split(".")[0] not in grown} == plain
        assert [slot["name"] for slot in node["outputs"]] == schema["output_name"]
        for field, value in widget_values(node, schema).items() if node["type"] != COMBO else ():
            kind, options = inputs[field]
            if kind == "COMBO" and not node["type"].endswith("Loader"):
                assert value in options["options"]
            elif "min" in options:
                assert options["min"] <= value <= options["max"]


def check_links(name):
    graph = examples.editor_graph(name)
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert graph["last_node_id"] == max(nodes)
    assert graph["last_link_id"] == max(link[0] for link in graph["links"])
    for number, source, output, target, slot, kind in graph["links"]:
        assert number in nodes[source]["outputs"][output]["links"]
        assert nodes[source]["outputs"][output]["type"] == kind
        assert nodes[target]["inputs"][slot]["link"] == number
        assert {kind, "*"} & set(nodes[target]["inputs"][slot]["type"].split(","))
    ends = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    starts = [n for node in nodes.values() for slot in node["outputs"] for n in slot["links"] or ()]
    assert sorted(ends) == sorted(starts) == sorted(link[0] for link in graph["links"])


def check_connections(schemas, name):
    graph = examples.editor_graph(name)
    for node in nodes_of(graph):
        for slot in node["inputs"]:
            needed = "widget" not in slot and slot.get("shape") != 7  # 7 is drawn for what is optional
            assert slot["link"] is not None or not needed, f"{node['type']}.{slot['name']} has no link"
    used = {node["id"] for node in nodes_of(graph) if schemas[node["type"]]["output_node"]}
    for _ in graph["nodes"]:
        used |= {source for _, source, _, target, *_ in graph["links"] if target in used}
    assert used == {node["id"] for node in nodes_of(graph)}


def check_twin(schemas, name):
    graph = examples.editor_graph(name)
    links = {number: [str(source), output] for number, source, output, *_ in graph["links"]}
    converted = {}
    for node in nodes_of(graph):
        schema = schemas[node["type"]]
        linked = {slot["name"]: links[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        converted[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": widget_values(node, schema) | linked,
            "_meta": {"title": node.get("title", schema["display_name"])},
        }
    assert converted == examples.api_graph(name)


def check_files(name):
    graph = examples.editor_graph(name)
    (loader,) = (node for node in graph["nodes"] if node["type"] == "OvisImageLoader")
    if name == examples.NANO:
        assert "models" not in loader["properties"]
        return
    models = loader["properties"]["models"]
    assert [model["name"] for model in models] == loader["widgets_values"][:3]
    assert [model["directory"] for model in models] == [*MODEL_FOLDERS]
    (note,) = (node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote")
    for model in models:
        # The editor downloads from this host only.
        assert model["url"].startswith("https://huggingface.co/")
        assert model["url"].endswith("/" + model["name"])
        assert model["url"] in note
        assert f"{model['directory']}/" in note
    for node in graph["nodes"]:
        if node["type"] == "OvisImageLoraLoader":
            assert node["widgets_values"][0] == examples.LORA
            assert f"loras/\n    │   └── {examples.LORA}" in note
        if node["type"] == "LoadImage":
            assert node["widgets_values"][0] == "example.png", "the only picture on a fresh ComfyUI"
            assert "`example.png`" in note


def check_places(name):
    graph = examples.editor_graph(name)
    boxes = {}
    for node in graph["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        boxes[f"{node['type']} {node['id']}"] = x, y - TITLE_HEIGHT, x + width, y + height
    groups = [(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in graph["groups"])]
    for (a, first), (b, second) in itertools.combinations(boxes.items(), 2):
        assert apart(first, second), f"{a} and {b} overlap"
    for (node, box), group in itertools.product(boxes.items(), groups):
        left, top, right, bottom = group
        inside = left <= box[0] and top <= box[1] and box[2] <= right and box[3] <= bottom
        assert inside or apart(box, group), f"{node} stands on a group's edge"


def apart(a: tuple, b: tuple) -> bool:
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@each_workflow
def test_it_runs_and_saves_its_pictures(saved, name):
    images = saved(name).values()
    sizes = examples.PICTURES[name]
    assert len(images) == len(sizes)
    assert all(size in (None, image.size) for image, size in zip(images, sizes, strict=True))
    for image in images:
        assert all(low < high for low, high in image.getextrema()), "one flat colour"


def test_the_sampler_in_parts_makes_the_same_picture(saved):
    (whole,), (parts,) = (saved(f"text_to_image{end}").values() for end in ("", "_primitives"))
    assert np.array_equal(whole, parts)


def test_image_to_image_starts_from_the_picture(server):
    changes = {}
    for denoise in (0.0, 0.1, 1.0):
        graph = quick(server, "image_to_image")
        only(graph, "OvisImageSampler")["inputs"]["denoise"] = denoise
        changes[denoise] = picture(server, graph).astype(float)
    near, far = (np.abs(changes[denoise] - changes[0.0]).mean() for denoise in (0.1, 1.0))
    assert 0 < near < far


def test_inpainting_changes_what_is_masked_only(server, saved):
    (first,) = saved("inpainting").values()
    graph = quick(server, "inpainting")
    only(graph, "OvisImageSampler")["inputs"]["seed"] += 1
    changed = (picture(server, graph) != first).any(axis=-1)

    place, grow = only(graph, "MaskComposite")["inputs"], only(graph, "GrowMask")["inputs"]["expand"]
    (size,) = (
        node["inputs"]
        for node in graph.values()
        if node["class_type"] == "SolidMask" and node["inputs"]["value"] == 1.0
    )
    masked = np.zeros_like(changed)
    top, left = place["y"], place["x"]
    masked[top - grow : top + size["height"] + grow, left - grow : left + size["width"] + grow] = True
    assert not changed[~masked].any()
    assert changed[masked].mean() > 0.5


def test_a_painted_mask_takes_the_rectangles_place(server):
    """As the note says: Load Image's MASK on Grow Mask. The mask editor writes the mask as transparency."""
    painted = Image.new("RGBA", (768, 768), (90, 160, 60, 255))
    painted.paste((0, 0, 0, 0), (0, 0, 384, 768))
    painted.save(server.base / "input" / "painted.png")
    graph = quick(server, "inpainting")
    only(graph, "LoadImage")["inputs"]["image"] = "painted.png"
    (load,) = (number for number, node in graph.items() if node["class_type"] == "LoadImage")
    only(graph, "GrowMask")["inputs"]["mask"] = [load, 1]
    first = picture(server, graph)
    only(graph, "OvisImageSampler")["inputs"]["seed"] += 1
    changed = (picture(server, graph) != first).any(axis=-1)
    middle = changed.shape[1] // 2
    assert changed[:, : middle - 8].mean() > 0.9
    assert not changed[:, middle + 8 :].any()


def test_the_lora_is_felt_and_reported(server, saved, num_lora_layers):
    graph = quick(server, "lora")
    (report,) = (number for number, node in graph.items() if node["class_type"] == "PreviewAny")
    told = server.run(graph)[report]["text"]
    assert told == [f"{examples.LORA}: {num_lora_layers} modules matched, all applied"]
    only(graph, "OvisImageLoraLoader")["inputs"]["strength_model"] = 0.0
    (with_lora,) = saved("lora").values()
    assert not np.array_equal(picture(server, graph), with_lora)


def test_each_picture_of_the_batch_is_named_by_the_seed_that_makes_it_alone(server, saved):
    graph = quick(server, "batch_of_seeds")
    seeds = [node["inputs"]["seed"] for node in graph.values() if node["class_type"] == "SeedNode"]
    images = saved("batch_of_seeds")
    assert len({image.tobytes() for image in images.values()}) == len(seeds)
    for seed, name in zip(seeds, images, strict=True):
        assert name.startswith(f"seed_{seed}_")
    alone = quick(server, "text_to_image")
    only(alone, "OvisImageSampler")["inputs"]["seed"] = seeds[-1]  # the first of any batch is as it is alone
    assert np.array_equal(picture(server, alone), np.asarray([*images.values()][-1]))


def test_each_picture_of_the_sheet_is_named_by_its_size(saved):
    *formats, sheet = saved("aspect_ratio_sheet").items()
    for name, image in formats:
        assert name.startswith(f"{image.width}x{image.height}_")
    assert sheet[0].startswith("aspect_ratio_sheet_")


@pytest.mark.parametrize("name", examples.APPS)
def test_an_apps_qualities_are_20_30_and_50_steps(server, name):
    graph = examples.api_graph(name)
    used = {
        key: node
        for key, node in graph.items()
        if node["class_type"] in (COMBO, "JsonExtractString", "ComfyNumberConvert")
    }
    (steps,) = (key for key, node in used.items() if node["class_type"] == "ComfyNumberConvert")
    assert [steps, 1] in [node["inputs"].get("steps") for node in graph.values()]
    used["told"] = {"class_type": "PreviewAny", "inputs": {"source": [steps, 1]}}
    combo = only(graph, COMBO)["inputs"]
    told = []
    for number in (1, 2, 3):
        combo["choice"] = combo[f"option{number}"]
        told += server.run(used)["told"]["text"]
    assert told == ["20", "30", "50"]


@pytest.mark.parametrize("name", examples.APPS)
def test_an_app_shows_fields_and_pictures_of_its_own_graph(name):
    graph = examples.editor_graph(name)
    assert graph["extra"]["linearMode"] is True
    nodes = {node["id"]: node for node in graph["nodes"]}
    shown = graph["extra"]["linearData"]
    for number, field in shown["inputs"]:
        (slot,) = (slot for slot in nodes[number]["inputs"] if slot["name"] == field)
        assert slot["link"] is None, f"{field} is linked: what is typed would be lost"
    assert {nodes[number]["type"] for number in shown["outputs"]} <= {"SaveImage", "PreviewAny"}


def test_the_chinese_apps_are_the_english_ones():
    def shape(name: str) -> dict:
        graph = examples.api_graph(name)
        links = {
            key: {field: value for field, value in node["inputs"].items() if type(value) is list}
            for key, node in graph.items()
        }
        return {key: (node["class_type"], links[key]) for key, node in graph.items()}

    chinese = [name for name in examples.APPS if ".zh." in name]
    assert len(chinese) == len(examples.APPS) / 2
    for name in chinese:
        english = name.replace(".zh.", ".")
        assert shape(name) == shape(english)
        slots = {
            slot["name"]: slot for node in examples.editor_graph(name)["nodes"] for slot in node["inputs"]
        }
        shown = [field for _, field in examples.editor_graph(name)["extra"]["linearData"]["inputs"]]
        assert not [field for field in shown if slots[field]["label"].isascii()]
