"""The table of modulation beside the layers that it stands for, and what stays off the device."""

import pytest
import tiny_model
import torch
from tiny_lora import lora_file, random_pairs

STEPS = 5


@pytest.fixture(scope="module")
def modulation(pack):
    return pack("nodes.adapters.network.modulation")


@pytest.fixture
def plain(model, modulation):
    """The MODEL without a table."""
    clone = model.clone()
    clone.remove_wrappers_with_key("outer_sample", modulation.SCHEDULE)
    return clone


@pytest.fixture
def conds():
    generator = torch.Generator().manual_seed(0)
    return [[[torch.randn(1, 40, 32, generator=generator), {}]] for _ in range(2)]


@pytest.fixture
def sample(model, conds):
    """A guided run -> samples, and the first modulation layer's batches."""

    def sample(patcher=model, sampler="euler", sigmas=None, batch=1, side=4):
        import comfy.samplers

        sigmas = torch.linspace(1, 0, STEPS + 1) if sigmas is None else sigmas
        patcher.model.diffusion_model.modulation.forget()
        return run(patcher, comfy.samplers.sampler_object(sampler), sigmas, batch, side)

    def run(patcher, sampler, sigmas, batch, side):
        import comfy.samplers

        guider = comfy.samplers.CFGGuider(patcher)
        guider.set_conds(*conds)
        guider.set_cfg(4.0)
        noise = torch.randn(batch, 16, side, side, generator=torch.Generator().manual_seed(0))
        layer, batches = patcher.model.diffusion_model.double_blocks[0].img_mod.lin, []
        handle = layer.register_forward_hook(lambda layer, given, out: batches.append(len(out)))
        try:
            with torch.inference_mode():
                samples = guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, seed=1)
        finally:
            handle.remove()
        return samples, batches

    sample.run = run
    return sample


@pytest.mark.parametrize(
    ("sampler", "batch"), [("euler", 1), ("euler", 3), ("heun", 1), ("dpmpp_2m", 3), ("uni_pc", 1)]
)
def test_layers_run_once_for_a_schedule(sample, plain, sampler, batch):
    samples, batches = sample(sampler=sampler, batch=batch)
    expected, _ = sample(plain, sampler, batch=batch)
    assert (samples - expected).norm() < 1e-5 * expected.norm()
    assert batches[0] == STEPS
    assert len(batches) == 1 or sampler == "uni_pc"  # whose own table of times rounds the first sigma


@pytest.mark.parametrize("sampler", ["dpm_2", "dpmpp_sde"])
def test_sigmas_that_the_schedule_lacks_get_rows_of_their_own(
    sample, plain, modulation, monkeypatch, sampler
):
    samples, batches = sample(sampler=sampler)
    expected, _ = sample(plain, sampler)
    assert (samples - expected).norm() < 1e-5 * expected.norm()
    assert batches[0] == STEPS
    assert set(batches[1:]) == {1}
    again, _ = sample(sampler=sampler)
    assert torch.equal(again, samples)
    monkeypatch.setattr(modulation, "MAX_SIGMAS", STEPS + 1)  # the schedule with its 0, and one more
    full, batches = sample(sampler=sampler)
    assert (full - expected).norm() < 1e-5 * expected.norm()
    assert 2 in batches  # the layers themselves, for both branches


def test_all_other_stock_samplers(sample, model, plain):
    import comfy.samplers

    sigmas = torch.linspace(1, 0, 4)
    # The adaptive one takes its steps by tolerances, and many.
    for sampler in sorted({*comfy.samplers.SAMPLER_NAMES} - {"dpm_adaptive"}):
        samples, _ = sample(model, sampler, sigmas)
        expected, _ = sample(plain, sampler, sigmas)
        assert (samples - expected).norm() < 1e-4 * expected.norm(), sampler


def test_the_next_run_has_the_table_already(sample, model):
    import comfy.samplers

    euler, sigmas = comfy.samplers.sampler_object("euler"), torch.linspace(1, 0, STEPS + 1)
    first, _ = sample()
    second, batches = sample.run(model, euler, sigmas, 1, 4)
    assert batches == []
    assert torch.equal(first, second)
    _, batches = sample.run(model.clone(), euler, sigmas, 2, 6)  # another size and batch
    assert batches == []
    _, batches = sample.run(model, euler, sigmas[::2], 1, 4)
    assert batches == [len(sigmas[::2])]  # of which none is 0
    model.detach()
    _, batches = sample.run(model, euler, sigmas[::2], 1, 4)
    assert len(batches) == 1


def test_loras_on_modulation_are_in_the_table(sample, model, plain):
    layer = "diffusion_model.single_blocks.1.modulation.lin.weight"
    weight = model.model.state_dict()[layer]
    delta = 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    base, _ = sample()
    changed, plainly = model.clone(), plain.clone()
    for patcher in (changed, plainly):
        assert patcher.add_patches({layer: ("diff", (delta,))}, 0.5) == [layer]
    samples, _ = sample(changed)
    expected, _ = sample(plainly)
    assert (samples - expected).norm() < 1e-5 * expected.norm()
    assert (samples - base).norm() > 1e-3 * base.norm()
    torch.testing.assert_close(changed.model.state_dict()[layer], weight + 0.5 * delta)
    again, _ = sample()
    assert torch.equal(again, base)
    assert torch.equal(model.model.state_dict()[layer], weight)


