"""The example workflows, what the small model makes of them, and the values that make that quick."""

import json
import re

import tiny_lora
import tiny_model
from safetensors.torch import save_file

FOLDER = tiny_model.ROOT / "workflows"
# What the template browser shows of a template, and searches, is its file's name. {API file: template}
TEMPLATES = {
    "nano_text_to_image": "Ovis-Image 01 first picture 第一张图 (Nano 试用, runs at once)",
    "nano_verified_poster": "Ovis-Image 02 verified sign 文字校对 (Nano 试用, runs at once)",
    "nano_best_of_seeds": "Ovis-Image 03 best of seeds 多个种子选最好 (Nano 试用, runs at once)",
    "nano_campaign": "Ovis-Image 04 campaign from a table 表格批量出图 (Nano 试用, runs at once)",
    "nano_image_to_image": "Ovis-Image 05 image to image 图生图 (Nano 试用, runs at once)",
    "nano_inpainting": "Ovis-Image 06 inpainting one letter 局部重绘 (Nano 试用, runs at once)",
    "nano_lora": "Ovis-Image 07 LoRA (Nano 试用, runs at once)",
    "nano_sign.app": "Ovis-Image 08 sign app in English (Nano 试用, runs at once).app",
    "nano_sign.zh.app": "Ovis-Image 09 招牌应用 sign app in Chinese (Nano 试用, runs at once).app",
    "text_to_image": "Ovis-Image 21 text to image 文生图 (7B, needs files)",
    "image_to_image": "Ovis-Image 22 image to image 图生图 (7B, needs files)",
    "inpainting": "Ovis-Image 23 inpainting 局部重绘 (7B, needs files)",
    "poster_from_copy": "Ovis-Image 24 poster from its texts 文案海报 (7B, needs files)",
    "verified_poster": "Ovis-Image 25 verified poster 文字校对海报 (7B, needs files)",
    "best_of_seeds": "Ovis-Image 26 best of seeds 多个种子选最好 (7B, needs files)",
    "campaign": "Ovis-Image 27 campaign from a table 表格批量出图 (7B, needs files)",
    "batch_of_seeds": "Ovis-Image 28 batch of seeds 一批种子 (7B, needs files)",
    "aspect_ratio_sheet": "Ovis-Image 29 all formats on a sheet 多种画幅 (7B, needs files)",
    "lora": "Ovis-Image 30 LoRA (7B, needs files)",
    "text_to_image_primitives": "Ovis-Image 31 sampler in parts 拆开的采样器 (7B, needs files)",
    "poster.app": "Ovis-Image 32 poster app in English (7B, needs files).app",
    "poster.zh.app": "Ovis-Image 33 海报应用 poster app in Chinese (7B, needs files).app",
    "verified_poster.app": "Ovis-Image 34 verified poster app in English (7B, needs files).app",
    "verified_poster.zh.app": "Ovis-Image 35 校对海报应用 verified poster in Chinese (7B, needs files).app",
}
NAMES = [*TEMPLATES]
APPS = [name for name in NAMES if name.endswith(".app")]
API_ONLY = ["rewrite_prompt", "typeset_what_is_wrong"]  # without a file for the editor
NANO = [name for name in NAMES if name.startswith("nano_")]  # with the model that comes with the pack
LORA = "ovis_image_tiny_lora.safetensors"  # stands for a user's own
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
    "nano_verified_poster": [(128, 128)] * 2,
    "nano_best_of_seeds": [(128, 128), None],
    "nano_campaign": [(128, 128)] * 4 + [None],
    "nano_image_to_image": [(128, 128)] * 2,
    "nano_inpainting": [(128, 128)] * 2,
    "nano_lora": [(128, 128)],
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
    **dict.fromkeys([name for name in APPS if name in NANO], [(128, 128)]),
    **dict.fromkeys([name for name in APPS if name not in NANO], [(96, 144)]),
}


def editor_graph(name: str) -> dict:
    return json.loads((FOLDER / f"{TEMPLATES[name]}.json").read_text("utf-8"))


def api_graph(name: str) -> dict:
    return json.loads((FOLDER / "api" / f"{name}.json").read_text("utf-8"))


def quick_values(name: str) -> dict[str, dict]:
    """{node id: {widget: value}} for 2 steps, and pictures an eighth as wide where they are not small."""
    values = {}
    for number, node in api_graph(name).items():
        quick = {"steps": 2} if isinstance(node["inputs"].get("steps"), int) else {}
        quick |= {"max_tries": 2} if "max_tries" in node["inputs"] else {}
        quick |= {} if name in NANO else small_values(node["class_type"], node["inputs"])
        if quick:
            values[number] = quick
    return values


def small_values(kind: str, inputs: dict) -> dict:
    if kind == "OvisImageEmptyLatent" and inputs["aspect_ratio"] != "custom":
        width, height = map(int, re.search(r"(\d+)x(\d+)", inputs["aspect_ratio"]).groups())
        size = {"width": width // SHRINK // 16 * 16, "height": height // SHRINK // 16 * 16}
        return {"aspect_ratio": "custom", **size}
    if kind == "ImageScaleToTotalPixels":
        return {"megapixels": round(inputs["megapixels"] / SHRINK**2, 2)}  # as the editor does
    if kind in SIDES:
        sides = {side: inputs[side] for side in SIDES[kind] if not isinstance(inputs[side], list)}
        return {side: value // SHRINK for side, value in sides.items()}
    if kind == "JsonExtractString":  # the steps of each quality
        return {"json_string": json.dumps(dict.fromkeys(json.loads(inputs["json_string"]), 2))}
    others = {"OvisCampaignRows": {"size": "128x128"}, "OvisImageLoraLoader": {"lora_name": LORA}}
    return others.get(kind, {})


def write_lora(models) -> int:
    """Writes a LoRA for the small random model below a ComfyUI `models` folder -> how many layers it has."""
    (models / "loras").mkdir(parents=True, exist_ok=True)
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
