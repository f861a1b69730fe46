"""The example workflows: each in the editor's format and the API's, of one graph, whole, and run."""

import functools
import io
import re
from urllib.parse import quote

import example_workflows as examples
import numpy as np
import pytest
from PIL import Image

MODEL_FOLDERS = ("diffusion_models", "text_encoders", "vae")
# Files of these names can be kept on any system, and asked for by a URL.
SAFE_NAME = re.compile(r"Ovis-Image \d\d [\w (),-]+(\.app)?")

each_workflow = pytest.mark.parametrize("name", examples.NAMES)


@pytest.fixture(scope="module")
def num_lora_layers(server) -> int:
    return examples.write_lora(server.base / "models")


@pytest.fixture(scope="module")
def saved(server, num_lora_layers):
    """`saved(name)`: what a workflow saves; each is run once."""
    return functools.cache(lambda name: pictures(server, quick(server, name)))


def quick(server, name: str) -> dict:
    graph = examples.api_graph(name)
    for number, values in examples.quick_values(name).items():
        graph[number]["inputs"].update(values)
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
    twins, thumbnails = examples.FOLDER.glob("api/*.json"), examples.FOLDER.glob("*.jpg")
    assert sorted(examples.NAMES) == sorted(path.stem for path in twins)
    assert sorted(examples.RUN) == sorted(examples.PICTURES)
    templates = sorted(examples.TEMPLATES.values())
    assert templates == sorted(path.stem for path in examples.FOLDER.glob("*.json"))
    assert templates == sorted(path.stem for path in thumbnails)


def test_names_sort_what_runs_at_once_first_and_suit_every_system():
    assert examples.NAMES[: len(examples.NANO)] == examples.NANO
    assert [*examples.TEMPLATES.values()] == sorted(examples.TEMPLATES.values())
    assert [name for name in examples.TEMPLATES.values() if not SAFE_NAME.fullmatch(name)] == []
    assert [name for name in examples.TEMPLATES.values() if len(name.encode()) > 120] == []


@each_workflow
def test_the_file_is_listed_with_a_thumbnail_and_says_which_files_it_needs(server, name):
    template = examples.TEMPLATES[name]
    assert template in server.get("/workflow_templates")["ovis-image"]
    address = "/api/workflow_templates/ovis-image/" + quote(template)
    assert server.get(f"{address}.json") == examples.editor_graph(name)
    status, thumbnail = server.process.request(f"{address}.jpg")
    assert status == 200
    assert len(thumbnail) <= 40 * 1024
    image = Image.open(io.BytesIO(thumbnail))
    assert image.format == "JPEG"
    assert image.width == image.height, "the template browser's cards are square"
    check_files(name)


def check_files(name):
    graph = examples.editor_graph(name)
    (loader,) = (node for node in graph["nodes"] if node["type"] == "OvisImageLoader")
    (note,) = (node["widgets_values"][0] for node in graph["nodes"] if node["type"] == "MarkdownNote")
    others = [other for other in examples.NAMES if (other in examples.NANO) != (name in examples.NANO)]
    named = [other for other in others if examples.TEMPLATES[other].removesuffix(".app") in note]
    assert len(named) == 1, "a note names the template to open meanwhile, or next"
    if name in examples.NANO:
        assert "models" not in loader["properties"]
        return
    models = loader["properties"]["models"]
    assert [model["name"] for model in models] == loader["widgets_values"][:3]
    assert [model["directory"] for model in models] == [*MODEL_FOLDERS]
    for model in models:
        # The editor downloads from this host only.
        assert model["url"].startswith("https://huggingface.co/")
        assert model["url"].endswith("/" + model["name"])
        assert model["url"] in note
        assert f"`{model['directory']}/`" in note
    for node in graph["nodes"]:
        if node["type"] == "LoadImage":
            assert node["widgets_values"][0] == "example.png", "the only picture on a fresh ComfyUI"
            assert "`example.png`" in note


@pytest.mark.parametrize("name", [name for name in examples.RUN if name not in examples.NANO])
def test_it_runs_and_saves_its_pictures(saved, name):
    """Those of the Nano run in the browser's tests, and as shipped in test_nano."""
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


@pytest.mark.parametrize("name", [name for name in examples.APPS if name not in examples.NANO])
def test_an_apps_qualities_are_20_30_and_50_steps(server, name):
    graph = examples.api_graph(name)
    used = {
        key: node
        for key, node in graph.items()
        if node["class_type"] in ("CustomCombo", "JsonExtractString", "ComfyNumberConvert")
    }
    (steps,) = (key for key, node in used.items() if node["class_type"] == "ComfyNumberConvert")
    assert [steps, 1] in [node["inputs"].get("steps") for node in graph.values()]
    used["told"] = {"class_type": "PreviewAny", "inputs": {"source": [steps, 1]}}
    combo = only(graph, "CustomCombo")["inputs"]
    told = []
    for number in (1, 2, 3):
        combo["choice"] = combo[f"option{number}"]
        told += server.run(used)["told"]["text"]
    assert told == ["20", "30", "50"]


@pytest.mark.parametrize("name", examples.APPS)
def test_an_app_shows_fields_and_pictures_of_its_own_graph(name):
    graph = examples.editor_graph(name)
    values = [value for node in graph["nodes"] for value in node.get("widgets_values") or ()]
    assert "randomize" not in values, "a seed that changes by itself cannot be told"
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
        for app, language in ((english, "English"), (name, "Chinese")):
            written = {node["inputs"].get("language", language) for node in examples.api_graph(app).values()}
            assert written == {language}
            graph = examples.editor_graph(app)
            shown = {(number, field) for number, field in graph["extra"]["linearData"]["inputs"]}
            slots = {(node["id"], slot["name"]): slot for node in graph["nodes"] for slot in node["inputs"]}
            labels = [slots[field]["label"] for field in shown]
            assert {label.isascii() for label in labels} == {app == english}, "in the app's language"
