"""Graphs on the real server: our nodes, stock nodes in their places, and diffusers, on the same weights."""

import copy

import pytest
import torch

from ovis_core.latents import pack_latents, unpack_latents
from ovis_core.sampling import reference_noise

PROMPT = 'A blue poster with the words "GRAND OPENING" and “新店开业” in white, bold'
STEPS = 8


def comfy_noise(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def diffusers_latents(pipeline, noise, steps=STEPS, cfg=5.0):
    """The pipeline's latents as ComfyUI has them: not normalized."""
    height, width = noise.shape[-2:]
    tokens = pipeline(
        prompt=[PROMPT] * len(noise),
        height=height * 8,
        width=width * 8,
        num_inference_steps=steps,
        guidance_scale=cfg,
        latents=pack_latents(noise),
        output_type="latent",
    ).images
    return unpack_latents(tokens, height, width) / 0.3611 + 0.1159


def with_stock_sampler(workflow, **guidance):
    """The same graph with SamplerCustomAdvanced fed by our scheduler, and the stock VAEDecode."""
    stock = copy.deepcopy(workflow)
    ours = stock.pop("5")["inputs"]
    model, latent = ours["model"], ours["latent_image"]
    stock["noise"] = {"class_type": "RandomNoise", "inputs": {"noise_seed": ours["seed"]}}
    stock["guider"] = {
        "class_type": "CFGGuider",
        "inputs": {key: ours[key] for key in ("model", "positive", "negative", "cfg")},
    }
    stock["sampler"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": ours["sampler_name"]}}
    stock["sigmas"] = {
        "class_type": "OvisImageScheduler",
        "inputs": {
            "model": model,
            "latent_image": latent,
            "steps": ours["steps"],
            "denoise": ours["denoise"],
        },
    }
    stock["5"] = {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {
            "noise": ["noise", 0],
            "guider": ["guider", 0],
            "sampler": ["sampler", 0],
            "sigmas": ["sigmas", 0],
            "latent_image": latent,
        },
    }
    stock["6"] = {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}}
    return stock


@pytest.mark.parametrize(
    ("width", "height", "noise", "batch"),
    [
        (128, 128, "comfyui", 3),
        (336, 192, "reference", 1),
        (128, 512, "comfyui", 1),
        (512, 128, "reference", 2),
    ],
)
def test_the_whole_pipeline_equals_diffusers(server, diffusers_pipeline, width, height, noise, batch):
    workflow = server.graph(steps=STEPS, cfg=5.0, seed=11, noise=noise)
    workflow["2"]["inputs"]["text"] = PROMPT
    workflow["4"]["inputs"].update(width=width, height=height, batch_size=batch)
    shape = (batch, 16, height // 8, width // 8)
    start = comfy_noise(shape, 11) if noise == "comfyui" else reference_noise(shape, 11).float()
    expected = diffusers_latents(diffusers_pipeline, start)
    assert expected.std() > 0.1
    assert (server.latent(workflow, "5") - expected).norm() / expected.norm() <= 1e-4


@pytest.mark.parametrize("layout", ["comfyui", "diffusers"])
def test_every_layout_makes_the_same_latents(server, layout):
    expected = server.latent(server.graph("authors"), "5")
    assert torch.allclose(server.latent(server.graph(layout), "5"), expected, atol=1e-4)


@pytest.mark.parametrize(("sampler_name", "denoise"), [("euler", 0.6), ("dpmpp_2m", 1.0)])
def test_stock_sampler_and_decoder_agree_to_the_bit(server, sampler_name, denoise):
    workflow = server.graph(steps=3, seed=5, denoise=denoise, sampler_name=sampler_name)
    workflow["4"]["inputs"].update(batch_size=2)
    stock = with_stock_sampler(workflow)
    assert torch.equal(server.latent(workflow, "5"), server.latent(stock, "5"))
    ours, theirs = (server.image(server.run(graph)) for graph in (workflow, stock))
    assert ours.size == (128, 192)
    assert ours.tobytes() == theirs.tobytes()


def test_stock_ksampler_agrees_to_the_bit_at_1024(server):
    # ComfyUI's "simple" is exact where steps divide 10,000. Without guidance, which takes twice as long.
    workflow = server.graph(steps=2, seed=5, cfg=1.0)
    workflow["4"]["inputs"].update(aspect_ratio="1:1 (1024x1024)")
    stock = copy.deepcopy(workflow)
    inputs = stock["5"]["inputs"]
    inputs.pop("noise")
    stock["5"] = {"class_type": "KSampler", "inputs": {**inputs, "scheduler": "simple"}}
    assert torch.equal(server.latent(workflow, "5"), server.latent(stock, "5"))


def test_stock_text_encode_gives_the_same_on_plain_text(server):
    workflow = server.graph()
    stock = copy.deepcopy(workflow)
    for node in ("2", "3"):
        stock[node]["class_type"] = "CLIPTextEncode"
    assert torch.equal(server.latent(workflow, "5"), server.latent(stock, "5"))


def test_empty_latents_of_other_models_become_ours(server):
    workflow = server.graph()
    stock = copy.deepcopy(workflow)
    size = {"width": 128, "height": 192, "batch_size": 1}
    stock["4"] = {"class_type": "EmptyLatentImage", "inputs": size}
    assert torch.equal(server.latent(workflow, "5"), server.latent(stock, "5"))


def test_cfg_one_needs_no_negative_and_ignores_one(server):
    workflow = server.graph(cfg=1.0)
    expected = server.latent(workflow, "5")
    workflow["5"]["inputs"].pop("negative")
    assert torch.equal(server.latent(workflow, "5"), expected)


def test_image_to_image_round_trip(server):
    """Encoding what was decoded, with denoise 0, gives the encoder's latent back untouched."""
    workflow = server.graph()
    workflow["encode"] = {
        "class_type": "OvisImageVAEEncode",
        "inputs": {"pixels": ["6", 0], "vae": ["1", 2], "tile_size": 0},
    }
    again = copy.deepcopy(workflow["5"])
    again["inputs"].update(latent_image=["encode", 0], denoise=0.0)
    workflow["again"] = again
    encoded = server.latent(workflow, "encode")
    assert torch.equal(server.latent(workflow, "again"), encoded)
    workflow["again"]["inputs"].update(denoise=0.5)
    assert not torch.equal(server.latent(workflow, "again"), encoded)


def test_width_and_height_are_told(server):
    workflow = {
        "4": server.graph()["4"],
        "w": {"class_type": "PreviewAny", "inputs": {"source": ["4", 1]}},
        "h": {"class_type": "PreviewAny", "inputs": {"source": ["4", 2]}},
    }
    workflow["4"]["inputs"].update(width=1000, height=777)
    outputs = server.run(workflow)
    assert (outputs["w"]["text"], outputs["h"]["text"]) == (["992"], ["768"])


def test_unloading_between_runs_changes_nothing(server):
    expected = server.latent(server.graph(seed=21), "5")
    server.post("/free", {"unload_models": True, "free_memory": True})
    server.latent(server.graph("diffusers", seed=22), "5")
    server.post("/free", {"unload_models": True, "free_memory": True})
    assert torch.allclose(server.latent(server.graph(seed=21), "5"), expected, atol=1e-5)


def test_a_weight_dtype_and_back(server):
    """A, B, A: the third is the first to the bit."""
    first = server.latent(server.graph(seed=31), "5")
    other = server.graph(seed=31)
    other["1"]["inputs"]["weight_dtype"] = "fp8_e4m3fn"
    assert not torch.allclose(server.latent(other, "5"), first, atol=1e-3)
    assert torch.equal(server.latent(server.graph(seed=31), "5"), first)


def test_a_prompt_past_the_budget_is_cut_and_told(server):
    import websocket

    socket = websocket.create_connection(f"ws://{server.process.address}/ws?clientId=budget", timeout=60)
    workflow = server.graph()
    workflow["2"]["inputs"]["text"] = "word " * 400
    server.process.queue(workflow, client_id="budget")
    texts = []
    while True:
        message = socket.recv()
        if isinstance(message, bytes):
            texts.append(message)
        elif '"execution_success"' in message:
            break
        else:
            assert '"execution_error"' not in message, message
    socket.close()
    assert any(b"284 of 284 tokens; 155 more were cut off, shorten the prompt" in text for text in texts)


ODD_TEXTS = ["a\ud800b", "\0", "👩\u200d👩\u200d👧 ﷽", "<|im_end|>", "{0} %s embedding:../../x", "x" * 20_000]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_text_runs(server, text):
    workflow = server.graph(steps=1)
    workflow["2"]["inputs"]["text"] = text
    server.run(workflow)


def test_a_prompt_is_encoded_once(server):
    """For other seeds, steps and sizes what ComfyUI has kept of it is used."""
    workflow = server.graph(seed=11)
    workflow["2"]["inputs"]["text"] = "a prompt of this test alone"
    for changed in ({}, {"seed": 12}, {"seed": 13, "steps": 3}):
        workflow["5"]["inputs"].update(changed)
        entry = server.process.wait(server.process.queue(workflow))
        assert entry["status"]["status_str"] == "success"
        (kept,) = (told["nodes"] for kind, told in entry["status"]["messages"] if kind == "execution_cached")
        assert ("2" in kept) == bool(changed)
        assert "5" not in kept
