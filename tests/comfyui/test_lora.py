"""LoRAs in every dialect on the small model: the weights by hand, and diffusers with the same adapter."""

import copy

import pytest
import tiny_model
import torch
from safetensors.torch import save_file
from tiny_lora import ALPHA, DIALECTS, RANK, linears, lora_file, method, random_pairs, weights_of

from ovis_core.files.layouts import diffusers_transformer_rules
from ovis_core.files.rules import convert
from ovis_core.latents import image_ids, pack_latents, text_ids, unpack_latents

STRENGTH = 0.8


@pytest.fixture
def load(pack, monkeypatch, tmp_path, comfyui):
    """Writes a LoRA file and loads it through the node's adapter."""
    import folder_paths

    monkeypatch.setattr(
        folder_paths,
        "folder_names_and_paths",
        {**folder_paths.folder_names_and_paths, "loras": ([str(tmp_path)], {".safetensors"})},
    )

    def run(model, tensors, strength=STRENGTH, metadata=None):
        save_file(tensors, tmp_path / "test.safetensors", metadata)
        return pack("nodes.adapters.lora.lora").load_lora(model, "test.safetensors", strength)

    return run


def check_weights(model, patched, expected):
    before = {key: value.clone() for key, value in model.model.diffusion_model.state_dict().items()}
    weights = weights_of(patched)
    changed = 0
    for key, value in expected.items():
        assert torch.allclose(weights[key], value, atol=2e-5), key
        changed += not torch.equal(value, before[key])
    assert changed >= 20
    for key, value in model.model.diffusion_model.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} was not given back"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_diffusers_names_in_every_dialect(model, load, diffusers_pipeline, dialect):
    """Against diffusers' weights with the LoRA merged by hand, converted as any checkpoint is."""
    network = diffusers_pipeline.transformer
    pairs = random_pairs(network)
    tensors, scale = lora_file(pairs, dialect)
    patched, report = load(model, tensors)
    assert report == f"test.safetensors: {len(pairs)} modules matched, all applied"

    merged = {key: value.clone() for key, value in network.state_dict().items()}
    for name, (down, up) in pairs.items():
        merged[f"{name}.weight"] += STRENGTH * scale * (up @ down)
    rules = diffusers_transformer_rules(
        tiny_model.TRANSFORMER.depth, tiny_model.TRANSFORMER.depth_single_blocks
    )
    check_weights(model, patched, convert(merged, rules))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("authors", [False, True])
def test_flux_names_in_every_dialect(model, load, dialect, authors):
    network = model.model.diffusion_model
    pairs = random_pairs(network)
    expected = {key: value.clone() for key, value in network.state_dict().items()}
    renamed = {
        name.replace("txt_in", "semantic_txt_in") if authors else name: pair for name, pair in pairs.items()
    }
    tensors, scale = lora_file(renamed, dialect)
    patched, report = load(model, tensors)
    assert f"{len(pairs)} modules matched, all applied" in report
    for name, (down, up) in pairs.items():
        expected[f"{name}.weight"] += STRENGTH * scale * (up @ down)
    check_weights(model, patched, expected)


def test_velocity_equals_diffusers_with_the_adapter_loaded(model, load, diffusers_pipeline):
    network = copy.deepcopy(diffusers_pipeline.transformer)
    pairs = random_pairs(network)
    tensors, _ = lora_file(pairs, "transformer.")
    network.load_lora_adapter(dict(tensors), prefix="transformer")
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 16, 8, 12, generator=generator), torch.randn(2, 40, 32, generator=generator)
    sigma = torch.tensor([0.9, 0.3])
    patched, _ = load(model, tensors, strength=1.0)
    patched.patch_model()
    with torch.no_grad():
        ours = model.model.diffusion_model(x, sigma, context)
        theirs = network(
            hidden_states=pack_latents(x),
            encoder_hidden_states=context,
            timestep=sigma,
            img_ids=image_ids(8, 12),
            txt_ids=text_ids(40),
        ).sample
        theirs = unpack_latents(theirs, 8, 12)
    patched.unpatch_model()
    with torch.no_grad():
        plain = model.model.diffusion_model(x, sigma, context)
    assert (ours - theirs).norm() / theirs.norm() <= 1e-5
    assert (ours - plain).norm() / plain.norm() > 0.05


