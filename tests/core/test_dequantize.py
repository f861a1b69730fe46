"""GGML's block formats beside the `gguf` package."""

import gguf
import pytest
import torch
from tiny_gguf import random_rows

from ovis_core.files.dequantize import BLOCK_FORMATS, dequantize, is_finite


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_numbers_are_the_gguf_packages_to_the_bit(name):
    kind = gguf.GGMLQuantizationType[name]
    form = BLOCK_FORMATS[name]
    assert (form.numbers, form.num_bytes) == gguf.GGML_QUANT_SIZES[kind]
    data = random_rows(name, 96, 1024)
    expected = torch.from_numpy(gguf.dequantize(data, kind))
    got = dequantize(torch.from_numpy(data), name)
    assert torch.equal(got.view(torch.int32), expected.view(torch.int32))
    assert torch.equal(dequantize(torch.from_numpy(data), name, torch.bfloat16), expected.bfloat16())


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_rows_are_independent_and_views_will_do(name):
    data = torch.from_numpy(random_rows(name, 8, 512))
    whole = dequantize(data, name)
    assert torch.equal(dequantize(data[3:5], name), whole[3:5])
    assert torch.equal(dequantize(torch.cat((data[6:], data[:2])), name), torch.cat((whole[6:], whole[:2])))


def test_large_weights_are_done_in_parts(monkeypatch):
    data = torch.from_numpy(random_rows("Q4_K", 7, 768))
    whole = dequantize(data, "Q4_K")
    monkeypatch.setattr("ovis_core.files.dequantize.MAX_NUMBERS", 1024)
    assert torch.equal(dequantize(data, "Q4_K"), whole)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_nothing_is_brought_to_the_device_again(name, monkeypatch):
    """For which the host would wait, in every layer of every step."""
    data = torch.from_numpy(random_rows(name, 8, 512))
    with torch.inference_mode():
        expected = dequantize(data, name)
    monkeypatch.delattr(torch, "tensor")
    assert torch.equal(dequantize(data, name), expected)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_every_scale_is_looked_at(name):
    form = BLOCK_FORMATS[name]
    data = torch.from_numpy(random_rows(name, 4, 512))
    assert is_finite(data, name)
    for at in form.halves:
        for value in (float("nan"), float("inf")):
            bad = data.clone()
            bad.view(-1, form.num_bytes)[-1, at : at + 2] = torch.tensor([value]).half().view(torch.uint8)
            assert not is_finite(bad, name)
            assert not torch.isfinite(dequantize(bad, name)).all()
