"""A ComfyUI that lacks a private member costs a saving and a line in the log, never another picture."""

import importlib
import logging

import pytest
import torch

ONES = [
    ("comfy.model_prefetch", "prefetch_queue_pop", "prefetching"),
    ("comfy.ops", "uncast_bias_weight", "held weights"),
    ("comfy_kitchen", "rms_rope", "joined operations"),
]


@pytest.fixture
def compat(pack):
    module = pack("nodes.adapters.compat")
    module.has.cache_clear()
    yield module
    module.has.cache_clear()


def test_this_comfyui_has_all(compat, caplog):
    with caplog.at_level(logging.WARNING):
        compat.check()
    assert all(map(compat.has, compat.MEMBERS))
    assert not caplog.records


@pytest.mark.parametrize(("module", "name", "saving"), ONES)
@pytest.mark.parametrize("is_there", [True, False])
def test_one_that_is_gone_or_called_otherwise_turns_its_saving_off(
    compat, monkeypatch, caplog, module, name, saving, is_there
):
    if is_there:
        monkeypatch.setattr(importlib.import_module(module), name, lambda only: None)
    else:
        monkeypatch.delattr(importlib.import_module(module), name)
    with caplog.at_level(logging.WARNING):
        compat.check()
        compat.check()
    assert [other for other in compat.MEMBERS if not compat.has(other)] == [saving]
    (record,) = caplog.records
    assert f"another {module}.{name}, so " in record.message


def test_what_nothing_takes_the_place_of_is_named(compat, monkeypatch, caplog):
    import comfy.model_patcher

    monkeypatch.delattr(comfy.model_patcher.ModelPatcher, "_load_list")
    monkeypatch.delattr("comfy.quant_ops.QUANT_ALGOS")
    with caplog.at_level(logging.WARNING):
        compat.check()
    (record,) = caplog.records
    missing = "comfy.model_patcher.ModelPatcher._load_list, comfy.quant_ops.QUANT_ALGOS"
    assert f"has no {missing}; " in record.message


def test_without_its_savings_the_velocity_is_the_same(pack, compat, model, monkeypatch):
    network, kernels = model.model.diffusion_model, pack("nodes.adapters.network.kernels")
    monkeypatch.setattr(network, "num_parts", lambda *_: 3)
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(1, 16, 8, 8, generator=generator), torch.randn(1, 64, 32, generator=generator)
    calls = []
    hook = network.single_blocks[0].linear1.register_forward_hook  # a held layer is not called

    def velocity():
        with torch.no_grad():
            return network(x, torch.tensor([0.5]), context)

    expected = velocity()
    monkeypatch.setattr(
        compat, "MEMBERS", {name: (compat.Member("comfy", "gone", 0),) for name in compat.MEMBERS}
    )
    compat.has.cache_clear()
    kernels.has_joined.cache_clear()
    monkeypatch.setattr(kernels, "has_new_kernels", lambda device: True)
    handle = hook(lambda layer, given, out: calls.append(out.shape[1]))
    torch.testing.assert_close(velocity(), expected, rtol=1e-5, atol=1e-5)
    handle.remove()
    assert calls == [64 + 16]
    kernels.has_joined.cache_clear()
