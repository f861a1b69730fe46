import pytest
import torch
from torch.nn import functional

from ovis_core.autoencoder import Autoencoder, AutoencoderConfig, denormalize, normalize


@pytest.mark.parametrize("size", [(64, 64), (96, 168), (64, 256), (256, 64)])
@pytest.mark.parametrize("batch", [1, 3])
def test_encode_and_decode_equal_diffusers(parts, diffusers_pipeline, size, batch):
    vae = diffusers_pipeline.vae
    image = torch.rand(batch, 3, *size) * 2 - 1
    with torch.no_grad():
        ours, theirs = parts[2].encode(image), vae.encode(image).latent_dist.mean
        assert theirs.std() > 0.1
        assert (ours - theirs).norm() / theirs.norm() <= 1e-5
        ours, theirs = parts[2].decode(theirs), vae.decode(theirs).sample
        assert theirs.std() > 0.1
        assert (ours - theirs).norm() / theirs.norm() <= 1e-5


def test_normalization_is_the_files_and_inverts():
    latents = torch.randn(1, 16, 4, 4)
    assert torch.allclose(normalize(latents), (latents - 0.1159) * 0.3611)
    assert torch.allclose(denormalize(normalize(latents)), latents, atol=1e-6)


def test_released_autoencoder_has_the_reported_number_of_parameters():
    model = Autoencoder(AutoencoderConfig(), device="meta")
    assert sum(p.numel() for p in model.parameters()) == 83_819_683


def test_the_middle_asks_the_attention_that_it_was_given():
    calls = []

    def attention(q, k, v, mask):
        calls.append(q.shape)
        return functional.scaled_dot_product_attention(q, k, v)[:, 0]

    config = AutoencoderConfig(channels=(32, 32), num_res_blocks=1)
    network = Autoencoder(config, attention=attention)
    image = network.decode(torch.zeros(2, 16, 4, 6))
    network.encode(image)
    assert calls == [(2, 1, 24, 32)] * 2


def test_with_and_without_gradients_the_picture_is_the_same():
    torch.manual_seed(0)
    network = Autoencoder(AutoencoderConfig(channels=(32, 32), num_res_blocks=1))
    latents = torch.randn(1, 16, 4, 4)
    expected = network.decode(latents)
    expected.sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(network.decode(latents), expected.detach())
