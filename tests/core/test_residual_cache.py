"""The cache on a network whose blocks do what a test says, and on the small model."""

import logging

import pytest
import torch

from ovis_core.guidance import Guidance
from ovis_core.pipeline import load_pipeline
from ovis_core.residual_cache import CacheSettings, ResidualCache, cached
from ovis_core.sampling import flow_sigmas, guided, sample_euler, sample_heun

STEPS = 12
SHAPE = 2, 5, 3  # B, L, D


class Blocks:
    """Two blocks: the first adds `first`, the other adds `rest`; counts how often the other runs."""

    def __init__(self):
        self.computed = 0

    def __call__(self, forward, first, rest, shape=SHAPE):
        img, txt = forward("double", 0, lambda img, txt: (img + first, txt), torch.zeros(shape), "text")
        assert txt == "text"
        img = forward("single", 0, lambda img: self.add(img, rest), img)
        return forward("last", 0, lambda img: img, img)

    def add(self, img, rest):
        self.computed += 1
        return img + rest


@pytest.fixture
def blocks():
    return Blocks()


def evaluate(cache, blocks, sigma, firsts, rest=1.0, together=True):
    """One evaluation with a branch for each of `firsts`, in one forward or one for each -> image tokens."""

    def run():
        if not together:
            return torch.cat([blocks(cache.forward([i]), first, rest) for i, first in enumerate(firsts)])
        first = torch.cat([torch.full(SHAPE, float(first)) for first in firsts])
        return blocks(cache.forward(range(len(firsts))), first, rest, first.shape)

    return cache.evaluate(sigma, run)


def settings(**changed):
    return CacheSettings(**{"threshold": 0.1, "warmup": 0, "max_skips": 100, "order": 0} | changed)


def computed_steps(cache, firsts, together=True):
    """Which of the evaluations computed all blocks, with the same first residual in both branches."""
    blocks, computed = Blocks(), []
    for i, first in enumerate(firsts):
        before = blocks.computed
        evaluate(cache, blocks, 1 - i / 100, [first, first], together=together)
        computed.append(blocks.computed > before)
    return computed


@pytest.mark.parametrize("together", [True, False])
def test_small_changes_are_skipped_until_they_add_up(together):
    # Relative to the last computed evaluation: 4%, 8% and then 12% of the first one, 8% of the fourth.
    firsts = [1.0, 1.04, 1.08, 1.12, 1.21]
    assert computed_steps(ResidualCache(settings()), firsts, together) == [True, False, False, True, False]


def test_warm_up_and_the_most_skips_in_a_row():
    cache = ResidualCache(settings(warmup=3, max_skips=2))
    assert computed_steps(cache, [1.0] * 10) == [True] * 3 + [False, False, True] * 2 + [False]
    assert (cache.num_computed, cache.num_forwards) == (10, 20)
    assert cache.report == "10 of 20 forwards computed"


@pytest.mark.parametrize("off", [{"threshold": 0.0}, {"max_skips": 0}])
def test_off_computes_everything_and_keeps_nothing(off):
    cache = ResidualCache(settings(**off))
    assert computed_steps(cache, [1.0] * 5) == [True] * 5
    assert all(branch.first is None and not branch.rest for branch in cache._branches.values())


@pytest.mark.parametrize("moved", [0, 1])
@pytest.mark.parametrize("together", [True, False])
def test_branches_are_skipped_together_or_not_at_all(blocks, moved, together):
    """Also when the one that has moved comes in a second forward, after the first was skipped."""
    cache = ResidualCache(settings())
    evaluate(cache, blocks, 1.0, [1.0, 1.0], together=together)
    blocks.computed = 0
    firsts = [1.0, 1.0]
    firsts[moved] = 2.0
    tokens = evaluate(cache, blocks, 0.9, firsts, rest=5.0, together=together)
    expected = torch.cat([torch.full(SHAPE, first + 5.0) for first in firsts])
    assert torch.equal(tokens, expected)
    assert blocks.computed == (1 if together else 2)
    assert (cache.num_computed, cache.num_forwards) == (4, 4)


