"""OvisImageGuider on the real model, beside ComfyUI's guiders and the core's guidance."""

import pytest
import torch

from ovis_core.guidance import Guidance
from ovis_core.sampling import flow_sigmas, guided, sample_euler

STEPS = 6


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 16, 16, 24, generator=generator)
    positive, negative = (torch.randn(1, 40, 32, generator=generator) for _ in range(2))
    return noise, positive, negative


@pytest.fixture
def forwards(model):
    """Batch sizes of the network's evaluations on a clone of the model -> (clone, list)."""
    import comfy.patcher_extension

    sizes = []
    clone = model.clone()

    def count(executor, x, *args, **kwargs):
        sizes.append(len(x))
        return executor(x, *args, **kwargs)

    clone.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, count)
    return clone, sizes


def run(guider, noise, sampler="euler", steps=STEPS):
    import comfy.samplers

    sigmas = flow_sigmas(steps, 8 * 12)
    with torch.inference_mode():
        latents = guider.sample(
            noise, torch.zeros_like(noise), comfy.samplers.sampler_object(sampler), sigmas
        )
    return (latents - 0.1159) * 0.3611


def core(parts, inputs, guidance):
    noise, positive, negative = inputs

    def velocity(context):
        return lambda x, sigma: parts[0](x, sigma, context.expand(len(x), -1, -1))

    with torch.inference_mode():
        return sample_euler(
            guided(velocity(positive), velocity(negative), guidance), noise, flow_sigmas(STEPS, 8 * 12)
        )


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(),
        Guidance(cfg=1.0),
        Guidance(start=0.9, end=0.4),
        Guidance(rescale=0.7),
        Guidance(zero_star=True),
        Guidance(cfg=7.5, start=0.95, rescale=0.3, zero_star=True),
    ],
    ids=str,
)
def test_guider_equals_the_core(pack, model, parts, inputs, guidance):
    noise, positive, negative = inputs
    conds = [[positive, {}]], [[negative, {}]]
    guider = pack("nodes.adapters.sampling.guidance").FlowGuider(model, *conds, guidance)
    ours, expected = run(guider, noise), core(parts, inputs, guidance)
    assert (ours - expected).norm() / expected.norm() <= 1e-5


def test_plain_guidance_is_comfyuis_to_the_bit(pack, model, inputs):
    import comfy.samplers

    noise, positive, negative = inputs
    conds = [[positive, {}]], [[negative, {}]]
    stock = comfy.samplers.CFGGuider(model)
    stock.set_conds(*conds)
    stock.set_cfg(5.0)
    ours = pack("nodes.adapters.sampling.guidance").plain_guidance(model, *conds, 5.0)
    assert torch.equal(run(ours, noise), run(stock, noise))


def test_outside_the_interval_the_negative_is_not_computed(pack, forwards, inputs):
    model, sizes = forwards
    noise, positive, negative = inputs
    conds = [[positive, {}]], [[negative, {}]]
    guider = pack("nodes.adapters.sampling.guidance").FlowGuider
    sigmas = flow_sigmas(STEPS, 8 * 12)[:-1]
    active = int(((sigmas <= 0.9) & (sigmas >= 0.4)).sum())
    assert 0 < active < STEPS
    for guidance, num_active in (
        (Guidance(), STEPS),
        (Guidance(start=0.9, end=0.4), active),
        (Guidance(1.0), 0),
    ):
        sizes.clear()
        run(guider(model, *conds, guidance), noise)
        assert sum(sizes) == 2 * (STEPS + num_active)  # two images, and again for the negative


def test_left_out_steps_compute_nothing_and_change_nothing(pack, forwards, inputs):
    model, sizes = forwards
    noise, positive, negative = inputs
    conds = [[positive, {}]], [[negative, {}]]
    seen = []
    guider = pack("nodes.adapters.sampling.guidance").FlowGuider(model, *conds, Guidance(zero_init_steps=2))
    import comfy.samplers

    with torch.inference_mode():
        guider.sample(
            noise,
            torch.zeros_like(noise),
            comfy.samplers.sampler_object("euler"),
            flow_sigmas(STEPS, 8 * 12),
            callback=lambda step, denoised, x, total: seen.append(x.clone()),
        )
    assert sum(sizes) == 2 * 2 * (STEPS - 2)
    assert torch.equal(seen[0], noise)
    assert torch.allclose(seen[2], noise, atol=1e-6)
    assert not torch.allclose(seen[3], noise, atol=1e-3)


def test_two_passes_give_what_one_batch_gives(pack, forwards, inputs, monkeypatch):
    model, sizes = forwards
    noise, positive, negative = inputs
    make = pack("nodes.adapters.sampling.guidance").plain_guidance
    guider = make(model, [[positive, {}]], [[negative, {}]], 5.0)
    together = run(guider, noise)
    assert set(sizes) == {4}
    sizes.clear()
    monkeypatch.setattr(model.model, "memory_required", lambda shape, cond_shapes=None: shape[0] * 1e15)
    apart = run(guider, noise)
    assert set(sizes) == {2}
    assert (together - apart).norm() / apart.norm() <= 1e-5


def test_an_empty_interval_is_refused(pack, model, inputs):
    _, positive, negative = inputs
    with pytest.raises(ValueError, match="cfg_start 0.2 lies below cfg_end 0.8"):
        pack("nodes.adapters.sampling.guidance").corrected_guidance(
            model, [[positive, {}]], [[negative, {}]], 5.0, 0.2, 0.8, 0.0, False, 0
        )


def test_the_node_drives_the_stock_sampler(server):
    workflow = server.graph(steps=3)
    expected = server.latent(workflow, "5")
    ours = workflow["5"]["inputs"]
    nodes = {
        "noise": ("RandomNoise", {"noise_seed": ours["seed"]}),
        "sampler": ("KSamplerSelect", {"sampler_name": "euler"}),
        "sigmas": (
            "OvisImageScheduler",
            {"model": ["1", 0], "latent_image": ["4", 0], "steps": 3, "denoise": 1.0},
        ),
        "guider": (
            "OvisImageGuider",
            {
                **{key: ours[key] for key in ("model", "positive", "negative", "cfg")},
                **{"cfg_start": 1.0, "cfg_end": 0.0, "cfg_rescale": 0.0, "cfg_zero_star": False},
                "zero_init_steps": 0,
            },
        ),
        "5": (
            "SamplerCustomAdvanced",
            {
                **{name: [name, 0] for name in ("noise", "guider", "sampler", "sigmas")},
                "latent_image": ["4", 0],
            },
        ),
    }
    for name, (class_type, inputs) in nodes.items():
        workflow[name] = {"class_type": class_type, "inputs": inputs}
    assert torch.equal(server.latent(workflow, "5"), expected)
    workflow["guider"]["inputs"].update(cfg_start=0.9, cfg_rescale=0.5, cfg_zero_star=True)
    assert not torch.allclose(server.latent(workflow, "5"), expected, atol=1e-2)
