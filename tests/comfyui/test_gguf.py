"""GGUF weights as ComfyUI's MODEL: kept in bytes, counted, moved, patched and offloaded."""

import shutil

import gguf
import pytest
import tiny_gguf
import tiny_model
import torch
from safetensors.torch import save_file
from tiny_lora import lora_file, random_pairs

from ovis_core.files.dequantize import BLOCK_FORMATS
from ovis_core.files.layouts import llama_rules
from ovis_core.files.rules import convert, unconvert
from ovis_core.lora.read import read_lora


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def load(pack):
    return pack("nodes.adapters.loading.diffusion_model").load_diffusion_model


@pytest.fixture
def files(folder, parts):
    """A GGUF file of the type -> its path, and the same numbers in safetensors."""

    def write(kind: str):
        path, plain = folder / f"{kind}.gguf", folder / f"{kind}.safetensors"
        if not plain.exists():
            save_file(tiny_gguf.write(path, parts[0].state_dict(), kind), plain)
        return path, plain

    return write


def inputs():
    generator = torch.Generator().manual_seed(1)
    x, context = (torch.randn(*shape, generator=generator) for shape in ((2, 16, 8, 12), (2, 20, 32)))
    return x, torch.tensor([0.9, 0.2]), context


@torch.inference_mode()
def velocity(model):
    return model.model.diffusion_model(*inputs())


def bytes_of(model) -> dict:
    return {
        key: (value._qdata if hasattr(value, "_qdata") else value).clone()
        for key, value in model.model_state_dict().items()
    }


def same_bytes(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("kind", [*BLOCK_FORMATS, "F16", "BF16", "F32"])
def test_velocity_is_that_of_the_numbers(load, files, kind):
    path, plain = files(kind)
    ours, peer = load(path), load(plain)
    assert torch.equal(velocity(ours), velocity(peer))


@pytest.mark.parametrize("kind", BLOCK_FORMATS)
def test_bytes_stay_bytes_and_are_counted_as_such(load, files, kind):
    from comfy.model_management import module_size

    path, plain = files(kind)
    model, peer = load(path), load(plain)
    kept = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)
    assert module_size(model.model.diffusion_model) == kept < module_size(peer.model.diffusion_model) / 3
    networks = model.model.diffusion_model, peer.model.diffusion_model
    kept_off = [sum(map(module_size, network.modulation.layers.values())) for network in networks]
    for patcher, network, off in zip((model, peer), networks, kept_off, strict=True):
        others = module_size(patcher.model) - module_size(network)
        assert patcher.model_size() == module_size(network) - off + others
    weight = model.model.diffusion_model.single_blocks[0].linear1.weight
    assert weight._qdata.dtype == torch.uint8
    assert weight.nbytes == weight.shape[0] * BLOCK_FORMATS[kind].row_bytes(weight.shape[1])
    velocity(model)
    assert module_size(model.model.diffusion_model) == kept


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_chosen_weight_dtype_multiplies_out(load, files, dtype):
    path, plain = files("Q5_K")
    ours, peer = load(path, dtype), load(plain, dtype)
    assert ours.model.diffusion_model.img_in.weight.dtype == dtype
    assert torch.equal(velocity(ours), velocity(peer))


def ours(pack, model, tensors, strength=0.8):
    """As OvisImageLoraLoader does it, from tensors instead of a file."""
    lora = read_lora(tensors, model.model.diffusion_model.config, "test")
    clone = model.clone()
    clone.add_patches(pack("nodes.adapters.lora.patches").patches_of(lora.changes), strength)
    return clone


def stock(pack, model, tensors, strength=0.8):
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, tensors, strength, 0)[0]


