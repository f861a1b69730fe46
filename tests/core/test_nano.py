"""The recipe of the small model with next to no steps: every stage, stopped and gone on, to a model."""

import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from ovis_core.pipeline import load_pipeline
from ovis_core.training.flow import PADDING_KEPT
from ovis_core.training.nano import recipe as nano
from ovis_core.training.nano.autoencoder import AutoencoderTrainConfig
from ovis_core.training.trainer import TrainConfig
from ovis_core.typography.rendering import Renderer
from ovis_core.typography.settings import Typography

MAX_BYTES = 20 * 10**6
RECIPE = nano.Recipe(
    typography=Typography(sizes=((64, 64), (96, 64)), min_font_size=8),
    num_pictures=6,
    autoencoder=AutoencoderTrainConfig(steps=2),
    autoencoder_batch=2,
    autoencoder_crop=32,
    decoder=AutoencoderTrainConfig(steps=2, seed=1),
    train=TrainConfig(steps=2, bf16=False),
    batch_size=2,
    save_every=1,
    samples=1,
    sample_steps=2,
)


@pytest.fixture
def run(tmp_path, fonts):
    return partial(make, tmp_path, fonts)


@pytest.fixture(scope="module")
def made(tmp_path_factory, fonts):
    """What the recipe makes without a stop."""
    return make(tmp_path_factory.mktemp("nano"), fonts, "made")


def make(folder, fonts, out, minutes=60.0, recipe=RECIPE):
    deadline = time.monotonic() + 60 * minutes
    nano.NanoRun(folder / out, recipe, "cpu", deadline, num_workers=0, faces=fonts).run()
    return folder / out


def weights(folder):
    pipeline = load_pipeline(folder / nano.NAME)
    parts = pipeline.transformer, pipeline.text_encoder, pipeline.autoencoder
    return {f"{i}.{key}": value for i, part in enumerate(parts) for key, value in part.state_dict().items()}


def test_the_recipe_makes_a_model_of_its_size(made):
    folder = made
    model = folder / nano.NAME
    pipeline = load_pipeline(model, dtype=torch.float32)
    image = pipeline("OPEN 欢迎", width=64, height=64, steps=2)
    assert image.shape == (1, 3, 64, 64)
    assert image.isfinite().all()
    assert sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) <= MAX_BYTES
    assert all(
        value.dtype == torch.bfloat16 for key, value in weights(folder).items() if "inv_freq" not in key
    )
    for stage in ("autoencoder", "transformer", "decoder"):
        assert len((folder / "work" / f"{stage}.jsonl").read_text().splitlines()) == 2
        assert (folder / "work" / f"{stage}.png").is_file()
    assert [path.name for path in sorted((folder / "work" / "samples").iterdir())] == [
        "0000001.png",
        "0000002.png",
    ]


def test_a_run_that_was_stopped_goes_on_to_the_same_model(run, made):
    whole = weights(made)
    stops = 0
    while True:
        try:
            folder = run("stopped", minutes=0)  # one step at a time
            break
        except nano.OutOfTime:
            stops += 1
    assert stops == 3  # once in each stage: the last step of a stage is not a stop
    stopped = weights(folder)
    assert stopped.keys() == whole.keys()
    assert all(torch.equal(stopped[key], value) for key, value in whole.items())


def test_gradient_checkpointing_changes_nothing(run, made):
    kept = weights(made)
    computed_again = weights(run("again", recipe=replace(RECIPE, gradient_checkpointing=True)))
    assert all(torch.equal(computed_again[key], value) for key, value in kept.items())


def test_the_decoder_alone_learns_at_the_end(run, made):
    """What the MMDiT was trained on, the encoder's latents, stays what it was."""
    without, with_it = weights(run("a", recipe=replace(RECIPE, decoder=None))), weights(made)
    changed = {key for key in without if not torch.equal(without[key], with_it[key])}
    assert {key.split(".")[1] for key in changed} == {"decoder"}
    assert changed >= {"2.decoder.conv_in.weight", "2.decoder.conv_out.bias"}


def test_a_recipe_may_compile_the_blocks(run, made, monkeypatch):
    """With a compiler that does nothing: torch's own takes a minute."""
    given = []
    monkeypatch.setattr(torch, "compile", lambda function: given.append(function) or function)
    compiled = weights(run("compiled", recipe=replace(RECIPE, compiled=True)))
    assert [function.__name__ for function in given] == ["call_block"]
    assert all(torch.equal(compiled[key], value) for key, value in weights(made).items())


def test_the_model_starts_as_zero_velocity():
    transformer = nano.OvisImageTransformer(nano.TRANSFORMER)
    text_encoder = nano.TextEncoder(replace(nano.TEXT_ENCODER, vocab_size=300))
    nano.init_weights(transformer, text_encoder)
    with torch.no_grad():
        out = transformer(torch.randn(1, 16, 4, 4), torch.ones(1), torch.randn(1, 256, 192))
    assert torch.equal(out, torch.zeros_like(out))


def test_pictures_of_the_three_uses_differ(fonts):
    """Training, the autoencoder's training and the samples never share a picture."""
    renderer, held_out = Renderer(RECIPE.typography, fonts), Renderer(RECIPE.typography, fonts, held_out=True)
    trained = {renderer(0, index).texts for index in range(200)}
    assert not trained & {held_out(0, index).texts for index in range(200)}


@pytest.mark.parametrize("recipe", [nano.Recipe(), nano.CPU_RECIPE])
def test_recipes_leave_room_for_their_captions(recipe, fonts):
    """The text states that a recipe computes hold every caption whole, template included."""
    used = recipe.train.context_tokens - PADDING_KEPT if recipe.train.context_tokens else 256
    renderer = Renderer(recipe.typography, fonts)
    assert max(len(renderer(0, index).caption) + 12 for index in range(500)) <= used


def test_parts_of_pictures_are_taken_everywhere():
    pictures = torch.arange(100.0).view(1, 1, 10, 10)
    corners = {float(nano.crop(pictures, 4, seed)[0, 0, 0, 0]) for seed in range(300)}
    assert corners == {float(10 * row + column) for row in range(7) for column in range(7)}
    assert torch.equal(nano.crop(pictures, 4, 5), nano.crop(pictures, 4, 5))
