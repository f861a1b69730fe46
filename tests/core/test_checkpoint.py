import json
import math
import shutil
import struct
from pathlib import Path

import pytest
import tiny_model
import torch
from safetensors.torch import load_file, save_file

from ovis_core.autoencoder import AutoencoderConfig
from ovis_core.files import export
from ovis_core.files.checkpoint import open_checkpoint
from ovis_core.files.layouts import looks_like
from ovis_core.files.parts import AUTOENCODER, TEXT_ENCODER, TRANSFORMER, check_fit
from ovis_core.files.storage import model_files, read_headers
from ovis_core.text_encoder import TextEncoderConfig
from ovis_core.transformer import TransformerConfig

DATA = Path(__file__).parents[1] / "data"
PARTS = {"transformer": TRANSFORMER, "text_encoder": TEXT_ENCODER, "vae": AUTOENCODER}
RELEASED = {
    "transformer": TransformerConfig(),
    "text_encoder": TextEncoderConfig(),
    "vae": AutoencoderConfig(),
}
NUM_PARAMETERS = {"transformer": 7_370_449_728, "text_encoder": 1_720_574_976, "vae": 83_819_683}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, parts) -> dict[tuple[str, str], Path]:
    """The small model, each part in each layout."""
    folder = tmp_path_factory.mktemp("saved")
    paths = {}
    for layout in ("authors", "comfyui", "diffusers"):
        paths["transformer", layout] = folder / (
            f"transformer_{layout}" + ".safetensors" * (layout != "diffusers")
        )
        export.save(TRANSFORMER, parts[0], paths["transformer", layout], layout, max_shard_bytes=4 * 10**6)
        paths["text_encoder", layout] = folder / (f"text_{layout}" + ".safetensors" * (layout == "comfyui"))
        export.save(TEXT_ENCODER, parts[1], paths["text_encoder", layout], layout, max_shard_bytes=4 * 10**6)
    for layout in ("flux", "diffusers"):
        paths["vae", layout] = folder / (f"vae_{layout}" + ".safetensors" * (layout == "flux"))
        export.save(AUTOENCODER, parts[2], paths["vae", layout], layout)
    return paths


LAYOUTS = [
    *(
        (part, layout)
        for part in ("transformer", "text_encoder")
        for layout in ("authors", "comfyui", "diffusers")
    ),
    *(("vae", layout) for layout in ("flux", "diffusers")),
]


@pytest.mark.parametrize(("part", "layout"), LAYOUTS)
def test_every_layout_gives_identical_tensors(saved, parts, part, layout):
    module = parts[list(PARTS).index(part)]
    checkpoint = open_checkpoint(saved[part, layout], PARTS[part])
    assert checkpoint.layout.name == layout
    assert checkpoint.config == module.config
    state = checkpoint.read()
    assert state.keys() == module.state_dict().keys()
    for key, tensor in module.state_dict().items():
        assert torch.equal(state[key], tensor), key


def test_layouts_are_what_the_peers_call_them(saved, diffusers_pipeline):
    """The written names are those of diffusers, and of the authors' and ComfyUI's classes (the manifests)."""
    for part, module in (("transformer", diffusers_pipeline.transformer), ("vae", diffusers_pipeline.vae)):
        keys = {key for file in saved[part, "diffusers"].glob("*.safetensors") for key in load_file(file)}
        assert keys == module.state_dict().keys()
    for layout in ("authors", "comfyui"):
        manifest = json.loads((DATA / f"transformer_{layout}.json").read_text())
        manifest = {
            key for key in manifest if not key.startswith(tuple(f"double_blocks.{i}." for i in range(2, 6)))
        }
        manifest = {
            key for key in manifest if not key.startswith(tuple(f"single_blocks.{i}." for i in range(2, 27)))
        }
        assert load_file(saved["transformer", layout]).keys() == manifest


@pytest.mark.parametrize("manifest", sorted(path.stem for path in DATA.glob("*_*.json")))
def test_full_size_files_open_by_their_headers(tmp_path, manifest):
    """A sparse file of the full size: only its header has content, and only that may be read."""
    shapes = json.loads((DATA / f"{manifest}.json").read_text())
    header, position = {}, 0
    for key, shape in shapes.items():
        end = position + 2 * math.prod(shape)
        header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header).encode()
    path = tmp_path / f"{manifest}.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + position)

    part, layout = manifest.rsplit("_", 1)
    checkpoint = open_checkpoint(path, PARTS[part])
    assert checkpoint.layout.name == layout
    assert checkpoint.config == RELEASED[part]
    assert checkpoint.dtype == torch.bfloat16
    module = PARTS[part].module(checkpoint.config, device="meta")
    assert sum(p.numel() for p in module.parameters()) == NUM_PARAMETERS[part]
    if part == "transformer":
        assert position == 14_740_899_456  # bytes of the published bf16 file's weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn])