def test_loras_in_bypass_mode_have_a_table_of_their_own(sample, model, plain, parts):
    """ComfyUI changes no weight then, but what the layers give."""
    import comfy.sd

    tensors = lora_file(random_pairs(parts[0]), "diffusion_model.")[0]
    patchers = [comfy.sd.load_bypass_lora_for_models(p, None, tensors, 1.0, 0)[0] for p in (model, plain)]
    euler, sigmas = comfy.samplers.sampler_object("euler"), torch.linspace(1, 0, STEPS + 1)
    runs = [sample.run(p, euler, sigmas, 1, 4)[0] for p in (model, patchers[0], model, patchers[1])]
    base, bypassed, again, expected = runs
    assert (bypassed - expected).norm() < 1e-5 * expected.norm()
    assert (bypassed - base).norm() > 1e-3 * base.norm()
    assert torch.equal(again, base)


def test_a_layer_that_another_node_replaces_is_called(sample, model):
    layer = "diffusion_model.single_blocks.1.modulation.lin"
    clone, calls = model.clone(), []
    original = model.model.diffusion_model.single_blocks[1].modulation.lin

    class Replacement(torch.nn.Module):
        def forward(self, x):
            calls.append(len(x))
            return original(x)

    clone.add_object_patch(layer, Replacement())
    sample(clone)
    assert calls == [2] * STEPS


def test_a_schedule_longer_than_the_table_runs_without(sample, plain, modulation, monkeypatch):
    monkeypatch.setattr(modulation, "MAX_SIGMAS", STEPS - 1)
    samples, _ = sample()
    assert not plain.model.diffusion_model.modulation._rows
    expected, _ = sample(plain)
    assert torch.equal(samples, expected)


def test_with_gradients_the_layers_run_as_always(model, modulation, monkeypatch):
    monkeypatch.setattr("comfy.model_management.in_training", True)
    network = model.model.diffusion_model
    x, context = torch.randn(1, 16, 4, 4), torch.randn(1, 40, 32)
    options = {modulation.SCHEDULE: modulation.Schedule((0.5, 1.0), None, network), "uuids": []}
    weight = network.single_blocks[0].modulation.lin.weight.requires_grad_(True)
    try:
        network(x, torch.tensor([0.5]), context, transformer_options=options).sum().backward()
        assert weight.grad.abs().max() > 0
    finally:
        weight.requires_grad_(False).grad = None


def test_a_replacement_that_changes_the_time_vector_is_heard(model, modulation):
    network = model.model.diffusion_model
    x, context = torch.randn(1, 16, 4, 4), torch.randn(1, 40, 32)

    def run(schedule, factor):
        def replacement(args, extra):
            return extra["original_block"](args | {"vec": args["vec"] * factor} if factor else args)

        options = {"patches_replace": {"dit": {("single_block", 0): replacement}}}
        options |= {modulation.SCHEDULE: schedule} if schedule else {}
        with torch.no_grad():
            return network(x, torch.tensor([0.5]), context, transformer_options=options)

    schedule = modulation.Schedule((0.5, 1.0), None, network)
    for factor in (None, 2.0):
        torch.testing.assert_close(run(schedule, factor), run(None, factor), rtol=1e-5, atol=1e-5)
    assert (run(schedule, 2.0) - run(schedule, None)).abs().max() > 1e-3


def test_what_the_patcher_loads_and_counts(model):
    import comfy.model_management as management

    whole = management.module_size(model.model)
    buffers = sum(buffer.nbytes for buffer in model.model.buffers())  # the sampling's table of sigmas
    layers = model.model.diffusion_model.modulation.layers
    assert len(layers) == 2 * tiny_model.TRANSFORMER.depth + tiny_model.TRANSFORMER.depth_single_blocks + 1
    size = sum(map(management.module_size, layers.values()))
    assert model.model_size() == model.clone().clone().model_size() == whole - size
    loaded = {entry[-3] for entry in model._load_list()}
    names = {f"diffusion_model.{name}" for name in layers}
    assert not loaded & names
    assert "diffusion_model.single_blocks.0.linear1" in loaded
    moved = []
    for name, layer in layers.items():
        layer.to = lambda device, name=name: moved.append((name, device))
    try:
        model.detach()
        model.load(model.load_device, full_load=True)
        assert {device for _, device in moved} == {model.offload_device}
        assert model.loaded_size() == model.model_size() - buffers
        assert not model.model.model_lowvram
    finally:
        for layer in layers.values():
            del layer.to
        model.detach()