def test_alpha_in_the_metadata_counts(model, load, diffusers_pipeline):
    pairs = random_pairs(diffusers_pipeline.transformer)
    tensors, _ = lora_file(pairs, "transformer.")
    metadata = {"lora_adapter_metadata": f'{{"transformer.lora_alpha": {ALPHA}, "transformer.r": {RANK}}}'}
    with_metadata, _ = load(model, tensors, metadata=metadata)
    by_hand, _ = load(model, lora_file(pairs, "lora_down")[0])
    first, second = weights_of(with_metadata), weights_of(by_hand)
    assert all(torch.allclose(first[key], second[key], atol=1e-6) for key in first)


@pytest.mark.parametrize(
    "metadata",
    [
        '{"transformer.lora_alpha": 2, "transformer.alpha_pattern": {"x": 8}}',
        '{"transformer.lora_alpha": 2, "transformer.use_rslora": true}',
        '{"transformer.lora_alpha": "2"}',
        "[1]",
        "[" * 100_000,
    ],
    ids=["pattern", "rslora", "text", "list", "deep"],
)
def test_scaling_that_is_not_known_is_refused(model, load, metadata):
    pair = {"txt_in.lora_A.weight": torch.ones(4, 32), "txt_in.lora_B.weight": torch.ones(256, 4)}
    with pytest.raises(ValueError, match="not supported|is damaged"):
        load(model, pair, metadata={"lora_adapter_metadata": metadata})


@pytest.mark.parametrize("name", ["diff", "loha", "lokr"])
def test_other_methods_on_whole_fused_and_split_rows(model, load, diffusers_pipeline, name):
    network = diffusers_pipeline.transformer
    merged = {key: value.clone() for key, value in network.state_dict().items()}
    tensors = {}
    for layer in linears(network):
        weight = merged[f"{layer}.weight"]
        parts, diff = method(name, *weight.shape)
        tensors |= {f"transformer.{layer}.{ending}": tensor for ending, tensor in parts.items()}
        weight += STRENGTH * diff
    patched, report = load(model, tensors)
    assert f"{len(linears(network))} modules matched" in report
    rules = diffusers_transformer_rules(
        tiny_model.TRANSFORMER.depth, tiny_model.TRANSFORMER.depth_single_blocks
    )
    check_weights(model, patched, convert(merged, rules))


def test_biases_are_changed_where_their_rows_belong(model, load, diffusers_pipeline):
    network = diffusers_pipeline.transformer
    merged = {key: value.clone() for key, value in network.state_dict().items()}
    tensors = {}
    for layer in linears(network):
        change = torch.randn(merged[f"{layer}.bias"].shape)
        tensors[f"transformer.{layer}.diff_b"] = change
        merged[f"{layer}.bias"] += STRENGTH * change
    patched, _ = load(model, tensors)
    rules = diffusers_transformer_rules(
        tiny_model.TRANSFORMER.depth, tiny_model.TRANSFORMER.depth_single_blocks
    )
    check_weights(model, patched, convert(merged, rules))


def test_dora_equals_peft_on_whole_and_split_rows(model, load, diffusers_pipeline):
    """By the paper's formula on each of the file's layers: m (W + BA) / |W + BA|, rows normed."""
    network = diffusers_pipeline.transformer
    pairs = random_pairs(network)
    tensors, _ = lora_file(pairs, "transformer.")
    merged = {key: value.clone() for key, value in network.state_dict().items()}
    for name, (down, up) in pairs.items():
        weight = merged[f"{name}.weight"]
        magnitude = weight.norm(dim=1) * (1 + 0.1 * torch.randn(len(weight)))
        tensors[f"transformer.{name}.lora_magnitude_vector"] = magnitude
        direction = weight + up @ down
        merged[f"{name}.weight"] = magnitude[:, None] * direction / direction.norm(dim=1, keepdim=True)
    patched, _ = load(model, tensors, strength=1.0)
    rules = diffusers_transformer_rules(
        tiny_model.TRANSFORMER.depth, tiny_model.TRANSFORMER.depth_single_blocks
    )
    check_weights(model, patched, convert(merged, rules))


def test_loras_stack_and_go_away(model, load, diffusers_pipeline):
    pairs = random_pairs(diffusers_pipeline.transformer)
    tensors, _ = lora_file(pairs, "transformer.")
    twice, _ = load(load(model, tensors, 0.5)[0], tensors, 0.3)
    once, _ = load(model, tensors, 0.8)
    first, second = weights_of(twice), weights_of(once)
    assert all(torch.allclose(first[key], second[key], atol=1e-5) for key in first)
    nothing = weights_of(load(model, tensors, 0.0)[0])
    assert all(
        torch.equal(nothing[key], value) for key, value in model.model.diffusion_model.state_dict().items()
    )