@pytest.mark.parametrize("layout", ["comfyui", "diffusers"])
def test_storage_dtypes(tmp_path, parts, dtype, layout):
    module = tiny_model.tiny_parts()[0].to(dtype)
    path = tmp_path / ("model" if layout == "diffusers" else "model.safetensors")
    if dtype == torch.float8_e4m3fn and layout == "diffusers":
        path.mkdir()
        fp32 = tmp_path / "fp32"
        export.save(TRANSFORMER, parts[0], fp32, layout)
        state = load_file(fp32 / "diffusion_pytorch_model.safetensors")
        save_file({key: value.to(dtype) for key, value in state.items()}, path / "model.safetensors")
    else:
        export.save(TRANSFORMER, module, path, layout)
    checkpoint = open_checkpoint(path, TRANSFORMER)
    assert checkpoint.dtype == dtype
    state = checkpoint.read()
    for key, tensor in parts[0].state_dict().items():
        assert state[key].dtype == dtype
        assert torch.equal(state[key].float(), tensor.to(dtype).float()), key


@pytest.mark.parametrize("ends", [("scale_weight", "scale_input"), ("weight_scale", "input_scale")])
@pytest.mark.parametrize("layout", ["comfyui", "diffusers"])
def test_scaled_fp8_is_multiplied_out(tmp_path, parts, saved, ends, layout):
    source = saved["transformer", layout]
    files = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
    scaled, expected = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, {}
    for key, tensor in (item for file in files for item in load_file(file).items()):
        if tensor.ndim == 2:
            scale = tensor.abs().max() / 448
            scaled[key] = (tensor / scale).to(torch.float8_e4m3fn)
            scaled[f"{key.removesuffix('.weight')}.{ends[0]}"] = scale
            scaled[f"{key.removesuffix('.weight')}.{ends[1]}"] = torch.ones(())
            expected[key] = (scaled[key].float() * scale).to(torch.bfloat16)
        else:
            scaled[key] = expected[key] = tensor
    save_file(scaled, tmp_path / "scaled.safetensors")
    save_file(expected, tmp_path / "expected.safetensors")
    ours = open_checkpoint(tmp_path / "scaled.safetensors", TRANSFORMER)
    reference = open_checkpoint(tmp_path / "expected.safetensors", TRANSFORMER).read()
    state = ours.read()
    assert state.keys() == reference.keys()
    assert all(torch.equal(state[key].float(), reference[key].float()) for key in state)
    kept = ours.read(keep_quantized=True)
    if layout == "comfyui":
        assert kept["img_in.weight"].dtype == torch.float8_e4m3fn
        assert kept[f"img_in.{ends[0]}"].item() > 0
        assert kept[f"img_in.{ends[1]}"].item() == 1
        assert kept["scaled_fp8"].numel() == 2
    else:  # fused rows have several scales, so nothing can be kept
        assert kept.keys() == state.keys()


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "transformer."])
def test_known_prefixes_are_stripped(tmp_path, parts, saved, prefix):
    state = load_file(saved["transformer", "comfyui"])
    save_file({prefix + key: value for key, value in state.items()}, tmp_path / "p.safetensors")
    read = open_checkpoint(tmp_path / "p.safetensors", TRANSFORMER).read()
    assert all(torch.equal(read[key], value) for key, value in state.items())
    save_file(
        {**state, **{prefix + key: value.clone() for key, value in state.items()}}, tmp_path / "p.safetensors"
    )
    with pytest.raises(ValueError, match="holds the model twice"):
        open_checkpoint(tmp_path / "p.safetensors", TRANSFORMER)


def test_flux_norm_scales_are_read(tmp_path, parts, saved):
    state = load_file(saved["transformer", "comfyui"])
    renamed = {key.replace("_norm.weight", "_norm.scale"): value for key, value in state.items()}
    save_file(renamed, tmp_path / "s.safetensors")
    assert open_checkpoint(tmp_path / "s.safetensors", TRANSFORMER).read().keys() == state.keys()


