import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovis_core.latents import (
    image_ids,
    num_image_tokens,
    pack_latents,
    pad_to_patch,
    text_ids,
    unpack_latents,
)

sides = st.integers(1, 40)


@given(sides, sides)
@settings(deadline=None, max_examples=50)
def test_any_size_survives_padding_and_packing(height, width):
    latents = torch.randn(2, 16, height, width)
    padded = pad_to_patch(latents)
    tokens = pack_latents(padded)
    assert tokens.shape == (2, num_image_tokens(height, width), 64)
    assert len(image_ids(*padded.shape[-2:])) == tokens.shape[1]
    assert torch.equal(unpack_latents(tokens, *padded.shape[-2:])[..., :height, :width], latents)


def test_packing_and_positions_are_diffusers(diffusers_pipeline):
    latents = torch.randn(3, 16, 24, 42)
    packed = diffusers_pipeline._pack_latents(latents, 3, 16, 24, 42)
    assert torch.equal(pack_latents(latents), packed)
    expected = diffusers_pipeline._prepare_latent_image_ids(3, 12, 21, "cpu", torch.float32)
    assert torch.equal(image_ids(24, 42), expected)
    assert torch.equal(text_ids(3), torch.tensor([[0.0, 0, 0], [0, 1, 1], [0, 2, 2]]))
