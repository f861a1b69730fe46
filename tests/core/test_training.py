"""The trainer on a small model: gradients against finite differences, exact resume, and that it learns."""

from dataclasses import replace

import pytest
import torch

from ovis_core.autoencoder import Autoencoder, AutoencoderConfig, normalize
from ovis_core.blocks import call_block
from ovis_core.sampling import shift_mu
from ovis_core.text_encoder import TextEncoder, TextEncoderConfig
from ovis_core.training.flow import FlowLoss, checkpointed, draw_sigmas, thin_padding, velocity_loss
from ovis_core.training.nano.autoencoder import AutoencoderTrainConfig, balance_latents, train_autoencoder
from ovis_core.training.trainer import Batch, TrainConfig, Trainer
from ovis_core.transformer import OvisImageTransformer, TransformerConfig

TRANSFORMER = TransformerConfig(
    hidden_size=32,
    num_heads=2,
    depth=1,
    depth_single_blocks=2,
    context_dim=16,
    mlp_size=48,
    axes_dim=(4, 6, 6),
)
TEXT_ENCODER = TextEncoderConfig(
    vocab_size=64,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=32,
)
EMPTY = tuple(range(30))


def networks(dtype=torch.float32):
    torch.manual_seed(0)
    transformer, text_encoder = OvisImageTransformer(TRANSFORMER), TextEncoder(TEXT_ENCODER)
    for parameter in (*transformer.parameters(), *text_encoder.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    return transformer.to(dtype), text_encoder.to(dtype)


def batch_of(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    height, width = ((4, 6), (6, 4))[step % 2]  # aspect-ratio buckets
    latents = torch.randn(4, 16, height, width, generator=generator)
    prompts = [(*EMPTY, *torch.randint(64, (5 + i,), generator=generator).tolist()) for i in range(4)]
    return Batch(latents, prompts)


def trainer(config=None, run=call_block, batches=batch_of):
    config = config or TrainConfig(steps=8, warmup_steps=2, bf16=False)
    transformer, text_encoder = networks()
    modules = {"transformer": transformer, "text_encoder": text_encoder}
    return Trainer(modules, FlowLoss(transformer, text_encoder, EMPTY, config, run), batches, config)


@pytest.mark.parametrize("run", [call_block, checkpointed])
def test_gradients_equal_finite_differences(run):
    """Through the loss, the MMDiT and the text encoder in float64, along random directions."""
    transformer, text_encoder = networks(torch.float64)
    batch = batch_of(0)
    latents, noise = batch.latents.double(), torch.randn_like(batch.latents, dtype=torch.float64)
    sigmas = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
    parameters = [*transformer.parameters(), *text_encoder.parameters()]

    def loss():
        context = text_encoder(batch.prompts)
        return velocity_loss(lambda x, sigma: transformer(x, sigma, context, run=run), latents, sigmas, noise)

    gradients = torch.autograd.grad(loss(), parameters)
    assert all(gradient.abs().max() > 0 for gradient in gradients), "a parameter without an effect"
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        expected = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        eps = 1e-6
        with torch.no_grad():
            values = []
            for move in (eps, -2 * eps):
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter += move * direction
                values.append(loss())
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += eps * direction
        measured = (values[0] - values[1]) / (2 * eps)
        assert abs(measured - expected) / abs(expected) <= 1e-6


def test_checkpointed_blocks_give_the_same_gradients():
    runs = [trainer(run=run) for run in (call_block, checkpointed)]
    for _ in range(3):
        first, second = (run.train_step() for run in runs)
        assert first == second
    first, second = (run.state.parameters for run in runs)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_resumed_run_is_the_run(tmp_path, bf16):
    config = TrainConfig(steps=8, warmup_steps=2, bf16=bf16)
    whole = trainer(config)
    logs = list(whole.train())
    first = trainer(config)
    for _ in range(3):
        first.train_step()
    first.state.save(tmp_path / "state.safetensors")
    second = trainer(config)
    second.state.load(tmp_path / "state.safetensors")
    assert second.state.step == 3
    assert list(second.train()) == logs[3:]
    for key, value in whole.state.parameters.items():
        assert torch.equal(second.state.parameters[key], value), key
        assert torch.equal(second.state.ema[key], whole.state.ema[key]), key


def test_another_runs_checkpoint_is_refused(tmp_path):
    trainer().state.save(tmp_path / "state.safetensors")
    other = trainer(TrainConfig(steps=9, bf16=False))
    with pytest.raises(ValueError, match="state.safetensors belongs to a run with other settings"):
        other.state.load(tmp_path / "state.safetensors")


def test_it_learns_one_batch():
    config = TrainConfig(steps=60, lr=3e-3, warmup_steps=5, bf16=False, caption_dropout=0.0)
    run = trainer(config, batches=lambda step: batch_of(0))
    losses = [log["loss"] for log in run.train()]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_another_loss_is_trained_as_it_is():
    """The seam: a function of a batch and a generator."""
    (transformer, _), seen = networks(), []

    def loss(batch, generator):
        seen.append(generator.initial_seed())
        return transformer.img_in.weight.square().sum() + 0 * batch.latents.sum()

    config = TrainConfig(steps=3, bf16=False)
    run = Trainer({"transformer": transformer}, loss, batch_of, config)
    losses = [log["loss"] for log in run.train()]
    assert losses == sorted(losses, reverse=True)
    assert len({*seen}) == 3


def test_the_text_encoder_may_stay_as_it_is():
    transformer, text_encoder = networks()
    before = {key: value.clone() for key, value in text_encoder.state_dict().items()}
    text_encoder.requires_grad_(False)
    config = TrainConfig(4, bf16=False)
    loss = FlowLoss(transformer, text_encoder, EMPTY, config)
    run = Trainer({"transformer": transformer, "text_encoder": text_encoder}, loss, batch_of, config)
    list(run.train())
    assert all(torch.equal(before[key], value) for key, value in text_encoder.state_dict().items())
    assert run.state.averaged("text_encoder") == {}
    assert run.state.averaged("transformer").keys() == dict(transformer.named_parameters()).keys()


def test_captions_are_dropped_in_their_share(monkeypatch):
    run = trainer(TrainConfig(steps=200, caption_dropout=0.3, bf16=False))
    seen = []
    monkeypatch.setattr(run.loss, "encode", lambda prompts: seen.extend(prompts) or torch.zeros(1))
    monkeypatch.setattr("ovis_core.training.flow.flow_loss", lambda *arguments: None)
    for step in range(60):
        run.state.step = step
        run.loss(batch_of(step), run.state.generator(0))
    share = sum(tuple(prompt) == EMPTY for prompt in seen) / len(seen)
    assert 0.2 < share < 0.4


def test_noise_levels_follow_the_schedules_shift():
    generator = torch.Generator().manual_seed(0)
    for num_tokens in (64, 4096):
        sigmas = draw_sigmas(20_000, num_tokens, generator)
        assert abs(torch.logit(sigmas).mean() - shift_mu(num_tokens)) < 0.03
        assert abs(torch.logit(sigmas).std() - 1) < 0.03
    uniform = draw_sigmas(20_000, 64, generator, uniform=True)
    assert abs(uniform.mean() - 0.5) < 0.02
    assert abs(uniform.var() - 1 / 12) < 0.01


def test_learning_rates_warm_up_and_fall():
    config = TrainConfig(steps=100, lr=1.0, warmup_steps=10)
    rates = [config.lr_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[9], rel=0.05)
    assert rates[-1] < 0.01
    assert replace(config, decay="none").lr_at(99) == 1.0
    late = replace(config, decay="linear end")
    assert late.lr_at(79) == 1.0
    assert late.lr_at(90) == pytest.approx(0.5)
    assert late.lr_at(99) == pytest.approx(0.05)
    longer = replace(late, steps=200)  # the same until the shorter one ends
    assert [late.lr_at(step) for step in range(80)] == [longer.lr_at(step) for step in range(80)]
    again = replace(longer, restarts=(100,))  # the same run, then one more
    assert [again.lr_at(step) for step in range(100)] == [late.lr_at(step) for step in range(100)]
    assert again.lr_at(100) == again.lr_at(150) == 1.0
    assert again.lr_at(longer.steps - 1) == pytest.approx(5 / (longer.steps - 100))


@torch.no_grad()
def test_thinned_padding_is_the_padding_on_the_average():
    """All of it kept is the whole computation; a few drawn states miss it less than none at all."""
    transformer, text_encoder = networks()
    batch, sigma = batch_of(0), torch.full((4,), 0.5)
    context = text_encoder(batch.prompts)
    longest = max(map(len, batch.prompts)) - 28
    table = transformer.rotary_table(256, 4, 6, torch.device("cpu"))
    whole = transformer(batch.latents, sigma, context)

    def velocity(length, seed=0):
        generator = torch.Generator().manual_seed(seed)
        thinned, attention = thin_padding(context, table, longest, length, generator)
        assert thinned.shape[1] == length
        return transformer(batch.latents, sigma, thinned, attention)

    torch.testing.assert_close(velocity(256), whole, rtol=1e-4, atol=1e-5)
    mean = torch.stack([velocity(longest + 4, seed) for seed in range(16)]).mean(0)
    without = transformer(batch.latents, sigma, context[:, :longest])
    assert (mean - whole).norm() < 0.3 * (without - whole).norm()
    assert not torch.equal(velocity(longest + 4, 0), velocity(longest + 4, 1))


def test_a_caption_that_does_not_fit_is_refused():
    run = trainer(TrainConfig(steps=2, bf16=False, context_tokens=10))
    with pytest.raises(ValueError, match="up to 10 text states, but context_tokens is 10; from 14 to 256"):
        run.train_step()
    trainer(TrainConfig(steps=2, bf16=False, context_tokens=14)).train_step()


def test_steps_that_explode_are_skipped_then_training_stops():
    run = trainer()
    before = {key: value.clone() for key, value in run.state.parameters.items()}
    run.batch_of = lambda step: replace(batch_of(step), latents=torch.full((4, 16, 4, 4), float("nan")))
    for _ in range(3):
        run.train_step()
    assert all(torch.equal(before[key], value) for key, value in run.state.parameters.items())
    with pytest.raises(ValueError, match="not finite in 4 steps in a row, up to step 3"):
        run.train_step()


def pictures_of(step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.rand(2, 3, 1, 1, generator=generator).expand(-1, -1, 16, 16) * 2 - 1


def test_the_autoencoder_learns_and_resumes(tmp_path):
    def start():
        torch.manual_seed(0)
        return train_autoencoder(
            Autoencoder(AutoencoderConfig((64, 64), 1, 4)), pictures_of, AutoencoderTrainConfig(40)
        )

    state, steps = start()
    logs = list(steps)
    assert sum(log["loss"] for log in logs[-5:]) < 0.6 * sum(log["loss"] for log in logs[:5])
    first, steps = start()
    for _ in range(20):
        next(steps)
    first.save(tmp_path / "state.safetensors")
    second, steps = start()
    second.load(tmp_path / "state.safetensors")
    assert list(steps) == logs[20:]
    assert all(torch.equal(second.ema[key], value) for key, value in state.ema.items())


def test_balanced_latents_have_deviation_one_and_decode_the_same():
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig((64, 64), 1, 4))
    pictures = torch.rand(4, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        before = autoencoder.decode(autoencoder.encode(pictures))
        balance_latents(autoencoder, pictures)
        latents = autoencoder.encode(pictures)
        assert torch.allclose(normalize(latents).std((0, 2, 3)), torch.ones(4), atol=1e-4)
        assert torch.allclose(autoencoder.decode(latents), before, atol=1e-4)
