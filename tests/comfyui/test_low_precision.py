"""fp8 and int8: the error of what is stored and computed, files, and LoRAs on top."""

from types import SimpleNamespace

import pytest
import tiny_model
import torch
from tiny_lora import lora_file, random_pairs

from ovis_core.files.checkpoint import open_checkpoint
from ovis_core.files.parts import TRANSFORMER

FORMATS = ["fp8_scaled", "int8"]
# Of a layer's output with random inputs, weights and activations rounded; and of what is stored.
LAYER_BOUND = {"fp8_scaled": 0.05, "int8": 0.02}
NUM_QUANTIZED = 2 * 2 * 5 + 2 * 2  # 5 matrices in each of 2 streams, 2 in each single block


@pytest.fixture(scope="module")
def adapter(pack):
    return pack("nodes.adapters.loading.diffusion_model")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("low")
    return folder / "diffusion_models" / tiny_model.write("comfyui", folder)["model_name"]


@pytest.fixture
def models(pack, adapter, path):
    """A function: weight_dtype -> MODEL."""
    dtypes = pack("nodes.adapters.weights.formats").WEIGHT_DTYPES
    return lambda name=None: adapter.load_diffusion_model(path, dtypes.get(name))


def inputs():
    generator = torch.Generator().manual_seed(1)
    x, context = (torch.randn(*shape, generator=generator) for shape in ((2, 16, 8, 12), (2, 20, 32)))
    return x, torch.tensor([0.9, 0.2]), context


@torch.inference_mode()
def velocity(model):
    return model.model.diffusion_model(*inputs())