def broken(saved, tmp_path, change) -> Path:
    state = load_file(saved["transformer", "comfyui"])
    change(state)
    save_file(state, tmp_path / "broken.safetensors")
    return tmp_path / "broken.safetensors"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("single_blocks.1.linear1.weight"),
            "1 tensors are missing, first single_blocks.1.linear1.weight",
        ),
        (lambda s: s.update(extra=torch.ones(1)), "1 tensors are unexpected, first extra"),
        (
            lambda s: s.update({"txt_in.bias": torch.ones(7)}),
            r"has the shape \[7\] where txt_in.bias should have the shape \[256\]",
        ),
        (
            lambda s: [
                s.update({k.replace("_blocks.1.", "_blocks.3."): s.pop(k)})
                for k in list(s)
                if "_blocks.1." in k
            ],
            "tensors are missing, first double_blocks.1.",
        ),
        (
            lambda s: s.update({"img_in.weight": s["img_in.weight"].to(torch.int8)}),
            "stores img_in.weight as I8",
        ),
        (
            lambda s: s["img_in.bias"].__setitem__(3, math.nan),
            "img_in.bias in broken.safetensors holds 1 values",
        ),
        (
            lambda s: s["img_in.bias"].__setitem__(3, math.inf),
            "img_in.bias in broken.safetensors holds 1 values",
        ),
    ],
)
def test_damaged_models_are_refused_by_name(saved, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        open_checkpoint(broken(saved, tmp_path, change), TRANSFORMER).read()


FOREIGN = {
    "FLUX.1": ["double_blocks.0.img_mlp.0.weight", "single_blocks.0.linear1.weight"],
    "Qwen-Image": ["transformer_blocks.0.img_mod.1.weight", "transformer_blocks.0.attn.to_q.weight"],
    "Stable Diffusion 3": ["joint_blocks.0.x_block.attn.qkv.weight"],
    "Stable Diffusion 1, 2 or XL": ["model.diffusion_model.input_blocks.0.0.weight"],
    "Ovis-U1": ["yak.double_blocks.0.img_mlp.0.weight"],
    "Wan": ["blocks.0.cross_attn.q.weight"],
    "a LoRA": ["diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"],
    "a T5 text encoder": ["encoder.block.0.layer.0.SelfAttention.q.weight"],
    "a VAE": ["decoder.conv_in.weight", "decoder.up.0.block.0.conv1.weight"],
    "no model known here": ["something.weight"],
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_models_are_named(tmp_path, kind):
    path = tmp_path / "other.safetensors"
    save_file({key: torch.ones(4, 4) for key in FOREIGN[kind]}, path)
    assert looks_like(FOREIGN[kind]) == kind
    with pytest.raises(ValueError, match=f"looks like {kind}.*double_blocks.0.img_mlp.gate_proj.weight"):
        open_checkpoint(path, TRANSFORMER)


def test_each_part_is_named_in_anothers_place(saved):
    for wanted, given, kind in (
        (TRANSFORMER, ("text_encoder", "comfyui"), "an Ovis2.5 or Qwen3 text encoder"),
        (TEXT_ENCODER, ("transformer", "authors"), "an Ovis-Image diffusion model"),
        (AUTOENCODER, ("transformer", "diffusers"), "an Ovis-Image diffusion model"),
        (TRANSFORMER, ("vae", "flux"), "a VAE"),
    ):
        with pytest.raises(ValueError, match=f"looks like {kind}, not like"):
            open_checkpoint(saved[given], wanted)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="gives 2048 numbers a token, the diffusion model takes 32"):
        check_fit(tiny_model.TRANSFORMER, TextEncoderConfig(), AutoencoderConfig())
    with pytest.raises(ValueError, match="VAE has 4 latent channels, the diffusion model takes 16"):
        check_fit(TransformerConfig(), TextEncoderConfig(), AutoencoderConfig(latent_channels=4))


def test_another_models_vae_scale_is_refused(tmp_path, parts):
    export.save(AUTOENCODER, parts[2], tmp_path / "vae", "diffusers")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config | {"scaling_factor": 1.5305}))
    with pytest.raises(ValueError, match="scaling_factor 1.5305, Ovis-Image's has 0.3611"):
        open_checkpoint(tmp_path / "vae", AUTOENCODER)


def test_a_file_replaced_while_reading_is_refused(saved, tmp_path):
    path = broken(saved, tmp_path, lambda state: None)
    checkpoint = open_checkpoint(path, TRANSFORMER)

    def load(name):
        state = load_file(name)
        save_file({key: value * 2 for key, value in state.items()}, name)
        return state

    with pytest.raises(ValueError, match="changed while it was being read"):
        checkpoint.read(load)


