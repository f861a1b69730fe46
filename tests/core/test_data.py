"""Cached latents: the autoencoder's, in buckets of one size, drawn by the step alone."""

import pytest
import torch
from PIL import Image

from ovis_core.autoencoder import normalize
from ovis_core.training.data import LatentCache, encode_pictures

SIZES = ((32, 32), (48, 32))


def draw(index: int) -> tuple[Image.Image, str]:
    return Image.new("RGB", SIZES[index % 2], (index * 20, 100, 200)), f"picture {index}"


@pytest.fixture(scope="module")
def cache(parts, tokenizer):
    added = []
    cache = encode_pictures(draw, [range(0, 8, 2), range(1, 5, 2)], parts[2], tokenizer, 0, added.append)
    assert added == [4, 2]
    return cache


def test_latents_are_the_autoencoders_and_ids_the_tokenizers(cache, parts, tokenizer):
    square, wide = cache.buckets
    assert square.latents.shape == (4, 16, 4, 4)
    assert wide.latents.shape == (2, 16, 4, 6)
    batch = wide.batch(torch.tensor([1]))  # picture 3
    picture = torch.tensor([60, 100, 200]).view(1, 3, 1, 1).expand(1, 3, 32, 48) / 127.5 - 1
    with torch.no_grad():
        expected = normalize(parts[2].encode(picture))
    assert torch.allclose(batch.latents, expected, atol=2e-3)  # kept in float16
    assert tuple(batch.prompts[0]) == tokenizer("picture 3").ids


def test_batches_have_one_size_and_depend_on_the_step_alone(cache):
    batch_of = cache.batches(6, seed=1)
    shapes = [tuple(batch_of(step).latents.shape) for step in range(200)]
    share = shapes.count((6, 16, 4, 4)) / len(shapes)
    assert 0.55 < share < 0.78  # 4 of 6 pictures
    again = cache.batches(6, seed=1)
    assert torch.equal(again(7).latents, batch_of(7).latents)
    assert again(7).prompts == batch_of(7).prompts
    assert not all(torch.equal(cache.batches(6, 2)(s).latents, batch_of(s).latents) for s in range(5))


def test_a_saved_cache_is_the_cache(cache, tmp_path):
    cache.save(tmp_path / "cache.safetensors")
    loaded = LatentCache.load(tmp_path / "cache.safetensors")
    for first, second in zip(cache.buckets, loaded.buckets, strict=True):
        assert torch.equal(first.latents, second.latents)
        assert torch.equal(first.ids, second.ids)


def test_drawing_in_other_processes_changes_nothing(cache, parts, tokenizer):
    other = encode_pictures(draw, [range(0, 8, 2)], parts[2], tokenizer, num_workers=2)
    assert torch.equal(other.buckets[0].latents, cache.buckets[0].latents)
