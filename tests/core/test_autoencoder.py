import pytest
import torch

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