@pytest.mark.parametrize(("part", "layout"), LAYOUTS)
def test_any_wrong_shape_is_a_sentence_with_the_files_name(saved, tmp_path, part, layout):
    """Every tensor in turn with every odd shape: a ValueError that names the file, and nothing else."""
    infos = read_headers(model_files(saved[part, layout]))
    path = tmp_path / "odd.safetensors"

    def write(shapes):
        header, position = {}, 0
        for key, shape in shapes.items():
            end = position + 4 * math.prod(shape)
            header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
            position = end
        raw = json.dumps(header).encode()
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(raw)) + raw)
            file.truncate(8 + len(raw) + position)

    shapes = {key: list(info.shape) for key, info in infos.items()}
    write(shapes)
    open_checkpoint(path, PARTS[part])
    sound = open_checkpoint(saved[part, layout], PARTS[part]).config
    for key in list(shapes)[:: 1 + len(shapes) // 50]:
        shape = shapes[key]
        odd_shapes = (
            [],
            [7],
            [7, 7],
            [1, 1],
            [0],
            [3, 3, 3],
            [7, 7, 1, 1],
            [*shape, 1],
            [shape[0] + 1, *shape[1:]],
        )
        for odd in (odd for odd in odd_shapes if odd != shape):
            write({**shapes, key: odd})
            message = ""
            try:  # a size that is free, such as the number of words, is another model and no fault
                assert open_checkpoint(path, PARTS[part]).config != sound, (key, odd)
            except ValueError as error:
                message = str(error)
            assert not message or "odd.safetensors" in message, (key, odd, message)


@pytest.mark.parametrize(
    "name", ["zz\ud800", "two\nlines", "x" * 513, "tab\t", "double_blocks.999999999.img_mlp.gate_proj.weight"]
)
def test_hostile_tensor_names_never_reach_a_message(saved, tmp_path, name):
    shapes = {"double_blocks.0.img_mlp.gate_proj.weight": [2, 2], name: [2, 2]}
    header, position = {}, 0
    for key, shape in shapes.items():
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [position, position + 16]}
        position += 16
    raw = json.dumps(header).encode()
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * position)
    with pytest.raises(ValueError, match="hostile.safetensors|only 2 tensors") as error:
        open_checkpoint(path, TRANSFORMER)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


CONFIGS = [
    ("text_encoder", {"llm_config": None}),
    ("text_encoder", {"rope_parameters": 5}),
    ("text_encoder", {"rope_theta": None}),
    ("text_encoder", {"rope_theta": -1}),
    ("text_encoder", {"rope_theta": 10**400}),
    ("text_encoder", {"rms_norm_eps": float("nan")}),
    ("transformer", {"axes_dims_rope": 5}),
    ("transformer", {"axes_dims_rope": [-16, 80, 64]}),
    ("transformer", {"axes_dims_rope": [16, 56, 28, 28]}),
    ("transformer", {"axes_dims_rope": [15, 57, 56]}),
    ("transformer", {"axes_dims_rope": ["a", "b", "c"]}),
]


@pytest.mark.parametrize(("part", "config"), CONFIGS)
def test_nonsense_in_a_config_is_refused(saved, tmp_path, part, config):
    folder = tmp_path / "model"
    shutil.copytree(saved[part, "diffusers"], folder)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model is an? .*, but"):
        open_checkpoint(folder, PARTS[part])
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="no valid JSON"):
        open_checkpoint(folder, PARTS[part])


@pytest.mark.parametrize("scale", [math.nan, math.inf, 0.0, -1.0])
@pytest.mark.parametrize("keep_quantized", [True, False])
def test_scales_must_be_positive_numbers(saved, tmp_path, scale, keep_quantized):
    def change(state):
        state["img_in.weight"] = state["img_in.weight"].to(torch.float8_e4m3fn)
        state["img_in.scale_weight"] = torch.tensor(scale)

    checkpoint = open_checkpoint(broken(saved, tmp_path, change), TRANSFORMER)
    with pytest.raises(ValueError, match="img_in.weight"):
        checkpoint.read(keep_quantized=keep_quantized)


def test_a_full_checkpoint_gives_its_diffusion_model(saved, tmp_path, parts):
    state = {f"model.diffusion_model.{k}": v for k, v in load_file(saved["transformer", "comfyui"]).items()}
    state |= {
        "first_stage_model.decoder.conv_in.weight": torch.ones(1),
        "cond_stage_model.model.x": torch.ones(1),
    }
    save_file(state, tmp_path / "full.safetensors")
    read = open_checkpoint(tmp_path / "full.safetensors", TRANSFORMER).read()
    assert torch.equal(read["img_in.weight"], parts[0].img_in.weight)


def test_saving_again_leaves_nothing_of_the_old_model(tmp_path):
    first, second = (tiny_model.tiny_parts(seed)[0] for seed in (1, 2))
    for model, max_shard_bytes in (
        (first, 4 * 10**6),
        (second, 10**10),
        (first, 4 * 10**6),
        (second, 8 * 10**6),
    ):
        export.save(TRANSFORMER, model, tmp_path, "diffusers", max_shard_bytes)
        read = open_checkpoint(tmp_path, TRANSFORMER).read()
        assert torch.equal(read["img_in.weight"], model.img_in.weight)
        listed = {file.name for file in model_files(tmp_path)}
        assert {file.name for file in tmp_path.glob("*.safetensors")} == listed
