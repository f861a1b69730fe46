"""Samplers, batches and masks through our sampler's adapter, on the small model in this process."""

import gc
import re
import weakref

import pytest
import torch

from ovis_core.sampling import SOLVERS, flow_sigmas


@pytest.fixture(scope="module")
def conditioning():
    generator = torch.Generator().manual_seed(0)
    return [[[torch.randn(1, 40, 32, generator=generator), {}]] for _ in range(2)]


@pytest.fixture
def sample(pack, model, conditioning):
    """Runs the sampler node's steps on a latent -> samples."""
    adapter, guidance = pack("nodes.adapters.sampling.sampler"), pack("nodes.adapters.sampling.guidance")

    told = []

    @torch.inference_mode()
    def run(latent, seed=3, steps=4, cfg=5.0, sampler="euler", denoise=1.0, positive=None, noise="comfyui"):
        samples = adapter.fit_latent(model, latent)
        sigmas = adapter.schedule(model, samples, steps, denoise)
        guider = guidance.plain_guidance(model, positive or conditioning[0], conditioning[1], cfg)
        start = adapter.make_noise(samples, latent, seed, noise)
        told.clear()
        return adapter.sample(guider, latent, samples, start, sampler, sigmas, seed, told.append)["samples"]

    run.told = told
    return run


def empty(batch=1, height=8, width=12):
    return {"samples": torch.zeros(batch, 16, height, width)}


def test_every_sampler_of_comfyui_runs(pack, sample):
    names = pack("nodes.adapters.sampling.sampler").SAMPLER_NAMES
    assert len(names) > 40
    assert names[0] == "euler"
    for name in names:
        result = sample(empty(), sampler=name)
        assert result.isfinite().all(), name
        assert result.std() > 0.1, name


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_are_comfyuis_of_the_same_name(pack, model, conditioning, name):
    import comfy.samplers

    noise = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(1))
    sigmas = flow_sigmas(6, 24)
    guider = pack("nodes.adapters.sampling.guidance").plain_guidance(model, conditioning[0], None, 1.0)
    context = conditioning[0][0][0].expand(2, -1, -1)
    with torch.inference_mode():
        theirs = guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object(name), sigmas)
        network = model.model.diffusion_model
        ours = SOLVERS[name](lambda x, sigma: network(x, sigma, context), noise, sigmas)
    theirs = (theirs - 0.1159) * 0.3611
    assert (ours - theirs).norm() / theirs.norm() <= 1e-5


def test_an_image_of_a_batch_is_the_image_of_its_seed_and_index(sample):
    together = sample(empty(3))
    for i in range(3):
        alone = sample({**empty(), "batch_index": [i]})
        assert torch.allclose(together[i : i + 1], alone, atol=1e-4), i
    chosen = sample({**empty(2), "batch_index": [2, 0]})
    assert torch.allclose(chosen, together[[2, 0]], atol=1e-4)


@pytest.mark.parametrize("noise", ["comfyui", "reference"])
def test_seeds_repeat_and_differ(sample, noise):
    first = sample(empty(), seed=2**64 - 1, noise=noise)
    assert torch.equal(sample(empty(), seed=2**64 - 1, noise=noise), first)
    assert not torch.allclose(sample(empty(), seed=0, noise=noise), first, atol=1e-2)


def test_image_to_image_starts_where_denoise_says(sample):
    latents = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(5))
    changes = [(sample({"samples": latents}, denoise=d) - latents).norm() for d in (0.0, 0.2, 0.5, 0.9)]
    assert changes[0] == 0
    assert changes[0] < changes[1] < changes[2] < changes[3]


def test_what_a_mask_protects_is_kept(sample):
    latents = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(5))
    mask = torch.zeros(1, 1, 64, 96)
    mask[..., :48] = 1
    for denoise in (1.0, 0.6):
        result = sample({"samples": latents, "noise_mask": mask}, denoise=denoise)
        assert torch.allclose(result[..., 6:], latents[..., 6:], atol=1e-4)
        assert (result[..., :6] - latents[..., :6]).abs().mean() > 0.1