def test_what_matches_nothing_is_named(model, load, diffusers_pipeline):
    tensors, _ = lora_file(random_pairs(diffusers_pipeline.transformer), "transformer.")
    _, report = load(model, {**tensors, "lora_te_text.lora_up.weight": torch.ones(1, 1)})
    assert report.endswith("all applied; 1 tensors belong to no layer: lora_te_text.lora_up.weight")


BAD = {
    "matches nothing": (
        {"unet.down.lora_A.weight": torch.ones(1, 1)},
        "none of the 1 tensors of test.safetensors belongs",
    ),
    "half a pair": ({"txt_in.lora_A.weight": torch.ones(4, 32)}, "half of a change"),
    "wrong rows": (
        {"txt_in.lora_A.weight": torch.ones(4, 32), "txt_in.lora_B.weight": torch.ones(7, 4)},
        r"does not fit its shape \[256, 32\]",
    ),
    "ranks that differ": (
        {"txt_in.lora_A.weight": torch.ones(4, 32), "txt_in.lora_B.weight": torch.ones(256, 3)},
        "does not fit its shape",
    ),
    "a number for a matrix": (
        {"txt_in.lora_A.weight": torch.ones(()), "txt_in.lora_B.weight": torch.ones(256, 4)},
        "does not fit its shape",
    ),
    "NaN": (
        {
            "txt_in.lora_A.weight": torch.full((4, 32), float("nan")),
            "txt_in.lora_B.weight": torch.ones(256, 4),
        },
        "'txt_in.lora_A.weight' in test.safetensors holds NaN",
    ),
    "no LoRA": ({"double_blocks.0.img_mlp.0.weight": torch.ones(2, 2)}, "is no LoRA, it looks like FLUX.1"),
    "twice": (
        {
            **{"txt_in.lora_A.weight": torch.ones(4, 32), "txt_in.lora_B.weight": torch.ones(256, 4)},
            "transformer.txt_in.lora_A.weight": torch.ones(4, 32),
        },
        "changes txt_in twice",
    ),
    "bias": ({"txt_in.diff_b": torch.ones(5)}, "the bias of txt_in in test.safetensors does not fit"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_files_are_refused(model, load, fault):
    tensors, message = BAD[fault]
    with pytest.raises(ValueError, match=message):
        load(model, tensors)


def test_other_models_are_refused(load, comfyui, tmp_path_factory):
    import comfy.sd

    folder = tmp_path_factory.mktemp("models")
    path = folder / "diffusion_models" / tiny_model.write("comfyui", folder)["model_name"]
    with pytest.raises(ValueError, match="use the stock LoRA loader"):
        load(comfy.sd.load_diffusion_model(str(path)), {"txt_in.diff": torch.ones(256, 32)})


def merged_weights(model, load, tensors):
    return weights_of(load(model, tensors, 0.7)[0])


@pytest.fixture
def convert_file(pack, model, load, tmp_path, monkeypatch):
    """Converts a LoRA file through the node's adapter -> its tensors."""
    import folder_paths
    from safetensors.torch import load_file

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))

    def run(tensors, dialect):
        save_file(tensors, tmp_path / "test.safetensors")
        name = pack("nodes.adapters.lora.lora").convert_lora(model, "test.safetensors", dialect, "loras/x")
        return load_file(tmp_path / "output" / name)

    return run


CONVERTED = ["comfyui", "kohya", "diffusers", "peft", "onetrainer", "lycoris", "authors"]


