"""How much work loading is: headers that are read, networks that are built."""

from pathlib import Path

import pytest
import tiny_gguf
import tiny_model
from safetensors.torch import save_file
from tiny_lora import lora_file, random_pairs


@pytest.fixture
def counted(monkeypatch):
    """A function that counts the calls of another: (owner, its name) -> the first arguments."""

    def counted(owner, name):
        calls, function = [], getattr(owner, name)

        def counting(first, *args, **kwargs):
            calls.append(first)
            return function(first, *args, **kwargs)

        monkeypatch.setattr(owner, name, counting)
        return calls

    return counted


@pytest.fixture
def load(pack, monkeypatch):
    """The loader node's adapter, which takes paths for names."""
    adapter = pack("nodes.adapters.loading.model")
    monkeypatch.setattr(adapter, "path_of", lambda part, name: Path(name))
    return lambda *paths, weight_dtype="default": adapter.load_model(*map(str, paths), weight_dtype)


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_each_header_is_read_once(pack, load, counted, parts, tmp_path, kind):
    tiny_model.write("diffusers", tmp_path)
    paths = [tmp_path / "diffusers" / "Ovis-Image-tiny"] * 3
    if kind == "gguf":
        paths[0] = tmp_path / "model.gguf"
        tiny_gguf.write(paths[0], parts[0].state_dict(), "Q8_0")
    headers = counted(pack("ovis_core.files.storage"), "read_header")
    gguf_headers = counted(pack("ovis_core.files.checkpoint"), "read_gguf_header")
    load(*paths)
    folders = ("text_encoder", "vae") if kind == "gguf" else ("transformer", "text_encoder", "vae")
    shards = [file for folder in folders for file in (paths[1] / folder).glob("*.safetensors")]
    assert sorted(headers) == sorted(shards)
    assert gguf_headers == paths[:1] * (kind == "gguf")


def test_a_network_is_built_once_to_be_checked_and_once_to_run(pack, counted, tmp_path, monkeypatch, parts):
    import folder_paths

    names = pack("ovis_core.lora.names")
    for table in (pack("ovis_core.files.parts").parameter_shapes, names.all_layers, names.layer_table):
        table.cache_clear()
    path = tmp_path / "diffusion_models" / tiny_model.write("comfyui", tmp_path)["model_name"]
    built = counted(pack("ovis_core.transformer").OvisImageTransformer, "__init__")
    load = pack("nodes.adapters.loading.diffusion_model").load_diffusion_model
    model = load(path)
    assert len(built) == 2
    load(path)
    assert len(built) == 3

    folders = {**folder_paths.folder_names_and_paths, "loras": ([str(tmp_path)], {".safetensors"})}
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", folders)
    save_file(lora_file(random_pairs(parts[0]), "diffusion_model.")[0], tmp_path / "lora.safetensors")
    pack("nodes.adapters.lora.lora").load_lora(model, "lora.safetensors", 1.0)
    assert len(built) == 3