def test_one_picture_of_a_batch_that_moves_is_enough(blocks):
    cache = ResidualCache(settings())
    for first in (torch.ones(SHAPE), torch.tensor([1.0, 1.2])[:, None, None].expand(SHAPE)):
        cache.evaluate(0.9, lambda first=first: blocks(cache.forward(["a"]), first, 1.0))
    assert blocks.computed == 2


def test_each_branch_reuses_its_own_residual(blocks):
    cache = ResidualCache(settings())
    rest = torch.cat((torch.full(SHAPE, 2.0), torch.full(SHAPE, 7.0)))
    evaluate(cache, blocks, 1.0, [1.0, 1.0], rest)
    # In another order, as when ComfyUI batches them anew.
    forward = cache.evaluate(0.9, lambda: blocks(cache.forward([1, 0]), 1.0, 0.0, (4, 5, 3)))
    assert blocks.computed == 1
    assert torch.equal(forward, torch.cat((torch.full(SHAPE, 8.0), torch.full(SHAPE, 3.0))))


def test_a_conditioning_that_comes_twice_is_two_branches(blocks):
    """As for tiles, or for a second forward with layers left out."""
    cache = ResidualCache(settings())

    def run():
        return [blocks(cache.forward(["a"]), 1.0, rest) for rest in (2.0, 7.0)]

    cache.evaluate(1.0, run)
    first, second = cache.evaluate(0.9, run)
    assert blocks.computed == 2
    assert (first[0, 0, 0], second[0, 0, 0]) == (3.0, 8.0)


def test_a_branch_that_was_away_is_computed_and_the_others_with_it(blocks):
    """Guidance in an interval: the negative comes and goes."""
    cache = ResidualCache(settings())
    for sigma, firsts, computed in ((1.0, 2, 1), (0.9, 1, 1), (0.8, 2, 2), (0.7, 2, 2)):
        evaluate(cache, blocks, sigma, [1.0] * firsts)
        assert blocks.computed == computed


def test_order_1_follows_a_line_in_sigma(blocks):
    def rest(sigma):
        return 3.0 - 2.0 * sigma

    def run(sigma):
        return evaluate(cache, blocks, sigma, [1.0], rest(sigma))[0, 0, 0].item()

    cache = ResidualCache(settings(order=1, warmup=2))
    for sigma in (1.0, 0.9):
        run(sigma)
    for sigma in (0.7, 0.65, 0.2):
        assert run(sigma) == pytest.approx(1.0 + rest(sigma), abs=1e-5)
    assert blocks.computed == 2
    cache = ResidualCache(settings(warmup=2))
    for sigma in (1.0, 0.9):
        run(sigma)
    assert run(0.7) == pytest.approx(1.0 + rest(0.9))


def test_a_second_evaluation_at_a_sigma_replaces_the_first(blocks):
    cache = ResidualCache(settings(order=1, warmup=3))
    for sigma, rest in ((1.0, 1.0), (0.9, 5.0), (0.9, 2.0), (0.8, 0.0)):
        tokens = evaluate(cache, blocks, sigma, [1.0], rest)
    assert tokens[0, 0, 0].item() == pytest.approx(1.0 + 3.0)


@pytest.mark.parametrize("order", [0, 1])
def test_a_rising_sigma_or_another_size_starts_anew(blocks, order):
    cache = ResidualCache(settings(order=order, warmup=2))
    for sigma in (0.5, 0.4, 0.3):
        evaluate(cache, blocks, sigma, [1.0])
    assert blocks.computed == 2
    for sigma in (0.6, 0.5):  # warm-up again
        evaluate(cache, blocks, sigma, [1.0], rest=9.0)
    assert blocks.computed == 4
    large = (2, 7, 3)
    for sigma, computed in ((0.4, 5), (0.3, 5)):
        tokens = cache.evaluate(sigma, lambda: blocks(cache.forward([0]), 1.0, 4.0, large))
        assert blocks.computed == computed
        assert torch.equal(tokens, torch.full(large, 5.0))