@pytest.mark.parametrize("dialect", CONVERTED)
@pytest.mark.parametrize("names", ["flux", "diffusers"])
@pytest.mark.parametrize("kind", ["lora", "alpha", "dora", "diff", "lokr"])
def test_conversion_changes_the_same_weights(
    model, load, convert_file, diffusers_pipeline, dialect, names, kind
):
    network = model.model.diffusion_model if names == "flux" else diffusers_pipeline.transformer
    tensors = {}
    for name, (down, up) in random_pairs(network).items():
        weight = network.get_submodule(name).weight
        if kind in ("diff", "lokr"):
            parts, _ = method(kind, *weight.shape)
        else:
            parts = {"lora_A.weight": down, "lora_B.weight": up}
            parts |= {"alpha": torch.tensor(3.0)} if kind == "alpha" else {}
            parts |= {"dora_scale": 1.1 * weight.norm(dim=1, keepdim=True)} if kind == "dora" else {}
        tensors |= {f"transformer.{name}.{ending}": tensor for ending, tensor in parts.items()}
    # The diffusers names of DoRA cut into parts of ours cannot be joined where rows of one matrix are
    # missing; none are.
    converted = convert_file(tensors, dialect)
    expected, got = merged_weights(model, load, tensors), merged_weights(model, load, converted)
    for key, value in expected.items():
        assert torch.allclose(got[key], value, atol=2e-5), key


def test_converted_files_work_in_comfyuis_own_loader(model, load, convert_file, diffusers_pipeline):
    import comfy.sd

    tensors, _ = lora_file(random_pairs(diffusers_pipeline.transformer), "lora_transformer_")
    expected = weights_of(load(model, tensors, 0.7)[0])
    for dialect in CONVERTED:
        stock, _ = comfy.sd.load_lora_for_models(model, None, convert_file(tensors, dialect), 0.7, 0)
        got = weights_of(stock)
        assert all(torch.allclose(got[key], value, atol=2e-5) for key, value in expected.items())


def test_converted_files_work_in_diffusers(model, convert_file, load, diffusers_pipeline):
    tensors, _ = lora_file(random_pairs(model.model.diffusion_model), "lora_unet_")
    network = copy.deepcopy(diffusers_pipeline.transformer)
    network.load_lora_adapter(convert_file(tensors, "diffusers"), prefix="transformer")
    network.fuse_lora()
    merged = {
        key.replace(".base_layer", ""): v for key, v in network.state_dict().items() if ".lora_" not in key
    }
    rules = diffusers_transformer_rules(
        tiny_model.TRANSFORMER.depth, tiny_model.TRANSFORMER.depth_single_blocks
    )
    expected = weights_of(load(model, tensors, 1.0)[0])
    for key, value in convert(merged, rules).items():
        assert torch.allclose(value, expected[key], atol=2e-5), key


def test_conversion_refuses_what_a_dialect_cannot_say(model, convert_file):
    with pytest.raises(ValueError, match="bias of context_embedder, which PEFT's endings cannot say"):
        convert_file({"txt_in.diff_b": torch.ones(256)}, "diffusers")
    pair = {"txt_in.lora_A.weight": torch.ones(4, 32), "txt_in.lora_B.weight": torch.ones(256, 4)}
    with pytest.raises(ValueError, match="a converted file would lack them"):
        convert_file({**pair, "lora_te_x.alpha": torch.ones(())}, "comfyui")


def test_the_nodes_in_a_graph(server, parts):
    """A LoRA dropped into the folder of a running server is listed, applied, reported and converted."""
    folder = server.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    pairs = random_pairs(parts[0])
    save_file(lora_file(pairs, "lora_unet_")[0], folder / "tiny.safetensors")
    workflow = server.graph()
    plain = server.latent(workflow, "5")
    loader = {"model": ["1", 0], "lora_name": "tiny.safetensors", "strength_model": 1.0}
    workflow["lora"] = {"class_type": "OvisImageLoraLoader", "inputs": loader}
    workflow["5"]["inputs"]["model"] = ["lora", 0]
    workflow["report"] = {"class_type": "PreviewAny", "inputs": {"source": ["lora", 1]}}
    assert not torch.allclose(server.latent(workflow, "5"), plain, atol=1e-2)
    convert = {
        "model": ["1", 0],
        "lora_name": "tiny.safetensors",
        "dialect": "diffusers",
        "filename_prefix": "l/x",
    }
    workflow["convert"] = {"class_type": "OvisImageLoraConvert", "inputs": convert}
    outputs = server.run(workflow)
    assert outputs["report"]["text"] == [f"tiny.safetensors: {len(pairs)} modules matched, all applied"]
    assert (server.base / "output" / "l" / "x_diffusers_00001_.safetensors").is_file()
    assert torch.equal(server.latent(server.graph(), "5"), plain)

    workflow["convert"]["inputs"]["filename_prefix"] = "../../escaped"
    assert "outside" in server.fail({key: workflow[key] for key in ("1", "convert")})["exception_message"]
