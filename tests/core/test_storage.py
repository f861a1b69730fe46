import json
import os
import stat
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ovis_core.files import storage


def crafted(path, header: dict | bytes, num_bytes: int):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * num_bytes)
    return path


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_header_of_a_real_file(tmp_path):
    tensors = {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.zeros(()), "c": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = storage.read_header(tmp_path / "x.safetensors")
    assert {key: (info.dtype, info.shape) for key, info in header.items()} == {
        "a": ("BF16", (2, 3)),
        "b": ("F32", ()),
        "c": ("F32", (0, 4)),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK\x03\x04rest", "PyTorch pickle"),
        (b"\x80\x02rest", "Python pickle"),
        (b"GGUF\x03\x00\x00\x00rest", "GGUF file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (struct.pack("<Q", 2**63) + b"{}", "cut off: its header should take 9223372036854775808 bytes"),
        (struct.pack("<Q", 100) + b"{}", "header should take 100 bytes, the file has 10"),
        (struct.pack("<Q", 4) + b"{]}!", "damaged safetensors header"),
    ],
)
def test_what_is_no_safetensors_file_is_named(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        storage.read_header(path)
    assert str(error.value).startswith("model.safetensors ")


@pytest.mark.parametrize(
    ("header", "num_bytes", "message"),
    [
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, 12, "bytes of 'b' do not fit"),  # overlap
        ({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, 20, "bytes of 'b' do not fit"),  # hole
        ({"a": entry(0, 0, [2**34])}, 0, "bytes of 'a' do not fit"),  # shape that lies
        ({"a": entry(0, 8, [2])}, 20, "12 bytes after its last tensor"),
        ({"a": entry(0, 8, [2]), "b": entry(8, 16, [2])}, 10, "cut off: 6 bytes are missing, from 'b' on"),
        ({"a": entry(0, 8, [-2])}, 8, "unsupported entry for the tensor 'a'"),
        ({"a": entry(0, 8, [2], "F31")}, 8, "unsupported entry for the tensor 'a'"),
        ({"a": {"dtype": "F32"}}, 8, "unsupported entry for the tensor 'a'"),
        (
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            4,
            "a name appears twice",
        ),
        (b"[" * 5000, 0, "damaged safetensors header"),
        (b"[]", 0, "damaged safetensors header"),
    ],
)
def test_lying_headers_are_refused(tmp_path, header, num_bytes, message):
    with pytest.raises(ValueError, match=message):
        storage.read_header(crafted(tmp_path / "x.safetensors", header, num_bytes))


@given(position=st.integers(0, 399), value=st.integers(0, 255))
@settings(deadline=None, max_examples=300)
def test_what_we_accept_the_library_accepts(tmp_path_factory, position, value):
    """A file with one byte changed is either refused with a ValueError or as sound as safetensors finds
    it.
    """
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    save_file({"weight": torch.ones(8, 4), "bias": torch.ones(8)}, path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(content)
    try:
        header = storage.read_header(path)
    except ValueError:
        return
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == header.keys()
        assert all(tuple(file.get_tensor(key).shape) == info.shape for key, info in header.items())


@pytest.mark.parametrize("length", [316, 640, 66_176])
def test_header_lengths_that_look_like_other_files(tmp_path, length):
    """As bytes, these lengths begin like a web page or a pickle."""
    raw = json.dumps({"a": entry(0, 8, [2])}).encode().ljust(length)
    assert storage.read_header(crafted(tmp_path / "x.safetensors", raw, 8)).keys() == {"a"}


@pytest.mark.parametrize("metadata", [{"a": 5}, [], {"a": "x" * (2**20 + 1)}])
def test_odd_metadata_is_refused(tmp_path, metadata):
    path = crafted(tmp_path / "x.safetensors", {"__metadata__": metadata, "a": entry(0, 8, [2])}, 8)
    with pytest.raises(ValueError, match="damaged metadata"):
        storage.read_header(path)


def test_folders(tmp_path):
    with pytest.raises(ValueError, match=r"holds no \.safetensors file"):
        storage.model_files(tmp_path)
    state = {"a": torch.ones(4), "b": torch.ones(4), "c": torch.ones(4)}
    storage.write_folder(state, tmp_path, "model", max_shard_bytes=32)
    files = storage.model_files(tmp_path)
    assert [file.name for file in files] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert storage.read_headers(files).keys() == state.keys()

    index = tmp_path / "model.safetensors.index.json"
    content = index.read_text()
    index.unlink()
    with pytest.raises(ValueError, match="2 .safetensors files and 0 indexes, one index is needed"):
        storage.model_files(tmp_path)
    index.write_text(content.replace("model-00001", "../model-00001"))
    with pytest.raises(ValueError, match="no plain file name"):
        storage.model_files(tmp_path)
    index.write_text('{"weight_map": 3}')
    with pytest.raises(ValueError, match="lists no files"):
        storage.model_files(tmp_path)
    index.write_text(content)
    files[1].unlink()
    with pytest.raises(ValueError, match="model-00002-of-00002.safetensors is missing"):
        storage.model_files(tmp_path)


def test_an_index_that_lies_is_refused(tmp_path):
    state = {"a": torch.ones(4), "b": torch.ones(4), "c": torch.ones(4)}
    storage.write_folder(state, tmp_path, "model", max_shard_bytes=32)
    infos = storage.read_headers(storage.model_files(tmp_path))
    storage.check_index(tmp_path, infos)
    index = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    swapped = {**weight_map, "a": weight_map["c"]}
    extra = {**weight_map, "d": weight_map["c"]}
    for wrong in (swapped, extra, {key: weight_map[key] for key in ("a", "c")}):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(ValueError, match="but it lies in"):
            storage.check_index(tmp_path, infos)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    for name in ("a", "b"):
        save_file({"w": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="both a.safetensors and b.safetensors hold the tensor 'w'"):
        storage.read_headers([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    storage.write_tensors({"a": torch.ones(3)}, path)

    def full_disk(tensors, name, metadata):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        storage.write_tensors({"a": torch.zeros(3)}, path)
    assert load_file(path)["a"].tolist() == [1, 1, 1]
    assert os.listdir(tmp_path) == ["x.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_written_files_are_readable_like_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    storage.write_tensors({"a": torch.ones(3)}, tmp_path / "x.safetensors")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "x.safetensors")]
    assert modes[0] == modes[1]
