"""Single blocks that work in parts: linear1 is called several times, and its weight made ready once."""

import pytest
import tiny_gguf
import tiny_model
import torch

BATCH = 2


@pytest.fixture
def in_parts(pack, monkeypatch):
    """From here on single blocks take 2 x 280 tokens in three parts."""
    transformer = pack("nodes.adapters.network.transformer").ComfyTransformer
    return lambda: monkeypatch.setattr(transformer, "num_parts", lambda *_: 3)


@pytest.fixture
def casting(pack):
    return pack("nodes.adapters.network.casting")


@pytest.fixture(scope="module")
def load(pack, parts, tmp_path_factory):
    """A function: how the weights are kept -> the network."""
    adapter = pack("nodes.adapters.loading.diffusion_model")
    dtypes = pack("nodes.adapters.weights.formats").WEIGHT_DTYPES
    folder = tmp_path_factory.mktemp("parts")
    plain = folder / "diffusion_models" / tiny_model.write("comfyui", folder)["model_name"]
    tiny_gguf.write(folder / "q8.gguf", parts[0].state_dict(), "Q8_0")

    def network(kept):
        path, dtype = (folder / "q8.gguf", None) if kept == "gguf" else (plain, dtypes[kept])
        return adapter.load_diffusion_model(path, dtype).model.diffusion_model

    return network


def velocity(network):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 16, 8, 12, generator=generator)
    context = torch.randn(BATCH, 256, network.config.context_dim, generator=generator)
    return network(x, torch.tensor([0.9, 0.3]), context).detach()


FORMATS = ["default", "bf16", "fp16", "fp8_e4m3fn", "fp8_scaled", "int8", "gguf"]


@pytest.mark.parametrize("kept", FORMATS)
def test_velocities_are_the_textbooks_whole_and_in_parts(load, in_parts, kept):
    """With gradients, blocks are the textbook's."""
    network = load(kept)
    with torch.enable_grad():
        textbook = velocity(network)
    for cut in (lambda: None, in_parts):
        cut()
        with torch.no_grad():
            difference = (velocity(network) - textbook).norm() / textbook.norm()
        assert difference <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("kept", ["default", "gguf"])
def test_weights_are_made_ready_once_a_block(load, in_parts, monkeypatch, kept):
    import comfy.ops
    import comfy.quant_ops

    network = load(kept)
    layers = [block.linear1 for block in network.single_blocks]
    casts, cast = [], comfy.ops.cast_bias_weight
    numbers, dequantize = [], comfy.quant_ops.QuantizedTensor.dequantize
    monkeypatch.setattr(
        comfy.quant_ops.QuantizedTensor, "dequantize", lambda x: numbers.append(x.shape) or dequantize(x)
    )

    def counting(layer, *args, **kwargs):
        casts.extend(i for i, known in enumerate(layers) if known is layer)
        return cast(layer, *args, **kwargs)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", counting)
    in_parts()
    velocity(network)
    assert casts == [*range(len(layers))]
    assert numbers.count(layers[0].weight.shape) == (len(layers) if kept == "gguf" else 0)


@torch.no_grad()
def test_a_lora_in_a_shared_buffer_is_added_once(load, in_parts, monkeypatch):
    """Dynamic VRAM patches a weight that does not fit in the buffer that the next call finds again."""
    import comfy.ops

    network = load("default")
    layer = network.single_blocks[0].linear1
    change = 0.1 * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(1))
    layer.weight_function = [lambda weight: weight + change]
    expected = velocity(network)
    layer.weight_function = []
    assert (velocity(network) - expected).norm() > 0.01 * expected.norm()

    buffer, cast = layer.weight.detach().clone(), comfy.ops.cast_bias_weight

    def in_buffer(known, *args, **kwargs):
        weight, bias, stream = cast(known, *args, **kwargs)
        return (buffer.add_(change), bias, stream) if known is layer else (weight, bias, stream)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", in_buffer)
    in_parts()
    difference = (velocity(network) - expected).norm() / expected.norm()
    assert difference <= 1e-5


