"""The example workflows, what the small model makes of them, and the values that make that quick."""

import json
import re

import tiny_lora
import tiny_model
from safetensors.torch import save_file

FOLDER = tiny_model.ROOT / "workflows"
# What the template browser shows of a template, and searches, is its file's name. {API file: template}
TEMPLATES = {
    "nano_text_to_image": "Ovis-Image 01 Nano 试用 第一张图 first picture",
    "nano_verified_poster": "Ovis-Image 02 Nano 试用 文字校对 verified sign",
    "nano_best_of_seeds": "Ovis-Image 03 Nano 试用 多图选优 best of seeds",
    "nano_campaign": "Ovis-Image 04 Nano 试用 表格批量 campaign from a table",
    "nano_image_to_image": "Ovis-Image 05 Nano 试用 图生图 image to image",
    "nano_inpainting": "Ovis-Image 06 Nano 试用 局部重绘 inpainting one letter",
    "nano_lora": "Ovis-Image 07 Nano 试用 LoRA",
    "nano_sign.app": "Ovis-Image 08 Nano 试用 sign app in English.app",
    "nano_sign.zh.app": "Ovis-Image 09 Nano 试用 招牌应用 sign app in Chinese.app",
    "typeset_what_is_wrong": "Ovis-Image 10 Nano 试用 排字修正 type in what is wrong",
    "text_to_image": "Ovis-Image 21 7B 文生图 text to image (needs 20 GB of files)",
    "image_to_image": "Ovis-Image 22 7B 图生图 image to image (needs 20 GB of files)",
    "inpainting": "Ovis-Image 23 7B 局部重绘 inpainting (needs 20 GB of files)",
    "poster_from_copy": "Ovis-Image 24 7B 文案海报 poster from its texts (needs 20 GB of files)",
    "verified_poster": "Ovis-Image 25 7B 校对海报 verified poster (needs 20 GB of files)",
    "best_of_seeds": "Ovis-Image 26 7B 多图选优 best of seeds (needs 20 GB of files)",
    "campaign": "Ovis-Image 27 7B 表格批量 campaign from a table (needs 20 GB of files)",
    "batch_of_seeds": "Ovis-Image 28 7B 一批种子 batch of seeds (needs 20 GB of files)",
    "aspect_ratio_sheet": "Ovis-Image 29 7B 多种画幅 all formats on a sheet (needs 20 GB of files)",
    "lora": "Ovis-Image 30 7B 自选 LoRA of your own (needs 20 GB of files)",
    "text_to_image_primitives": "Ovis-Image 31 7B 拆开采样 sampler in parts (needs 20 GB of files)",
    "poster.app": "Ovis-Image 32 7B poster app in English (needs 20 GB of files).app",
    "poster.zh.app": "Ovis-Image 33 7B 海报应用 poster app in Chinese (needs 20 GB of files).app",
    "verified_poster.app": "Ovis-Image 34 7B verified poster app in English (needs 20 GB of files).app",
    "verified_poster.zh.app": "Ovis-Image 35 7B 校对海报 verified app in Chinese (needs 20 GB of files).app",
    "rewrite_prompt": "Ovis-Image 36 7B 改写提示词 rewrite a prompt (needs 25 GB of files)",
}
NAMES = [*TEMPLATES]
APPS = [name for name in NAMES if name.endswith(".app")]
NANO = [name for name in NAMES if " Nano " in TEMPLATES[name]]  # with the model that comes with the pack
RUN = [name for name in NAMES if name != "rewrite_prompt"]  # all but one that wants a language model
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
    "typeset_what_is_wrong": [(256, 256)] * 2,
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