def test_a_checkpoint_saved_with_a_lora_has_it_in_the_modulation(model):
    import comfy.model_management as management

    clone = model.clone()
    key = "diffusion_model.single_blocks.0.modulation.lin.weight"
    before = model.model.state_dict()[key].clone()
    clone.add_patches({key: ("diff", (torch.ones_like(before),))})
    management.load_models_gpu([clone], force_patch_weights=True)
    (saved,) = (value for name, value in clone.state_dict_for_saving().items() if name.endswith(key[16:]))
    torch.testing.assert_close(saved.to("cpu"), before + 1)
    clone.detach()
    assert torch.equal(model.model.state_dict()[key], before)


def test_at_full_size_the_device_holds_eleven_gibibytes(pack):
    import comfy.model_management as management

    adapter = pack("nodes.adapters.loading.diffusion_model")
    config = pack("ovis_core.transformer").TransformerConfig()
    network = adapter.ComfyTransformer(config, torch.nn, dtype=torch.bfloat16, device="meta")
    kept_off = sum(map(management.module_size, network.modulation.layers.values()))
    assert kept_off == 2 * 1_463_239_680
    assert (management.module_size(network) - kept_off) / 2**30 < 11.01


@pytest.mark.parametrize("with_cache", [False, True])
def test_dynamic_vram_is_told_which_weights_come_next(pack, model, sample, monkeypatch, with_cache):
    """ComfyUI's queue gets every block in order, without the modulation that the table answers for."""
    import comfy.model_prefetch

    queues = []
    monkeypatch.setattr(
        comfy.model_prefetch, "make_prefetch_queue", lambda blocks, *_: queues.append([*blocks]) or [*blocks]
    )
    asked = []
    monkeypatch.setattr(comfy.model_prefetch, "prefetch_queue_pop", lambda queue, *_: asked.append(queue))
    patcher = model
    if with_cache:
        make = pack("nodes.adapters.sampling.residual_cache").cached_model
        patcher = make(model, 1e6, 1, 10, 0, lambda report: None)  # one step of all is computed
    network = model.model.diffusion_model
    blocks = [*network.double_blocks, *network.single_blocks]
    sample(patcher)
    expected = blocks[1:] if with_cache else blocks
    computed = 1 if with_cache else STEPS
    assert [[entry.block for entry in queue] for queue in queues] == [expected] * computed
    assert len(asked) == (len(expected) + 1) * computed
    modulation = {*network.modulation.layers.values()}
    for entry in queues[0]:
        assert {*entry.block.modules()} - {*entry.modules()} == modulation & {*entry.block.modules()}


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_pictures_of_one_process_are_alike_when_memory_is_short(model, sample, monkeypatch, share):
    """As on a card that holds only a share of the weights: the rest is streamed, three times the same way."""
    import comfy.model_management as management

    expected, _ = sample()
    model.detach()
    free = management.minimum_inference_memory() + share * model.model_size()
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)

    def get_free_memory(device=None, torch_free_too=False):
        left = free - model.loaded_size()
        return (left, left) if torch_free_too else left

    monkeypatch.setattr(management, "get_free_memory", get_free_memory)
    monkeypatch.setattr(management, "current_loaded_models", [])
    loaded = []
    try:
        for patcher in (model, model.clone(), model.clone().clone()):  # as behind other nodes
            samples, _ = sample(patcher)
            assert torch.equal(samples, expected)
            loaded.append(patcher.loaded_size())
    finally:
        monkeypatch.undo()
        model.detach()
    assert len({*loaded}) == 1
    assert loaded[0] <= share * model.model_size()
    assert loaded[0] > (share - 0.4) * model.model_size()


@torch.inference_mode()
def test_a_guider_of_two_models_keeps_their_weights_apart(pack, parts, tmp_path):
    """ComfyUI's gives the second model the first one's options, and with them its run."""
    import comfy.samplers
    import comfy.sd
    from comfy_extras.nodes_custom_sampler import Guider_DualModel

    path = tmp_path / "diffusion_models" / tiny_model.write("comfyui", tmp_path)["model_name"]
    load = pack("nodes.adapters.loading.diffusion_model").load_diffusion_model
    first, second = load(path), load(path)
    lora = lora_file(random_pairs(parts[0]), "diffusion_model.")[0]
    changed = comfy.sd.load_lora_for_models(second, None, lora, 1.0, 0)[0]
    conds = [[[torch.randn(1, 40, 32), {}]] for _ in range(2)]
    noise = torch.randn(1, 16, 8, 8)

    def run(negative_model):
        guider = Guider_DualModel(first, negative_model)
        guider.set_conds(*conds)
        guider.set_cfg(4.0)
        euler = comfy.samplers.sampler_object("euler")
        return guider.sample(noise, torch.zeros_like(noise), euler, torch.linspace(1, 0, STEPS + 1), seed=1)

    before, after = run(second), run(changed)
    second.model.diffusion_model.modulation.forget()
    first.model.diffusion_model.modulation.forget()
    assert (before - after).norm() > 0.01 * after.norm()
    assert (run(changed) - after).norm() <= 1e-5 * after.norm()