@torch.no_grad()
def test_what_other_nodes_put_on_the_layer_runs(load, in_parts):
    network = load("default")
    layer = network.single_blocks[0].linear1
    seen = []

    def hook(module, given, out):
        seen.append(out.shape[1])
        return 2 * out

    handle = layer.register_forward_hook(hook)
    doubled = velocity(network)
    in_parts()
    torch.testing.assert_close(velocity(network), doubled, rtol=1e-5, atol=1e-5)
    assert seen == [280, 280]  # whole: ComfyUI may patch its weight in place at every call
    handle.remove()

    def doubling(x, forward=layer.forward):
        seen.append(x.shape[1])
        return 2 * forward(x)

    layer.forward = doubling  # as ComfyUI's bypass mode does
    torch.testing.assert_close(velocity(network), doubled, rtol=1e-5, atol=1e-5)
    assert seen == [280] * 3


def test_a_quantised_weight_in_ram_is_moved_for_the_while(load, casting):
    layer = load("int8").single_blocks[0].linear1
    weight, bias = layer.weight, layer.bias
    x = torch.empty(1, device="meta")  # stands for a GPU
    with casting.hold(layer, x) as held:
        assert held is layer
        assert layer.weight.device.type == layer.bias.device.type == "meta"
        assert type(layer.weight.data) is type(weight.data)
    assert layer.weight is weight
    assert layer.bias is bias
    with pytest.raises(RuntimeError, match="full"), casting.hold(layer, x):
        raise RuntimeError("full")
    assert layer.weight is weight
    with casting.hold(layer, torch.empty(1)):
        assert layer.weight is weight


def test_a_patched_one_comes_as_numbers(load, casting):
    """As ComfyUI's layer multiplies it then."""
    layer = load("int8").single_blocks[0].linear1
    layer.weight_function = [lambda weight: 2 * weight]
    with casting.hold(layer, torch.empty(1, device="meta")) as held:
        assert held is not layer
    x = torch.randn(3, layer.in_features)
    with casting.hold(layer, x) as held:
        assert held is layer


@pytest.mark.parametrize("cuda_malloc", [False, True])
def test_a_streamed_weight_survives_the_next_layers(casting, monkeypatch, cuda_malloc):
    """Without torch's allocator of CUDA, ComfyUI streams the layers through one buffer a stream."""
    import comfy.ops

    buffer, uncast = torch.zeros(4), []
    monkeypatch.setattr(casting.args, "cuda_malloc", cuda_malloc)
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", lambda *given: uncast.append(given[0]))

    def streamed(layer, x, offloadable):
        weight = buffer.fill_(layer) if not cuda_malloc else torch.full((4,), float(layer))
        return weight, None, ("a stream", weight, None)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", streamed)
    with casting.cast(1, None) as (first, bias), casting.cast(2, None) as (second, _):
        assert bias is None
        assert first.tolist() == [1] * 4
        assert second.tolist() == [2] * 4
    assert uncast == [2, 1]

    resident = torch.ones(4)
    monkeypatch.setattr(
        comfy.ops, "cast_bias_weight", lambda *_, **__: (resident, None, (None, resident, None))
    )
    with casting.cast(1, None) as (weight, _):
        assert weight is resident


@pytest.mark.parametrize(("room", "expected"), [(None, 1), (25, 1), (20, 2), (16, 3), (14.5, 4), (1, 4)])
def test_parts_are_as_few_as_fit_what_is_free(pack, load, room, expected):
    """room: hidden sizes a token."""
    network = load("default")
    x, context = torch.zeros(2, 16, 128, 128), torch.zeros(2, 256, 32)
    size = 2 * (64 * 64 + 256) * network.config.hidden_size * x.element_size()
    options = {} if room is None else {pack("nodes.adapters.network.transformer").ROOM: room * size}
    assert network.num_parts(x, context, options) == expected
    assert network.num_parts(x[..., :8, :8], context, options) == 1  # too few tokens to cut


def test_a_run_takes_the_parts_that_its_free_memory_asks_for(pack, model, monkeypatch):
    import comfy.samplers

    transformer = pack("nodes.adapters.network.transformer").ComfyTransformer
    asked, num_parts = [], transformer.num_parts

    def counting(self, x, context, options):
        asked.append(options[pack("nodes.adapters.network.transformer").ROOM])
        return num_parts(self, x, context, options)

    monkeypatch.setattr(transformer, "num_parts", counting)
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 1.1e6)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": [[torch.randn(1, 256, 32), {}]]})
    noise = torch.randn(1, 16, 4, 4)
    with torch.inference_mode():
        euler = comfy.samplers.sampler_object("euler")
        guider.sample(noise, torch.zeros_like(noise), euler, torch.linspace(1, 0, 3))
    assert asked == pytest.approx([1e6] * 2)