def test_nan_is_never_reused(blocks):
    cache = ResidualCache(settings())
    evaluate(cache, blocks, 1.0, [float("nan")])
    evaluate(cache, blocks, 0.9, [float("nan")])
    evaluate(cache, blocks, 0.8, [1.0])
    assert blocks.computed == 3


def test_a_step_that_asks_nothing_of_the_network_counts_nothing():
    cache = ResidualCache(settings(warmup=1))
    assert cache.evaluate(1.0, lambda: "left out") == "left out"
    assert cache.num_forwards == 0
    assert computed_steps(cache, [1.0, 1.0]) == [True, False]


@pytest.mark.parametrize("wrong", [{"threshold": -0.1}, {"warmup": -1}, {"max_skips": -1}, {"order": 2}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="must be 0 or more"):
        settings(**wrong)


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 16, 8, 12, generator=generator)
    return noise, torch.randn(1, 40, 32, generator=generator), torch.randn(1, 40, 32, generator=generator)


@torch.inference_mode()
def sample(transformer, inputs, given, solver=sample_euler, cfg=5.0):
    """A run with the small model -> latents and the cache."""
    noise, *contexts = inputs
    cache = ResidualCache(given)

    def velocity(key):
        context = contexts[key].expand(len(noise), -1, -1)
        return lambda x, sigma: transformer(x, sigma, context, run=cache.forward([key]))

    run = cached(guided(velocity(0), velocity(1), Guidance(cfg)), cache)
    return solver(run, noise, flow_sigmas(STEPS, 24)), cache


@pytest.mark.parametrize("solver", [sample_euler, sample_heun])
def test_threshold_0_is_the_network_to_the_bit(parts, inputs, solver):
    noise, positive, negative = inputs

    def velocity(context):
        return lambda x, sigma: parts[0](x, sigma, context.expand(len(x), -1, -1))

    with torch.inference_mode():
        plain = solver(
            guided(velocity(positive), velocity(negative), Guidance()), noise, flow_sigmas(STEPS, 24)
        )
    latents, cache = sample(parts[0], inputs, CacheSettings(threshold=0.0), solver)
    assert torch.equal(latents, plain)
    evaluations = STEPS if solver is sample_euler else 2 * STEPS - 1
    assert cache.num_computed == cache.num_forwards == 2 * evaluations


@pytest.mark.parametrize("order", [0, 1])
def test_the_small_model_comes_close_with_fewer_forwards(parts, inputs, order):
    exact, _ = sample(parts[0], inputs, CacheSettings(threshold=0.0))
    errors, computed = [], []
    for threshold in (0.05, 0.5, 100.0):
        latents, cache = sample(parts[0], inputs, CacheSettings(threshold, 2, 2, order))
        errors.append(((latents - exact).norm() / exact.norm()).item())
        computed.append(cache.num_computed)
    assert computed[0] > computed[-1] == 2 * (2 + (STEPS - 2) // 3)
    assert 0 < errors[-1] < 0.5
    assert errors == sorted(errors)


def test_the_pipelines_option(diffusers_folder, caplog):
    pipeline = load_pipeline(diffusers_folder)
    arguments = {"width": 64, "height": 64, "steps": 8}
    exact = pipeline("a cat", **arguments)
    assert torch.equal(pipeline("a cat", **arguments, cache=CacheSettings(threshold=0.0)), exact)
    with caplog.at_level(logging.INFO, "ovis_core.pipeline"):
        skipped = pipeline("a cat", **arguments, cache=CacheSettings(100.0, warmup=2, max_skips=1))
    assert not torch.equal(skipped, exact)
    assert "10 of 16 forwards computed" in caplog.text
