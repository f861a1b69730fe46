"""What users get wrong, on the real server: one clear sentence each, and the queue goes on."""

import shutil
import time
from dataclasses import replace

import pytest
import tiny_model
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def files(server):
    """Broken files in the server's model folders, beside the good ones."""
    models = server.base / "models"
    good = models / "diffusion_models" / "ovis_image_tiny.safetensors"
    folder = models / "diffusion_models"
    state = load_file(good)
    (folder / "truncated.safetensors").write_bytes(good.read_bytes()[:-1000])
    save_file({"double_blocks.0.img_mlp.0.weight": torch.ones(2, 2)}, folder / "flux.safetensors")
    save_file({k: v for k, v in state.items() if k != "img_in.bias"}, folder / "missing.safetensors")
    save_file(state | {"img_in.bias": torch.ones(3)}, folder / "shape.safetensors")
    save_file(state | {"img_in.bias": torch.full((256,), float("nan"))}, folder / "nan.safetensors")
    save_file(state | {"zz": torch.ones(1)}, folder / "surrogate.safetensors")
    content = (folder / "surrogate.safetensors").read_bytes().replace(b'"zz"', b'"\\ud800"', 1)
    length = int.from_bytes(content[:8], "little") + 4
    (folder / "surrogate.safetensors").write_bytes(length.to_bytes(8, "little") + content[8:])
    (folder / "pickle.safetensors").write_bytes(b"PK\x03\x04 and so on")
    shutil.copy(models / "text_encoders" / "ovis_2.5_tiny.safetensors", folder / "text_encoder.safetensors")
    shards = models / "diffusers" / "Ovis-Image-tiny" / "transformer"
    shutil.copytree(shards, folder / "no_index", ignore=shutil.ignore_patterns("*.index.json"))

    wide = replace(tiny_model.TEXT_ENCODER, vocab_size=1000, hidden_size=64)
    path = models / "text_encoders" / "other.safetensors"
    tiny_model.export.save(tiny_model.file_parts.TEXT_ENCODER, tiny_model.TextEncoder(wide), path, "comfyui")

    (server.base / "input").mkdir(exist_ok=True)
    latents = {"sd": torch.ones(1, 4, 16, 16), "nan": torch.full((1, 16, 16, 16), float("nan"))}
    for name, latent in latents.items():
        tensors = {"latent_tensor": latent, "latent_format_version_0": torch.zeros(0)}
        save_file(tensors, server.base / "input" / f"{name}.latent")


def check(server, workflow, node: str, *fragments: str) -> None:
    error = server.fail(workflow)
    message = error["exception_message"]
    assert error["node_type"] == node, message
    assert error["exception_type"] == "ValueError", message
    for fragment in fragments:
        assert fragment in message, message
    assert "\n" not in message.strip(), "more than a sentence"
    assert len(message) < 600
    server.run(server.graph(steps=1))  # the queue goes on


@pytest.mark.parametrize(
    ("model", "fragments"),
    [
        (
            "truncated.safetensors",
            ["truncated.safetensors is cut off: 1000 bytes are missing", "download it again"],
        ),
        (
            "flux.safetensors",
            ["flux.safetensors looks like FLUX.1", "double_blocks.0.img_mlp.gate_proj.weight"],
        ),
        ("missing.safetensors", ["1 tensors are missing, first img_in.bias"]),
        ("shape.safetensors", ["has the shape [3] where img_in.bias should have the shape [256]"]),
        ("nan.safetensors", ["img_in.bias in nan.safetensors holds 256 values that are NaN"]),
        ("surrogate.safetensors", [r"has a tensor with the name '\ud800'"]),
        ("pickle.safetensors", ["a PyTorch pickle", "convert it to safetensors"]),
        ("text_encoder.safetensors", ["looks like an Ovis2.5 or Qwen3 text encoder, not like an Ovis-Image"]),
        ("no_index/", ["the folder no_index holds", "one index is needed", "model.safetensors.index.json"]),
    ],
)
def test_wrong_models(server, files, model, fragments):
    workflow = server.graph()
    workflow["1"]["inputs"]["model_name"] = model
    check(server, workflow, "OvisImageLoader", *fragments)


def test_a_text_encoder_of_another_size(server, files):
    workflow = server.graph()
    workflow["1"]["inputs"]["text_encoder_name"] = "other.safetensors"
    check(server, workflow, "OvisImageLoader", "gives 64 numbers a token, the diffusion model takes 32")


def scheduler_graph(server) -> dict:
    workflow = {key: value for key, value in server.graph().items() if key in ("1", "4")}
    inputs = {"model": ["1", 0], "latent_image": ["4", 0], "steps": 2, "denoise": 1.0}
    workflow["sigmas"] = {"class_type": "OvisImageScheduler", "inputs": inputs}
    workflow["show"] = {"class_type": "PreviewAny", "inputs": {"source": ["sigmas", 0]}}
    return workflow


