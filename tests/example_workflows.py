"""The example workflows, what the small model makes of them, and the values that make that quick."""

import json
import re

import tiny_lora
import tiny_model
from safetensors.torch import save_file

FOLDER = tiny_model.ROOT / "workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
APPS = [name for name in NAMES if name.endswith(".app")]
LORA = "ovis_image_lora.safetensors"
API_ONLY = ("typeset_what_is_wrong", "rewrite_prompt")  # without a file for the editor
NANO = "nano_text_to_image"  # runs with the model that comes with the pack
SHRINK = 8
SIDES = {  # widgets that are pixels
    "SolidMask": ("width", "height"),
    "FeatherMask": ("left", "top", "right", "bottom"),
    "MaskComposite": ("x", "y"),
    "GrowMask": ("expand",),
    "ResizeAndPadImage": ("target_width", "target_height"),
    "ImageGrid": ("cell_width", "cell_height", "padding"),
    "OvisLabelledGrid": ("cell_size",),
}
# The sizes of the pictures that each saves, with `quick_values`: node by node, in the order of their ids. A
# sheet with labels is as large as its letters are: None.
PICTURES = {
    "nano_text_to_image": [(128, 128)],
    "text_to_image": [(128, 128)],
    "text_to_image_primitives": [(128, 128)],
    "image_to_image": [(144, 144)],
    "inpainting": [(144, 144)],
    "lora": [(128, 128)],
    "batch_of_seeds": [(128, 128)] * 4,
    "aspect_ratio_sheet": [
        *[(96, 160), (112, 128), (128, 128), (144, 96), (160, 96), (256, 64)],
        (3 * 64 + 2, 2 * 72 + 1),
    ],
    "poster_from_copy": [(96, 144)],
    "verified_poster": [(96, 144)] * 2,
    "best_of_seeds": [(144, 96), None],
    "campaign": [(128, 128)] * 4 + [None],
    **dict.fromkeys(APPS, [(96, 144)]),
}


def editor_graph(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def api_graph(name: str) -> dict:
    return json.loads((FOLDER / "api" / f"{name}.json").read_text("utf-8"))


def quick_values(api: dict) -> dict[str, dict]:
    """{node id: {widget: value}} for 2 steps and pictures an eighth as wide."""
    values = {}
    for number, node in api.items():
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "OvisImageEmptyLatent" and inputs["aspect_ratio"] != "custom":
            width, height = map(int, re.search(r"(\d+)x(\d+)", inputs["aspect_ratio"]).groups())
            size = {"width": width // SHRINK // 16 * 16, "height": height // SHRINK // 16 * 16}
            values[number] = {"aspect_ratio": "custom", **size}
        elif kind == "ImageScaleToTotalPixels":
            values[number] = {"megapixels": round(inputs["megapixels"] / SHRINK**2, 2)}  # as the editor does
        elif kind in SIDES:
            sides = {side: inputs[side] for side in SIDES[kind] if not isinstance(inputs[side], list)}
            values[number] = {side: value // SHRINK for side, value in sides.items()}
        elif kind == "OvisCampaignRows":
            values[number] = {"size": "128x128"}
        elif kind == "JsonExtractString":  # the steps of each quality
            values[number] = {"json_string": json.dumps(dict.fromkeys(json.loads(inputs["json_string"]), 2))}
        elif isinstance(inputs.get("steps"), int):
            values[number] = {"steps": 2}
        if "max_tries" in inputs:
            values[number] = {**values.get(number, {}), "max_tries": 2}
    return values


def write_lora(models) -> int:
    """Writes the LoRA that the workflow names below a ComfyUI `models` folder -> how many layers it has."""
    (models / "loras").mkdir(exist_ok=True)
    pairs = tiny_lora.random_pairs(tiny_model.tiny_parts()[0])
    tensors, _ = tiny_lora.lora_file(pairs, "diffusion_model.")
    save_file(tensors, models / "loras" / LORA)
    return len(pairs)


def write_model(models) -> None:
    """Writes the small model below a ComfyUI `models` folder, under the names that the workflows ask for."""
    written = tiny_model.write("comfyui", models)
    wanted = api_graph("text_to_image")["1"]["inputs"]
    folders = {"model_name": "diffusion_models", "text_encoder_name": "text_encoders", "vae_name": "vae"}
    for field, folder in folders.items():
        (models / folder / written[field]).rename(models / folder / wanted[field])
