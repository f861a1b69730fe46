"""Typesetting with ComfyUI's images, boxes and fonts."""

import importlib.util
import json

import example_workflows as examples
import pytest
import torch

HOW = {
    "font": "bold",
    "size": 0,
    "align": "centre",
    "vertical_align": "middle",
    "ink": "chosen colour",
    "colour": "#FFFFFF",
    "line_spacing": 1.2,
    "tracking": 0,
    "direction": "automatic",
    "outline": 0.0,
    "outline_colour": "#000000",
    "shadow": 0.0,
    "shadow_blur": 0.0,
    "shadow_colour": "#000000",
    "rotation": 0.0,
    "corners": "",
    "margin": 8.0,
    "behind": "automatic",
}


@pytest.fixture(scope="module")
def set_type(pack):
    return lambda image, texts, **how: pack("nodes.adapters.words.typeset").set_type(
        image, texts, **HOW | how
    )


def verdict(expected: str, read: str) -> dict:
    wrong = sum(a != b for a, b in zip(expected, read, strict=True)) / len(expected)
    box = [[20, 20], [100, 20], [100, 40], [20, 40]]
    text = {"expected": expected, "read": read, "exact": not wrong, "character_error_rate": wrong}
    return {
        "passed": not wrong,
        "character_error_rate": wrong,
        "texts": [text | {"regions": [1]}],
        "extra": [],
        "regions": [{"text": read, "box": box, "confidence": 0.9}],
    }


def test_only_the_wrong_picture_of_a_batch_is_touched(set_type):
    images = torch.rand(2, 64, 128, 3, generator=torch.manual_seed(0))
    verified = json.dumps([verdict("OPEN", "OPEN"), verdict("OPEN", "OPFN")])
    image, mask = set_type(images, "", verified=verified)
    assert torch.equal(image[0], images[0])
    assert mask[0].count_nonzero() == 0
    assert mask.shape == (2, 64, 128)
    assert mask[1, 20:40, 20:100].min() == 1, "the wrong lettering is covered"
    assert mask[1, :10].count_nonzero() == 0
    untouched = mask == 0
    assert torch.equal(image[untouched], images[untouched])
    assert not torch.equal(image[1], images[1])
    with pytest.raises(ValueError, match="2 pictures were verified and 1 are to be typeset"):
        set_type(images[:1], "", verified=verified)


@pytest.mark.parametrize(
    ("dtype", "channels"), [(torch.float16, 3), (torch.bfloat16, 4), (torch.float64, 1), (torch.float32, 4)]
)
def test_dtype_and_channels_stay(set_type, dtype, channels):
    images = torch.rand(1, 64, 128, channels, generator=torch.manual_seed(0)).to(dtype)
    image, mask = set_type(images, "SALE", outline=5.0, shadow=5.0, shadow_blur=2.0)
    assert (image.dtype, image.shape, mask.dtype) == (dtype, images.shape, dtype)
    assert torch.equal(image[mask == 0], images[mask == 0])
    assert 0 < mask.float().mean() < 1
    assert mask.max() == 1
    assert image[mask == 1].float().amax() == 1, "the letters are white and opaque"
    assert image.float().amin() >= 0


def test_every_picture_has_its_boxes(set_type):
    images = torch.zeros(2, 64, 128, 3)
    boxes = [[{"x": 0, "y": 0, "width": 60, "height": 64}], [{"x": 68, "y": 0, "width": 60, "height": 64}]]
    _, mask = set_type(images, "A", boxes=boxes)
    assert mask[0, :, :64].max() == mask[1, :, 64:].max() == 1
    assert mask[0, :, 64:].max() == mask[1, :, :64].max() == 0
    _, mask = set_type(images, "A", boxes=boxes, behind="cover")
    assert mask[0, :, :58].min() == 1


def test_a_colour_and_a_font_that_are_none_are_named(set_type, pack):
    image = torch.zeros(1, 64, 64, 3)
    with pytest.raises(ValueError, match="the colour is 'red'; expected one like #FF8800"):
        set_type(image, "A", colour="red")
    with pytest.raises(ValueError, match="there is no font '../x.ttf'"):
        set_type(image, "A", font="../x.ttf")
    with pytest.raises(ValueError, match="there is no text to set|0 texts for 1 boxes"):
        set_type(image, "")
    assert pack("nodes.adapters.words.typeset").font_choices()[:4] == ["sans", "bold", "serif", "mono"]


@pytest.mark.parametrize("text", ["SUMMER BEATS", "$9.99"])
def test_what_the_small_model_cannot_write_ends_exact(server, text):
    """Draw, verify, typeset what is wrong, seat it, verify again: the shipped graph in few steps."""
    if not all(importlib.util.find_spec(name) for name in ("rapidocr", "onnxruntime")):
        pytest.skip("not tested, reading pictures needs: pip install rapidocr onnxruntime")
    graph = examples.api_graph("typeset_what_is_wrong")
    (typed,) = (node for node in graph.values() if node["class_type"] == "PrimitiveString")
    typed["inputs"]["value"] = text
    for node in graph.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 4 if node["inputs"]["denoise"] == 1 else 1
    verified = [number for number, node in graph.items() if node["class_type"] == "OvisTextVerify"]
    graph |= {
        f"json {i}": {"class_type": "PreviewAny", "inputs": {"source": [number, 4]}}
        for i, number in enumerate(verified)
    }
    outputs = server.run(graph)
    drawn, *_, final = (json.loads(outputs[f"json {i}"]["text"][0])[0] for i in range(len(verified)))
    assert not drawn["passed"]
    assert final["passed"], final
    assert [found["read"].replace(" ", "") for found in final["texts"]] == [text.replace(" ", "")]
    assert not final["extra"]


def test_a_picture_that_is_right_comes_out_as_it_was_drawn(server):
    """What is typeset is nothing then, and the mask is empty."""
    graph = examples.api_graph("typeset_what_is_wrong")
    (typed,) = (node for node in graph.values() if node["class_type"] == "PrimitiveString")
    typed["inputs"]["value"] = "OPEN"
    (enlarged,) = (number for number, node in graph.items() if node["class_type"] == "ImageScaleBy")
    graph["drawn"] = {
        "class_type": "SaveImage",
        "inputs": {"images": [enlarged, 0], "filename_prefix": "drawn"},
    }
    outputs = server.run(graph)
    (final,) = (
        number
        for number, node in graph.items()
        if node["inputs"].get("filename_prefix") == "ovis_image/typeset"
    )
    assert server.image(outputs, final).tobytes() == server.image(outputs, "drawn").tobytes()
