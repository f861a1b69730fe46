import subprocess
import sys

import pytest
import tiny_model
import torch
from PIL import Image

from ovis_core.autoencoder import denormalize
from ovis_core.latents import pack_latents, unpack_latents
from ovis_core.pipeline import load_pipeline
from ovis_core.sampling import reference_noise

PROMPT = 'A red poster with the word "OPEN" in white, bold sans-serif, centred'


@pytest.fixture(scope="module")
def pipeline(diffusers_folder):
    return load_pipeline(diffusers_folder)


@pytest.mark.parametrize(
    ("size", "batch"), [((128, 128), 3), ((192, 336), 1), ((128, 512), 1), ((512, 128), 2)]
)
def test_latents_and_image_equal_diffusers(pipeline, diffusers_pipeline, size, batch):
    height, width = size
    noise = reference_noise((batch, 16, height // 8, width // 8), 7).float()
    ours = pipeline.sample(PROMPT, width=width, height=height, steps=8, cfg=5.0, noise=noise)
    arguments = {
        "prompt": [PROMPT] * batch,
        "height": height,
        "width": width,
        "num_inference_steps": 8,
        "guidance_scale": 5.0,
    }
    theirs = diffusers_pipeline(**arguments, latents=pack_latents(noise), output_type="latent").images
    theirs = unpack_latents(theirs, height // 8, width // 8)
    assert theirs.std() > 0.1
    assert (ours - theirs).norm() / theirs.norm() <= 1e-4

    image = pipeline(PROMPT, width=width, height=height, steps=8, noise=noise)
    expected = diffusers_pipeline(**arguments, latents=pack_latents(noise), output_type="pt").images
    assert image.shape == expected.shape == (batch, 3, height, width)
    assert (image - expected).abs().max() <= 1 / 255
    with torch.no_grad():
        decoded = pipeline.autoencoder.decode(denormalize(ours)) / 2 + 0.5
    assert torch.equal(image, decoded.clamp(0, 1))


def test_sizes_are_floored_to_multiples_of_16_and_progress_is_told(pipeline):
    steps = []
    image = pipeline(
        PROMPT, width=100, height=70, steps=3, callback=lambda i, denoised: steps.append((i, denoised.shape))
    )
    assert image.shape == (1, 3, 64, 96)
    assert steps == [(i, (1, 16, 8, 12)) for i in range(3)]


def test_the_authors_folder_is_the_same_model(pipeline, tmp_path):
    tiny_model.write("authors", tmp_path / "models")
    for entry in tmp_path.glob("models/*/*"):
        entry.rename(tmp_path / entry.name)
    authors = load_pipeline(tmp_path)
    arguments = {"width": 64, "height": 64, "steps": 2, "seed": 3}
    # Not to the bit: how the files place the weights in memory decides which CPU kernels run.
    assert torch.allclose(authors(PROMPT, **arguments), pipeline(PROMPT, **arguments), atol=1e-5)


def test_command_line_writes_the_picture(diffusers_folder, pipeline, tmp_path):
    command = [sys.executable, "-m", "ovis_core", "--model", str(diffusers_folder), "--prompt", PROMPT]
    options = [
        "--steps",
        "2",
        "--width",
        "64",
        "--height",
        "96",
        "--seed",
        "5",
        "--out",
        str(tmp_path / "out.png"),
    ]
    done = subprocess.run([*command, *options], cwd=tiny_model.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "out.png") in done.stdout
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (64, 96)
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(96, 64, 3)
    expected = pipeline(PROMPT, width=64, height=96, steps=2, seed=5)[0].permute(1, 2, 0)
    assert (pixels.float() / 255 - expected).abs().max() <= 1.01 / 255


def test_command_line_says_what_is_missing(tmp_path):
    command = [sys.executable, "-m", "ovis_core", "--model", str(tmp_path), "--prompt", "x", "--out", "x.png"]
    done = subprocess.run(command, cwd=tiny_model.ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "0 entries for the" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "steps must be at least 1"),
        (["--width", "8"], "too small"),
        (["--prompt", "a" * 100_001], "at most 100000"),
        (["--out", "missing/folder/x.png"], "the folder of --out does not exist"),
    ],
)
def test_command_line_refuses_in_a_sentence(diffusers_folder, tmp_path, options, message):
    command = [sys.executable, "-m", "ovis_core", "--model", str(diffusers_folder), "--prompt", "x"]
    command += ["--out", str(tmp_path / "x.png"), *options]
    done = subprocess.run(command, cwd=tiny_model.ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_prompt_past_the_budget_is_told(pipeline, caplog):
    pipeline("word " * 400, width=32, height=32, steps=1)
    assert "the prompt is 155 tokens too long" in caplog.text