def test_prompts_of_a_batch_may_differ_in_length_and_number(pack, sample, conditioning):
    """Conditionings of other lengths than 256, as from ComfyUI's own CLIP, and two combined in one."""
    long = [[torch.randn(1, 300, 32, generator=torch.Generator().manual_seed(9)), {}]]
    assert sample(empty(2), positive=long).isfinite().all()
    combined = sample(empty(), positive=conditioning[0] + long)
    assert not torch.allclose(combined, sample(empty()), atol=1e-3)


def test_timestep_ranges_areas_and_strengths_act(sample, conditioning):
    states = conditioning[0][0][0]
    other = torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(9))
    plain = sample(empty())
    late = [
        [states, {"start_percent": 0.0, "end_percent": 0.5}],
        [other, {"start_percent": 0.5, "end_percent": 1.0}],
    ]
    area = [[states, {}], [other, {"area": (8, 6, 0, 0), "strength": 1.0, "set_area_to_bounds": False}]]
    for positive in (late, area):
        result = sample(empty(), positive=positive)
        assert result.isfinite().all()
        assert not torch.allclose(result, plain, atol=1e-2)


def test_latents_that_are_none_are_refused(pack, model):
    fit = pack("nodes.adapters.sampling.sampler").fit_latent
    for shape in ((1, 16, 1, 8, 8), (0, 16, 8, 8), (16, 8, 8)):
        with pytest.raises(ValueError, match="images have"):
            fit(model, {"samples": torch.zeros(shape)})


def test_a_step_that_explodes_is_named(model, sample):
    weight = model.model.diffusion_model.final_layer.linear.bias
    before = weight.clone()
    weight.data.fill_(float("inf"))
    try:
        with pytest.raises(ValueError, match=r"step 1 of 4 \(in torch.float32\) holds NaN"):
            sample(empty())
    finally:
        weight.data.copy_(before)


def test_a_steps_numbers_are_looked_at_when_the_next_one_has_come(pack):
    """So that nothing waits for the device; the last ones at the end."""
    make = pack("nodes.adapters.sampling.checks").FiniteChecks
    bad, good = torch.tensor([float("nan")]), torch.zeros(1)
    checks = make("do this")
    checks.add(good, "step 1")
    checks.add(bad, "step 2")
    with pytest.raises(ValueError, match="^step 2 holds NaN or infinite values; do this$"):
        checks.add(good, "step 3")
    checks = make("do this")
    checks.add(bad, "step 1")
    with pytest.raises(ValueError, match="^step 1 holds"):
        checks.finish()
    checks = make("do this")
    checks.add(good, "step 1")
    checks.finish()


def test_steps_are_told_with_their_times(sample):
    sample(empty(), steps=3)
    first, second, last = sample.told
    assert first == "step 1 of 3"
    assert re.fullmatch(r"step 2 of 3, \d+\.\d\d s each, \d+ s left", second)
    assert re.fullmatch(r"3 steps, \d+\.\d\d s each", last)


def test_interruption_stops_within_the_step_and_leaves_nothing_behind(model, sample):
    import comfy.model_management as management

    expected = sample(empty(), steps=4)
    blocks = model.model.diffusion_model.single_blocks
    runs, images = [], []

    def interrupt(block, args, out):
        runs.append(block)
        images.append(weakref.ref(args[0]))
        if len(runs) == len(blocks) + 1:  # in the second step, with blocks still to come
            management.interrupt_current_processing()

    handles = [block.register_forward_hook(interrupt) for block in blocks]
    try:
        with pytest.raises(management.InterruptProcessingException):
            sample(empty(), steps=4)
    finally:
        for handle in handles:
            handle.remove()
    assert len(runs) == len(blocks) + 1 < 2 * len(blocks)
    gc.collect()
    assert not any(image() is not None for image in images), "tensors of the interrupted step are kept"
    assert any(loaded.model.model is model.model for loaded in management.current_loaded_models)
    management.unload_all_models()
    assert not any(loaded.model.model is model.model for loaded in management.current_loaded_models)
    assert torch.equal(sample(empty(), steps=4), expected)