def distance(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def quantized_layers(model):
    return {
        name: layer
        for name, layer in model.model.diffusion_model.named_modules()
        if hasattr(getattr(layer, "weight", None), "_qdata")
    }


def rows(num=32, columns=256):
    """Tokens of very different size, as a transformer's are."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(num, columns, generator=generator) * torch.logspace(-4, 3, num)[:, None]


def test_rows_of_any_size_are_rounded_alike(pack):
    import comfy.quant_ops

    layout = pack("nodes.adapters.weights.low_precision").RowFP8Layout
    x = rows()
    qdata, params = layout.quantize(x)
    assert qdata.dtype == torch.float8_e4m3fn
    assert params.scale.shape == (len(x), 1)
    error = (layout.dequantize(qdata, params) - x).abs()
    assert (error <= torch.maximum(x.abs() / 16, params.scale / 1024) * 1.001).all()  # 3 bits and a sign
    stock = comfy.quant_ops.TensorCoreFP8E4M3Layout
    static = stock.dequantize(*stock.quantize(x)) - x  # what ComfyUI does without an input_scale
    assert error[0].norm() < 0.04 * x[0].norm() < 0.9 * x[0].norm() < static[0].norm()
    assert error[-1].norm() < 0.04 * x[-1].norm() < 0.5 * x[-1].norm() < static[-1].norm()
    zero, params = layout.quantize(torch.zeros(2, 8))
    assert torch.equal(layout.dequantize(zero, params), torch.zeros(2, 8))


def rows_in_kernel(a, b, scale_a, scale_b, out_dtype, use_fast_accum, bias=None):
    """`torch._scaled_mm` as GPUs have it, with a scale a row and a column; for the CPU torch has none."""
    assert a.dtype == b.dtype == torch.float8_e4m3fn
    assert scale_a.shape == (len(a), 1)
    assert scale_b.shape == (1, b.shape[1])
    assert scale_a.is_contiguous()
    assert scale_b.is_contiguous()
    assert scale_a.dtype == scale_b.dtype == torch.float32
    assert b.stride(0) == 1  # columns one behind the other, as the kernel wants them
    assert bias is None or bias.dtype == torch.bfloat16
    assert use_fast_accum
    out = (a.float() * scale_a) @ (b.float() * scale_b)
    return (out if bias is None else out + bias).to(out_dtype)


@pytest.fixture(params=["scaled_in_kernel", "scaled_behind", None])
def product(request, pack, monkeypatch):
    """One of the ways to multiply fp8, chosen as on a device that has it: the second is torch's own here."""
    low = pack("nodes.adapters.weights.low_precision")
    scaled_mm = torch._scaled_mm

    def device(a, b, **options):
        kernel = scaled_mm if options["scale_a"].numel() == 1 else rows_in_kernel
        if request.param is None or (request.param == "scaled_behind" and kernel is rows_in_kernel):
            raise RuntimeError("not on this device")
        device.calls += 1
        return kernel(a, b, **options)

    device.calls = 0
    monkeypatch.setattr(torch, "_scaled_mm", device)
    low.fp8_product.cache_clear()
    chosen = low.fp8_product(torch.device("cpu"))
    assert chosen is (request.param and getattr(low, request.param))
    device.calls = 0
    device.name = request.param
    yield device
    low.fp8_product.cache_clear()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_the_rounded_numbers(pack, product, mode, dtype):
    from comfy.quant_ops import QuantizedTensor

    low = pack("nodes.adapters.weights.low_precision")
    x, weight = rows().to(dtype), torch.randn(64, 256, dtype=dtype)
    for bias in (None, torch.randn(64, dtype=dtype)):
        with mode():
            inputs = QuantizedTensor.from_float(x, low.ROW_LAYOUT)
            stored = QuantizedTensor.from_float(weight, low.ROW_LAYOUT, scale="recalculate")
            got = torch.nn.functional.linear(inputs, stored, bias)
            plain = torch.nn.functional.linear(x, stored, bias)
        numbers = [tensor.dequantize().float() for tensor in (inputs, stored)]
        bias = None if bias is None else bias.float()
        assert got.dtype == plain.dtype == dtype
        assert distance(got, torch.nn.functional.linear(*numbers, bias)) < 0.004
        assert distance(plain, torch.nn.functional.linear(x.float(), numbers[1], bias)) < 0.004
    assert product.calls == (2 if product.name else 0)


def test_without_fp8_products_activations_are_not_rounded(models, product, monkeypatch):
    """Where ComfyUI takes the device for one that has them."""
    monkeypatch.setattr("comfy.model_management.supports_fp8_compute", lambda device=None: True)
    layers = quantized_layers(models("fp8_scaled")).values()
    assert {layer._full_precision_mm for layer in layers} == {product.name is None}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_int8_is_dequantised_on_a_cpu_and_comfyuis_elsewhere(pack, device):
    import comfy.ops

    low = pack("nodes.adapters.weights.low_precision")
    layer = "single_blocks.0.linear1."
    state = low.quantize_state({f"{layer}weight": torch.randn(512, 256)}, low.INT8)
    state = {key.removeprefix(layer): tensor for key, tensor in state.items()}
    config = SimpleNamespace(quant_config={"mixed_ops": True})
    ours = low.low_precision_ops(config, torch.float32, torch.device(device)).Linear(256, 512, bias=False)
    stock = comfy.ops.mixed_precision_ops({}, torch.float32).Linear(256, 512, bias=False)
    for linear in (ours, stock):
        linear.load_state_dict(state)
    x = rows()  # a GPU's layer computes here as there, but in torch's operations
    plain, rounded = torch.nn.functional.linear(x, ours.weight.dequantize()), stock(x)
    assert torch.equal(ours(x), plain if device == "cpu" else rounded)
    assert 1e-3 < distance(rounded, plain) < LAYER_BOUND["int8"]


@pytest.mark.parametrize("name", FORMATS)
def test_large_matrices_are_small_and_the_rest_is_kept(models, name):
    model, exact = models(name), models()
    layers = quantized_layers(model)
    assert len(layers) == NUM_QUANTIZED
    assert not any("mod" in layer or "blocks" not in layer for layer in layers)
    for layer, module in layers.items():
        weight = exact.model.diffusion_model.get_submodule(layer).weight
        error, scale = (module.weight.dequantize() - weight).abs(), module.weight._params.scale
        bound = scale / 2 if name == "int8" else torch.maximum(weight.abs() / 16, scale / 1024)
        assert (error <= bound * 1.001).all(), layer
    for key, value in model.model_state_dict().items():
        if not hasattr(value, "_qdata") and key in exact.model_state_dict() and "scale" not in key:
            assert torch.equal(value.float(), exact.model_state_dict()[key].float()) or any(
                key.startswith(f"diffusion_model.{layer}.weight") for layer in layers
            ), key
    assert model.model_size() < 0.5 * exact.model_size()


@pytest.mark.parametrize("name", FORMATS)
def test_error_of_every_layer_and_of_the_velocity(models, product, name):
    """As on a GPU: activations rounded too."""
    model, exact = models(name), models()
    with torch.inference_mode():
        for layer, module in quantized_layers(model).items():
            module._full_precision_mm = False  # which is set where a device gains nothing by rounding
            x = rows(columns=module.in_features)
            got, expected = module(x), exact.model.diffusion_model.get_submodule(layer)(x)
            bias = module.bias
            assert distance(got - bias, expected - bias) < LAYER_BOUND[name], layer
    assert product.calls == (NUM_QUANTIZED if name == "fp8_scaled" and product.name else 0)
    assert 1e-4 < distance(velocity(model), velocity(exact)) < 2 * LAYER_BOUND[name]


@pytest.mark.parametrize("name", FORMATS)
def test_saved_files_are_comfyuis(adapter, models, tmp_path, name):
    import comfy.sd

    model = models(name)
    file = tmp_path / "saved.safetensors"
    comfy.sd.save_checkpoint(str(file), model)  # as ModelSave does
    again, stock = adapter.load_diffusion_model(file), comfy.sd.load_diffusion_model(str(file))
    layers = quantized_layers(model)
    assert quantized_layers(again).keys() == quantized_layers(stock).keys() == layers.keys()
    for layer, module in layers.items():
        for other in (again, stock):
            weight = other.model.diffusion_model.get_submodule(layer).weight
            assert torch.equal(weight._qdata.view(torch.uint8), module.weight._qdata.view(torch.uint8))
            assert torch.equal(weight._params.scale, module.weight._params.scale)
    assert torch.equal(velocity(again), velocity(model))
    core = open_checkpoint(file, TRANSFORMER).module(dtype=torch.float32)
    for layer, module in layers.items():
        assert torch.equal(core.get_submodule(layer).weight, module.weight.dequantize().float())


@pytest.mark.parametrize("name", FORMATS)
def test_loras_on_top(models, name):
    import comfy.sd

    model, exact = models(name), models()
    lora, _ = lora_file(random_pairs(exact.model.diffusion_model), "diffusion_model.")
    before = velocity(model)
    patched, expected = (comfy.sd.load_lora_for_models(m, None, lora, 0.5, 0)[0] for m in (model, exact))
    for m in (patched, expected):
        m.patch_model(torch.device("cpu"))
    assert distance(velocity(patched), velocity(expected)) < 2 * LAYER_BOUND[name]
    assert distance(velocity(patched), before) > 2 * LAYER_BOUND[name]
    for m in (patched, expected):
        m.unpatch_model(torch.device("cpu"))
    assert torch.equal(velocity(model), before)


@pytest.fixture
def check(pack):
    return pack("nodes.quantization").OvisImageQuantCheck.execute


@pytest.mark.parametrize("name", FORMATS)
def test_the_check_lists_the_worst_layers_first(check, models, name):
    with torch.inference_mode():  # as ComfyUI's executor runs nodes
        model, exact = models(name), models()
        (report,) = check(model, exact, 0).result
        (short,) = check(model, exact, 3).result
        (same,) = check(exact, models(), 1).result
    lines = [line.strip("| ").split(" | ") for line in report.splitlines()[4:]]
    errors = {layer: float(error) for error, layer, *_ in lines}
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    layers = quantized_layers(model)
    for layer, error in errors.items():
        assert 1e-4 < error < LAYER_BOUND[name] if layer in layers else error < 1e-2
    assert {kind for _, layer, kind, _ in lines if layer in layers} == {
        {"fp8_scaled": "float8_e4m3fn", "int8": "int8"}[name]
    }
    assert len(lines) == sum(isinstance(m, torch.nn.Linear) for m in exact.model.diffusion_model.modules())
    assert short.splitlines()[2:] == report.splitlines()[2:7]
    assert "largest error 0.00e+00" in same


def test_the_check_refuses_other_models(check, models):
    import comfy.model_patcher

    other = comfy.model_patcher.ModelPatcher(torch.nn.Module(), None, None)
    other.model.diffusion_model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="compares the layers of our loader"):
        check(models(), other, 1)
