import numpy as np
import pytest
import torch

from ovis_core.guidance import Guidance
from ovis_core.latents import num_image_tokens
from ovis_core.sampling import (
    SOLVERS,
    flow_sigmas,
    guided,
    reference_noise,
    sample_dpmpp_2m,
    sample_euler,
    sample_heun,
    shift_mu,
)

SIZES = [
    *(
        (256, 256),
        (512, 512),
        (768, 768),
        (1024, 1024),
        (1280, 1280),
        (1536, 1536),
        (2048, 2048),
        (512, 2048),
        (2048, 512),
    ),
    *(
        (768, 1344),
        (1344, 768),
        (832, 1248),
        (896, 1120),
        (720, 1440),
        (1568, 672),
        (592, 1776),
        (1392, 784),
        (16, 16),
    ),
    *((1664, 928), (1328, 1328)),
]


@pytest.mark.parametrize("steps", [1, 8, 20, 28, 50])
def test_schedule_equals_diffusers(diffusers_pipeline, steps):
    from diffusers.pipelines.ovis_image.pipeline_ovis_image import calculate_shift

    assert len(SIZES) == 20
    for width, height in SIZES:
        tokens = num_image_tokens(height // 8, width // 8)
        scheduler = diffusers_pipeline.scheduler
        scheduler.set_timesteps(
            sigmas=np.linspace(1.0, 1 / steps, steps),
            mu=calculate_shift(tokens, 256, 4096, 0.5, 1.15),
            device="cpu",
        )
        ours = flow_sigmas(steps, tokens)
        assert ours.dtype == torch.float32
        assert (ours - scheduler.sigmas).abs().max() <= 1e-6, (width, height)


def test_shift_has_the_reference_values():
    assert shift_mu(4096) == pytest.approx(1.15, abs=0)
    assert np.exp(shift_mu(num_image_tokens(64, 64))) == pytest.approx(1.88, abs=5e-3)
    assert np.exp(shift_mu(num_image_tokens(256, 256))) == pytest.approx(25.3, abs=5e-2)


@pytest.mark.parametrize(("denoise", "total"), [(0.5, 20), (0.3, 33), (1.0, 10)])
def test_denoise_keeps_the_end_of_the_grid(denoise, total):
    assert torch.equal(flow_sigmas(10, 4096, denoise), flow_sigmas(total, 4096)[-11:])


def test_denoise_zero_is_no_step_and_nonsense_is_refused():
    assert len(flow_sigmas(10, 4096, 0.0)) == 0
    for steps, denoise in ((0, 1.0), (10, 1.5), (10, float("nan"))):
        with pytest.raises(ValueError, match="steps must be at least 1"):
            flow_sigmas(steps, 4096, denoise)


def toy_velocity(x, sigma):
    """The exact velocity when the data is a Gaussian of mean 3 and deviation 1/2: the flow has a closed
    form.
    """
    s = sigma.view(-1, 1, 1, 1)
    variance = (1 - s) ** 2 * 0.25 + s**2
    return (s - (1 - s) * 0.25) / variance * (x - (1 - s) * 3) - 3


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_converge_to_the_exact_flow(name):
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = 3 + 0.5 * x
    errors = [
        (SOLVERS[name](toy_velocity, x, flow_sigmas(steps, 4096).double()) - exact).abs().max().item()
        for steps in (40, 160)
    ]
    order = {"euler": 1, "heun": 2, "dpmpp_2m": 1}[
        name
    ]  # 2M falls back to first order in its last step, which dominates
    assert errors[1] < errors[0] / 4**order * 1.5


def test_solvers_evaluate_as_often_as_they_should():
    for solver, evaluations in ((sample_euler, 8), (sample_heun, 15), (sample_dpmpp_2m, 8)):
        seen, finished = [], []

        def velocity(x, sigma, seen=seen):
            seen.append(sigma.tolist())
            return torch.zeros_like(x)

        solver(
            velocity,
            torch.zeros(3, 1, 1, 1),
            flow_sigmas(8, 256),
            lambda i, denoised, f=finished: f.append(i),
        )
        assert len(seen) == evaluations
        assert all(len(sigma) == 3 for sigma in seen)
        assert finished == list(range(8))


def test_the_negative_is_computed_only_where_guidance_is_active():
    computed = []

    def negative(x, sigma):
        computed.append(sigma.item())
        return torch.zeros_like(x)

    x, sigmas = torch.ones(1, 1, 1, 1), flow_sigmas(10, 256)
    for guidance, expected in (
        (Guidance(1.0), []),
        (Guidance(5.0), sigmas[:-1].tolist()),
        (Guidance(5.0, start=0.8, end=0.3), [s for s in sigmas.tolist() if 0.3 <= s <= 0.8]),
    ):
        computed.clear()
        sample_euler(guided(lambda x, s: x, negative, guidance), x, sigmas)
        assert computed == expected


def test_reference_noise_is_drawn_in_bfloat16_and_repeats():
    noise = reference_noise((1, 16, 8, 8), 42)
    assert noise.dtype == torch.bfloat16
    assert torch.equal(noise, reference_noise((1, 16, 8, 8), 42))
    in_float32 = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(42))
    assert (noise == in_float32.bfloat16()).float().mean() < 0.05