def decoder_graph(server) -> dict:
    workflow = {key: value for key, value in server.graph().items() if key in ("1", "4", "6", "7")}
    workflow["6"]["inputs"]["samples"] = ["4", 0]
    return workflow


@pytest.mark.parametrize(
    ("node", "latent", "message"),
    [
        ("OvisImageSampler", "sd", "the latent has 4 channels, this model takes 16"),
        ("OvisImageSampler", "nan", "the latent holds NaN"),
        ("OvisImageScheduler", "sd", "the latent has 4 channels, this model takes 16"),
        (
            "OvisImageVAEDecode",
            "sd",
            "has the shape [1, 4, 16, 16], this VAE decodes [batch, 16, height, width]",
        ),
        ("OvisImageVAEDecode", "nan", "the latent holds NaN"),
    ],
)
def test_wrong_latents(server, files, node, latent, message):
    graphs = {"OvisImageScheduler": scheduler_graph, "OvisImageVAEDecode": decoder_graph}
    workflow = graphs[node](server) if node in graphs else server.graph()
    workflow["4"] = {"class_type": "LoadLatent", "inputs": {"latent": f"{latent}.latent"}}
    check(server, workflow, node, message)


def test_a_mask_outside_the_picture(server):
    """As the rectangle of the inpainting template after another scale."""
    workflow = server.graph()
    workflow["none"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 128, "height": 192}}
    one = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 32, "height": 32}}
    outside = {"destination": ["none", 0], "source": ["one", 0], "x": 680, "y": 576, "operation": "add"}
    workflow |= {"one": one, "mask": {"class_type": "MaskComposite", "inputs": outside}}
    masked = {"samples": ["4", 0], "mask": ["mask", 0]}
    workflow["masked"] = {"class_type": "SetLatentNoiseMask", "inputs": masked}
    workflow["5"]["inputs"]["latent_image"] = ["masked", 0]
    check(server, workflow, "OvisImageSampler", "covers nothing of the picture (128 x 192 pixels)")


def test_a_negative_is_never_guessed(server):
    workflow = server.graph(cfg=5.0)
    workflow["5"]["inputs"].pop("negative")
    check(
        server,
        workflow,
        "OvisImageSampler",
        "cfg 5.0 needs a negative",
        "Text Encode with an empty text",
    )


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("model_name", "ovis_image_bf16.safetensors"),
        ("text_encoder_name", "x"),
        ("vae_name", "../ae.safetensors"),
    ],
)
def test_a_missing_file_in_a_shared_workflow(server, field, name):
    workflow = server.graph()
    workflow["1"]["inputs"][field] = name
    status, answer = server.post("/prompt", {"prompt": workflow})
    assert status == 400
    (error,) = answer["node_errors"]["1"]["errors"]
    assert error["type"] == "value_not_in_list"
    assert name in error["details"]
    server.run(server.graph(steps=1))


@pytest.mark.parametrize(
    ("field", "value"), [("cfg", float("nan")), ("steps", 0), ("denoise", 2.0), ("denoise", float("nan"))]
)
def test_numbers_out_of_range(server, field, value):
    workflow = server.graph()
    workflow["5"]["inputs"][field] = value
    status, _ = server.post("/prompt", {"prompt": workflow})
    if status == 200:  # NaN passes ComfyUI's own check
        error = server.fail(workflow)
        assert f"{field} must" in error["exception_message"]
    else:
        assert status == 400
    server.run(server.graph(steps=1))


def test_an_endless_prompt(server):
    workflow = server.graph()
    workflow["2"]["inputs"]["text"] = "a" * 100_001
    check(server, workflow, "OvisImageTextEncode", "has 100001 characters, at most 100000 are accepted")


def test_what_the_model_cannot_take_is_refused_with_a_sentence(pack):
    transformer = pack("nodes.adapters.loading.diffusion_model").ComfyTransformer(
        tiny_model.TRANSFORMER, torch.nn, dtype=torch.float32
    )
    arguments = torch.zeros(1, 16, 4, 4), torch.ones(1), torch.zeros(1, 256, 32)
    with pytest.raises(ValueError, match="no ControlNets"):
        transformer(*arguments, control={"input": []})
    with pytest.raises(ValueError, match="conditioning has 64 numbers a token, this model takes 32"):
        transformer(*arguments[:2], torch.zeros(1, 256, 64))


def test_interrupt_stops_within_a_step_and_the_queue_goes_on(server):
    expected = server.latent(server.graph(seed=9), "5")
    workflow = server.graph(steps=10_000, seed=9)  # an hour, were it not interrupted
    workflow["4"]["inputs"].update(width=256, height=256)
    prompt_id = server.process.queue(workflow)
    while not any(item[1] == prompt_id for item in server.get("/queue")["queue_running"]):
        time.sleep(0.05)
    server.process.request("/interrupt", b"{}")
    entry = server.process.wait(prompt_id)
    assert "execution_interrupted" in [kind for kind, _ in entry["status"]["messages"]]
    assert torch.equal(server.latent(server.graph(seed=9), "5"), expected)
