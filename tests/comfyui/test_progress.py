"""What a waiting user sees, over the server's websocket: previews, progress and step times."""

import io
import json

import numpy as np
import pytest
import torch
import websocket
from PIL import Image, ImageOps
from safetensors.torch import save_file

STEPS = 5
PREVIEW, TEXT = 1, 3  # kinds of ComfyUI's binary messages


def watch(server, workflow, preview_method: str):
    """Queues a graph -> (progress as (value, max) of the sampler, preview pictures, lines of text)."""
    client = f"watch-{preview_method}"
    socket = websocket.create_connection(f"ws://{server.process.address}/ws?clientId={client}", timeout=60)
    server.process.queue(workflow, client_id=client, extra_data={"preview_method": preview_method})
    progress, pictures, texts = [], [], []
    while True:
        message = socket.recv()
        if isinstance(message, bytes):
            kind = int.from_bytes(message[:4], "big")
            if kind == PREVIEW:
                pictures.append(Image.open(io.BytesIO(message[8:])).convert("RGB"))
            elif kind == TEXT:
                texts.append(
                    message[9:].decode()
                )  # behind the length of the node's id and the id, one letter
            continue
        message = json.loads(message)
        if message["type"] == "progress" and message["data"]["node"] == "5":
            progress.append((message["data"]["value"], message["data"]["max"]))
        assert message["type"] != "execution_error", message
        if message["type"] == "execution_success":
            socket.close()
            return progress, pictures, texts


@pytest.fixture(scope="module")
def decoder(server, comfyui):
    """A small decoder with random weights where ComfyUI looks for TAESD's for this latent format."""
    import comfy.taesd.taesd

    torch.manual_seed(0)
    network = comfy.taesd.taesd.TAESD(latent_channels=16)
    for parameter in network.taesd_decoder.parameters():  # ComfyUI leaves them as the memory was
        torch.nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5 * (parameter.ndim > 1))
    network.taesd_decoder[-1].bias.data.fill_(0.5)
    folder = server.base / "models" / "vae_approx"
    folder.mkdir(exist_ok=True)
    save_file(network.taesd_decoder.state_dict(), folder / "taef1_decoder.safetensors")
    return network


def expected_preview(method, latents, decoder):
    """The last preview by hand: ComfyUI's colour factors for each latent pixel, or the small decoder."""
    import comfy.latent_formats

    latent_format = comfy.latent_formats.Flux()
    latents = latent_format.process_in(latents)
    with torch.no_grad():
        if method == "taesd":
            picture = decoder.decode(latents)[0]
        else:
            factors = torch.tensor(latent_format.latent_rgb_factors)
            bias = torch.tensor(latent_format.latent_rgb_factors_bias)
            picture = torch.einsum("chw,cr->rhw", latents[0], factors) + bias[:, None, None]
    picture = ((picture + 1) / 2).clamp(0, 1).movedim(0, 2)
    return Image.fromarray((picture * 255).byte().numpy())


@pytest.mark.parametrize("method", ["latent2rgb", "taesd"])
def test_previews_progress_and_step_times(server, decoder, method):
    workflow = server.graph(steps=STEPS, seed=[3, 4][method == "taesd"])
    progress, pictures, texts = watch(server, workflow, method)
    assert [value for value, _ in dict.fromkeys(progress) if value] == list(range(1, STEPS + 1))
    assert {total for _, total in progress} == {STEPS}
    assert len(pictures) == STEPS

    expected = expected_preview(method, server.latent(workflow, "5"), decoder)
    expected = ImageOps.contain(expected, pictures[-1].size, Image.Resampling.BILINEAR)
    assert expected.size == pictures[-1].size
    shown, meant = (np.asarray(image, dtype=float) for image in (pictures[-1], expected))
    assert np.abs(shown - meant).mean() < 3  # of 255; previews travel as JPEG
    assert meant.std() > 20, "a picture of one colour tells nothing"
    assert pictures[0].tobytes() != pictures[-1].tobytes()

    lines = [text for text in texts if "step" in text]
    assert len(lines) == STEPS
    assert lines[0] == f"step 1 of {STEPS}"
    assert lines[-1].startswith(f"{STEPS} steps, ")


def test_previews_can_be_off(server):
    progress, pictures, _ = watch(server, server.graph(steps=2, seed=77), "none")
    assert progress
    assert pictures == []