def distance(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def lora_of(model):
    return lora_file(random_pairs(model.model.diffusion_model), "diffusion_model.")[0]


CPU = torch.device("cpu")


@pytest.mark.parametrize(("kind", "loader"), [("Q8_0", ours), ("Q4_K", ours), ("Q4_K", stock)])
def test_loras_on_top(pack, load, files, kind, loader):
    path, plain = files(kind)
    model, peer = load(path), load(plain)
    before, plain_velocity = bytes_of(model), velocity(model)
    patched, patched_peer = (loader(pack, m, lora_of(peer)) for m in (model, peer))
    for m in (patched, patched_peer):
        m.patch_model(CPU)
    waiting = bytes_of(patched)  # the LoRA is beside them
    quantized = {key: value for key, value in before.items() if value.dtype == torch.uint8}
    assert all(torch.equal(waiting[key], value) for key, value in quantized.items())
    expected = velocity(patched_peer)
    assert distance(velocity(patched), expected) < 1e-5 < 0.05 < distance(plain_velocity, expected)
    for m in (patched, patched_peer):
        m.unpatch_model(CPU)
    assert same_bytes(bytes_of(model), before)
    assert torch.equal(velocity(model), plain_velocity)


def test_two_loras_and_a_second_time(pack, load, files):
    path, plain = files("Q6_K")
    model, peer = load(path), load(plain)
    lora = lora_of(peer)
    for _ in range(2):
        both = [ours(pack, stock(pack, m, lora, 0.5), lora, -0.3) for m in (model, peer)]
        for m in both:
            m.patch_model(CPU)
        assert distance(*map(velocity, both)) < 1e-5
        for m in both:
            m.unpatch_model(CPU)
    assert torch.equal(velocity(model), velocity(peer))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
def test_offloading_in_part_and_back(pack, load, files, share):
    path, _ = files("Q4_K")
    model = load(path)
    before, plain = bytes_of(model), velocity(model)
    patched = ours(pack, model, lora_of(load(files("Q4_K")[1])))
    patched.patch_model(CPU)
    whole = velocity(patched)
    patched.unpatch_model(CPU)

    patched.patch_model(CPU, lowvram_model_memory=max(1, int(share * patched.model_size())))
    functions = sum(len(getattr(m, "weight_function", ())) for m in model.model.modules())
    assert functions > 0
    assert distance(velocity(patched), whole) < 1e-5
    patched.partially_load(CPU, 10 * patched.model_size())
    assert sum(len(getattr(m, "weight_function", ())) for m in model.model.modules()) == 0
    assert distance(velocity(patched), whole) < 1e-5
    patched.partially_unload(CPU, patched.model_size() // 2)
    assert sum(len(getattr(m, "weight_function", ())) for m in model.model.modules()) > 0
    assert distance(velocity(patched), whole) < 1e-5
    patched.unpatch_model(CPU)
    assert same_bytes(bytes_of(model), before)
    assert torch.equal(velocity(model), plain)


@pytest.mark.parametrize("mode", ["MinVram", "MaxSpeed"])
def test_hooks(pack, load, files, mode):
    import comfy.hooks

    path, plain = files("Q5_0")
    model, peer = load(path), load(plain)
    before, lora = bytes_of(model), lora_of(peer)
    expected = stock(pack, peer, lora)
    expected.patch_model(CPU)
    wanted = velocity(expected)
    expected.unpatch_model(CPU)

    hooks = comfy.hooks.create_hook_lora(lora=lora, strength_model=0.8, strength_clip=0.0)
    clone = model.clone()
    clone.hook_mode = comfy.hooks.EnumHookMode[mode]
    clone.register_all_hook_patches(hooks, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model))
    clone.patch_model(CPU)
    for _ in range(2):
        clone.apply_hooks(hooks)
        assert distance(velocity(clone), wanted) < 1e-5
        clone.apply_hooks(None)
        assert torch.equal(velocity(clone), velocity(peer))
    clone.unpatch_model(CPU)
    assert same_bytes(bytes_of(model), before)


def test_moving_takes_the_bytes_along(load, files):
    weight = load(files("Q2_K")[0]).model.diffusion_model.to("meta").single_blocks[0].linear1.weight
    assert weight.device.type == weight._qdata.device.type == "meta"
    assert weight._qdata.dtype == torch.uint8


def test_saving_is_refused_in_a_sentence(load, files):
    with pytest.raises(ValueError, match="GGUF weights cannot be saved; load it with"):
        load(files("Q2_K")[0]).state_dict_for_saving()


def test_listed_and_loaded_by_the_node(pack, load, files, parts, monkeypatch, tmp_path):
    import folder_paths

    names = {kind: tiny_model.write("authors", tmp_path)[f"{kind}_name"] for kind in ("text_encoder", "vae")}
    (tmp_path / "diffusion_models" / "more").mkdir()
    for file in files("Q8_0"):
        shutil.copy(file, tmp_path / "diffusion_models" / "more" / file.name)
    kinds = {
        kind: ([str(tmp_path / kind)], {".safetensors"})
        for kind in ("diffusion_models", "text_encoders", "vae")
    }
    monkeypatch.setattr(
        folder_paths, "folder_names_and_paths", {**folder_paths.folder_names_and_paths, **kinds}
    )
    encoder = unconvert(parts[1].state_dict(), llama_rules(parts[1].config.num_layers))
    tiny_gguf.write(tmp_path / "text_encoders" / "te.gguf", encoder, "Q8_0", "qwen3")
    file_names = pack("nodes.adapters.loading.files")
    assert "more/Q8_0.gguf" in file_names.model_names()
    assert "te.gguf" in file_names.text_encoder_names()
    assert not any(name.endswith(".gguf") for name in file_names.vae_names())
    loader = pack("nodes.loaders").OvisImageLoader
    model, clip, _ = loader.execute("more/Q8_0.gguf", "te.gguf", names["vae"], "default").result
    assert torch.equal(velocity(model), velocity(load(files("Q8_0")[1])))
    assert clip.tokenize("A poster")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_llama_cpps_text_encoder(pack, parts, tmp_path, kind):
    encoder = parts[1]
    names = list(llama_rules(encoder.config.num_layers))
    held = tiny_gguf.write(tmp_path / "te.gguf", unconvert(encoder.state_dict(), names), kind, "qwen3")
    save_file(convert(held, names), tmp_path / "te.safetensors")
    load = pack("nodes.adapters.loading.text_encoder").load_text_encoder
    ours, peer = load(tmp_path / "te.gguf"), load(tmp_path / "te.safetensors")
    states = [
        clip.encode_from_tokens_scheduled(clip.tokenize('A sign that says "OPEN"'))[0][0]
        for clip in (ours, peer)
    ]
    assert states[1].std() > 0.1
    assert torch.equal(*states)
    assert ours.cond_stage_model.model.embed_tokens.weight._qdata.dtype == torch.uint8
    assert ours.patcher.model_size() < 0.4 * peer.patcher.model_size()


@torch.inference_mode()  # as ComfyUI's executor runs nodes, loading and moving included
def test_under_comfyuis_executor(pack, load, files):
    import comfy.model_management

    path, plain = files("Q8_0")
    model, peer = load(path), load(plain)
    lora = lora_of(peer)
    both = [ours(pack, m, lora) for m in (model, peer)]
    comfy.model_management.load_models_gpu(both)
    assert distance(*map(velocity, both)) < 1e-5
    comfy.model_management.unload_all_models()
    assert torch.equal(velocity(model), velocity(peer))
    (report,) = pack("nodes.quantization").OvisImageQuantCheck.execute(model, peer, 1).result
    assert "largest error 0.00e+00" in report
