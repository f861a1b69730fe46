"""The nodes' public contract, as the editor and API see it, against a golden file.

After a wanted change: `UPDATE_GOLDEN=1 python3 dev.py test tests/comfyui/test_schemas.py`, then read the
difference.
"""

import json
import os
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parents[1] / "data" / "schemas.json"
JUDGING = ("texts", "threshold", "case_sensitive", "width_sensitive", "count_extra")
CONTRACT = {
    "OvisImageLoader": ["model_name", "text_encoder_name", "vae_name", "weight_dtype"],
    "OvisImageLoraLoader": ["model", "lora_name", "strength_model"],
    "OvisImageTextEncode": ["clip", "text"],
    "OvisImageEmptyLatent": ["aspect_ratio", "width", "height", "batch_size"],
    "OvisImageScheduler": ["model", "latent_image", "steps", "denoise"],
    "OvisImageGuider": [
        *("model", "positive", "negative", "cfg", "cfg_start", "cfg_end", "cfg_rescale", "cfg_zero_star"),
        "zero_init_steps",
    ],
    "OvisImageSampler": [
        *(
            "model",
            "positive",
            "negative",
            "latent_image",
            "seed",
            "steps",
            "cfg",
            "sampler_name",
            "denoise",
            "noise",
        )
    ],
    "OvisImageVAEDecode": ["samples", "vae", "tile_size"],
    "OvisImageVAEEncode": ["pixels", "vae", "tile_size"],
    "OvisImageLoraConvert": ["model", "lora_name", "dialect", "filename_prefix"],
    "OvisImageCompile": ["model"],
    "OvisImageAttention": ["model", "kernel"],
    "OvisImageCache": ["model", "threshold", "warmup_steps", "max_skips", "taylor_order"],
    "OvisImageQuantCheck": ["model", "reference", "layers"],
    "OvisCopy": [
        *("headline", "subtitle", "body", "call_to_action", "price", "footer", "scene", "style"),
        "language",
    ],
    "OvisStyle": ["style", "colour", "language"],
    "OvisLayout": ["elements", "scene", "style", "language"],
    "OvisPromptCheck": ["text", "steps", "cfg", "fix", "language", "clip"],
    "OvisCampaignRows": [
        *("file", "rows", "headline", "style", "seed", "size", "file_name", "first_row", "last_row"),
        *("max_rows", "skip_existing"),
    ],
    "OvisLabelledGrid": [
        *("images", "labels", "columns", "cell_size", "font_size", "column_labels", "row_labels"),
    ],
    "OvisTextVerify": ["image", *JUDGING, "min_legibility"],
    "OvisTextBestOf": ["images", *JUDGING, "min_legibility"],
    "OvisQuotesKept": ["original", "rewritten", "otherwise"],
    "OvisTypeset": [
        *("image", "texts", "font", "size", "align", "vertical_align", "ink", "colour", "line_spacing"),
        *("tracking", "direction", "outline", "outline_colour", "shadow", "shadow_blur", "shadow_colour"),
        *("rotation", "corners", "margin", "behind", "boxes", "verified"),
    ],
    "OvisTextRetry": [
        *("model", "positive", "negative", "latent_image", "vae"),
        *JUDGING,
        *("max_tries", "seed", "steps", "cfg", "sampler_name", "denoise", "noise", "min_legibility"),
    ],
}


@pytest.fixture(scope="module")
def schemas(server) -> dict:
    info = server.get("/object_info")
    schemas = {name: info[name] for name in CONTRACT}
    for schema in schemas.values():  # less the test's own files
        for name in ("model_name", "text_encoder_name", "vae_name", "lora_name", "file", "font"):
            schema["input"]["required"].get(name, [None, {}])[1].pop("options", None)
    for schema in schemas.values():
        schema.pop("python_module")
    return schemas


def test_schemas_are_the_golden_ones(schemas):
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(schemas, indent=1, ensure_ascii=False) + "\n", "utf-8")
    assert schemas == json.loads(GOLDEN.read_text("utf-8"))


def test_inputs_stand_in_the_contracts_order(pack):
    schemas = [cls.define_schema() for cls in pack("nodes").NODES]
    assert {schema.node_id: [field.id for field in schema.inputs] for schema in schemas} == CONTRACT


def test_contract_of_the_issue(schemas):
    sampler = schemas["OvisImageSampler"]["input"]
    values = {name: field[1].get("default") for name, field in sampler["required"].items()}
    assert (values["steps"], values["cfg"], values["denoise"]) == (50, 5.0, 1.0)
    assert sampler["required"]["sampler_name"][1]["options"][0] == "euler"
    assert sampler["required"]["noise"][1]["options"] == ["comfyui", "reference"]
    assert list(sampler["optional"]) == ["negative"]
    text = schemas["OvisImageTextEncode"]["input"]["required"]["text"][1]
    assert text["multiline"]
    assert not text.get("dynamicPrompts")
    outputs = {name: schema["output"] for name, schema in schemas.items()}
    assert outputs["OvisImageLoader"] == ["MODEL", "CLIP", "VAE"]
    assert outputs["OvisImageEmptyLatent"] == ["LATENT", "INT", "INT"]


def test_everything_is_explained(schemas):
    for name, schema in schemas.items():
        assert schema["description"], name
        assert schema["search_aliases"], name
        assert all(schema["output_tooltips"]), name
        for fields in (schema["input"].get(kind, {}) for kind in ("required", "optional")):
            for field, (_, options, *_) in ((f, v) for f, v in fields.items() if f != "unique_id"):
                assert options.get("tooltip"), (name, field)


def test_presets_are_a_megapixel_in_multiples_of_16(pack):
    presets = pack("nodes.latents").PRESETS
    assert len(presets) == 17
    assert (presets["1:4 (512x2048)"], presets["4:1 (2048x512)"]) == ((512, 2048), (2048, 512))
    for name, (width, height) in presets.items():
        across, down = (int(n) for n in name.split(" ")[0].split(":"))
        assert width % 16 == height % 16 == 0, name
        assert 0.94 * 2**20 <= width * height <= 1.06 * 2**20, name
        assert abs(width / height / (across / down) - 1) < 0.03, name
        assert f"({width}x{height})" in name
