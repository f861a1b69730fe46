import pytest
import torch

from ovis_core.guidance import Guidance, optimal_scale


@pytest.fixture
def velocities():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 16, 8, 8, generator=generator), torch.randn(3, 16, 8, 8, generator=generator)


def test_default_is_classifier_free_guidance(velocities):
    positive, negative = velocities
    expected = negative + 5.0 * (positive - negative)
    assert torch.allclose(Guidance().join(positive, negative), expected, atol=1e-5)


def test_interval_includes_its_ends():
    guidance = Guidance(start=0.8, end=0.2)
    assert [guidance.is_active(sigma) for sigma in (1.0, 0.8, 0.5, 0.2, 0.1)] == [
        False,
        True,
        True,
        True,
        False,
    ]
    assert not Guidance(cfg=1.0).is_active(0.5)


def test_full_rescale_has_the_positives_deviation(velocities):
    positive, negative = velocities
    plain, full = Guidance().join(positive, negative), Guidance(rescale=1.0).join(positive, negative)
    dims = (1, 2, 3)
    assert torch.allclose(full.std(dims), positive.std(dims), rtol=1e-4)
    half = Guidance(rescale=0.5).join(positive, negative)
    assert torch.allclose(half, (plain + full) / 2, atol=1e-5)


def test_optimal_scale_is_the_least_squares_one_of_each_image(velocities):
    positive, negative = velocities
    scale = optimal_scale(positive, negative)
    assert scale.shape == (3, 1, 1, 1)
    rest = positive - scale * negative
    assert (rest * negative).sum((1, 2, 3)).abs().max() < 1e-3
    assert torch.allclose(optimal_scale(2 * negative, negative), torch.full((3, 1, 1, 1), 2.0))
    assert optimal_scale(positive, torch.zeros_like(negative)).eq(0).all()


def test_zero_star_equals_plain_guidance_with_the_scaled_negative(velocities):
    positive, negative = velocities
    scaled = optimal_scale(positive, negative) * negative
    expected = Guidance().join(positive, scaled)
    assert torch.allclose(Guidance(zero_star=True).join(positive, negative), expected, atol=1e-5)
