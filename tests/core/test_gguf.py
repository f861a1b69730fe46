"""GGUF files as the `gguf` package writes them, and damaged ones."""

import struct

import gguf
import pytest
import tiny_gguf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ovis_core.files.checkpoint import open_checkpoint
from ovis_core.files.dequantize import BLOCK_FORMATS
from ovis_core.files.gguf import map_gguf, read_gguf_header
from ovis_core.files.layouts import diffusers_transformer_rules, flux_transformer_rules, llama_rules
from ovis_core.files.parts import TEXT_ENCODER, TRANSFORMER
from ovis_core.files.rules import unconvert

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def names(parts, text: str = "txt", norm: str = "weight", prefix: str = ""):
    """The small transformer under a converter's names."""
    config, state = parts[0].config, parts[0].state_dict()
    rules = list(flux_transformer_rules(config.depth, config.depth_single_blocks, text, norm))
    return {prefix + key: tensor for key, tensor in unconvert(state, rules).items()}


@pytest.mark.parametrize("kind", [*BLOCK_FORMATS, *PLAIN])
def test_every_type_gives_the_velocity_of_its_multiplied_out_weights(tmp_path, parts, kind):
    path = tmp_path / "model.gguf"
    held = tiny_gguf.write(path, names(parts), kind)
    checkpoint = open_checkpoint(path, TRANSFORMER)
    assert checkpoint.dtype == PLAIN.get(kind, torch.bfloat16)
    assert set(checkpoint.block_formats.values()) == {kind} - set(PLAIN)
    kept = checkpoint.read(keep_quantized=True)
    for key, name in checkpoint.block_formats.items():
        assert kept[key].dtype == torch.uint8
        assert kept[key].shape == (len(held[key]), BLOCK_FORMATS[name].row_bytes(held[key].shape[1]))
    ours = checkpoint.module(dtype=torch.float32)
    peer = type(ours)(ours.config)
    peer.load_state_dict(held, strict=True)
    x, sigma, context = torch.randn(2, 16, 8, 12), torch.tensor([0.9, 0.2]), torch.randn(2, 20, 32)
    with torch.no_grad():
        assert torch.equal(ours(x, sigma, context), peer(x, sigma, context))


@pytest.mark.parametrize(
    ("text", "norm", "prefix"),
    [
        ("txt", "weight", ""),
        ("semantic_txt", "weight", "model.diffusion_model."),
        ("semantic_txt", "scale", ""),
        ("txt", "scale", "model.diffusion_model."),
    ],
)
def test_converters_names(tmp_path, parts, text, norm, prefix):
    tiny_gguf.write(tmp_path / "named.gguf", names(parts, text, norm, prefix), "Q8_0")
    tiny_gguf.write(tmp_path / "plain.gguf", names(parts), "Q8_0")
    ours, peer = (
        open_checkpoint(tmp_path / f"{name}.gguf", TRANSFORMER).read() for name in ("named", "plain")
    )
    assert ours.keys() == peer.keys() == parts[0].state_dict().keys()
    assert all(torch.equal(ours[key], peer[key]) for key in peer)


def test_rows_of_bytes_are_joined_as_rows_of_numbers(tmp_path, parts):
    """diffusers' names: q, k and v apart, halves the other way round."""
    config = parts[0].config
    single = (config.hidden_size,) * 3 + (2 * config.mlp_size,)
    rules = list(diffusers_transformer_rules(config.depth, config.depth_single_blocks, single))
    held = tiny_gguf.write(tmp_path / "d.gguf", unconvert(parts[0].state_dict(), rules), "Q4_K")
    state = open_checkpoint(tmp_path / "d.gguf", TRANSFORMER).read(dtype=torch.float32)
    back = unconvert(state, rules)
    assert all(torch.equal(back[key], held[key]) for key in held)


def test_rows_of_two_types_cannot_be_joined(tmp_path, parts):
    config = parts[0].config
    rules = diffusers_transformer_rules(config.depth, config.depth_single_blocks)
    state = unconvert(parts[0].state_dict(), rules)
    path = tmp_path / "mixed.gguf"
    writer = gguf.GGUFWriter(path, "flux")
    for key, tensor in state.items():
        kind = gguf.GGMLQuantizationType["Q8_0" if key.endswith("to_k.weight") else "F32"]
        writer.add_tensor(key, gguf.quantize(tensor.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="as F32 and Q8_0, which cannot be joined into one layer"):
        open_checkpoint(path, TRANSFORMER)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
def test_llama_cpps_text_encoder(tmp_path, parts, kind):
    encoder = parts[1]
    rules = list(llama_rules(encoder.config.num_layers))
    state = unconvert(encoder.state_dict(), rules)
    settings = {"rope.freq_base": 5e5, "attention.layer_norm_rms_epsilon": 1e-5}
    held = tiny_gguf.write(tmp_path / "te.gguf", state, kind, "qwen3", **settings)
    checkpoint = open_checkpoint(tmp_path / "te.gguf", TEXT_ENCODER)
    assert checkpoint.layout.name == "llama.cpp"
    assert checkpoint.config.rope_theta == 5e5
    assert checkpoint.config.norm_eps == pytest.approx(1e-5)
    read = unconvert(checkpoint.read(dtype=torch.float32), rules)
    assert all(torch.equal(read[key].float(), held[key]) for key in held)


def small_file(path) -> bytes:
    tensors = {"one": torch.randn(4, 64), "two": torch.randn(7), "three": torch.randn(3, 32)}
    tiny_gguf.write(path, tensors, "Q8_0", number=0.5)
    return path.read_bytes()


def test_header_is_what_was_written(tmp_path):
    small_file(tmp_path / "s.gguf")
    infos, metadata = read_gguf_header(tmp_path / "s.gguf")
    assert {key: (info.dtype, info.shape) for key, info in infos.items()} == {
        "one": ("Q8_0", (4, 64)),
        "two": ("F32", (7,)),
        "three": ("Q8_0", (3, 32)),
    }
    assert metadata["general.architecture"] == "flux"
    assert metadata["flux.number"] == 0.5
    assert map_gguf(tmp_path / "s.gguf", infos)["one"].shape == (4, 68)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:20], "is cut off within its header"),
        (lambda b: b[:-40], "bytes are missing, from three on"),
        (lambda b: b + bytes(32), "bytes after its last tensor"),
        (lambda b: b"NOPE" + b[4:], "no GGUF file though it is named so"),
        (lambda b: b"<html>" + b[6:], "is a web page"),
        (lambda b: b[:4] + struct.pack("<I", 1) + b[8:], "GGUF version 1"),
        (lambda b: b[:8] + struct.pack("<Q", 2**63) + b[16:], "9223372036854775808 tensors"),
        (lambda b: b[:16] + struct.pack("<Q", 2**63) + b[24:], "9223372036854775808 metadata entries"),
        (lambda b: b[:24] + struct.pack("<Q", 2**62) + b[32:], "a text of 4611686018427387904 bytes"),
        (lambda b: b.replace(b"two", b"one"), "one appears twice"),
        (lambda b: b.replace(b"two", b"t\no"), "a tensor has the name"),
        (
            lambda b: b.replace(struct.pack("<IQQI", 2, 64, 4, 8), struct.pack("<IQQI", 2, 64, 4, 20)),
            "stores one as IQ4_NL, which is not supported; use a file in Q4_0",
        ),
        (
            lambda b: b.replace(struct.pack("<IQQI", 2, 64, 4, 8), struct.pack("<IQQI", 2, 64, 4, 99)),
            "stores one as type 99",
        ),
        (
            lambda b: b.replace(struct.pack("<IQQI", 2, 64, 4, 8), struct.pack("<IQQI", 2, 63, 4, 8)),
            r"one has the shape \[4, 63\]",
        ),
        (
            lambda b: b.replace(struct.pack("<IQQI", 2, 64, 4, 8), struct.pack("<IQQI", 9, 64, 4, 8)),
            "one has 9 dimensions",
        ),
        (
            lambda b: b.replace(struct.pack("<IQQI", 2, 64, 4, 8), struct.pack("<IQQI", 2, 64, 8, 8)),
            "the bytes of two lie elsewhere",
        ),
        (
            lambda b: b.replace(struct.pack("<IQ", 8, 2), struct.pack("<IQ", 8, 2**40)),
            "an array of 1099511627776 values",
        ),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path, content, change, message):
    path = tmp_path / "bad.gguf"
    changed = change(content)
    assert changed != content
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=message) as caught:
        read_gguf_header(path)
    assert "bad.gguf" in str(caught.value)


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    return small_file(tmp_path_factory.mktemp("gguf") / "s.gguf")


@given(position=st.integers(0, 400), value=st.integers(0, 255))
@settings(max_examples=300)
def test_any_byte_may_be_wrong(content, tmp_path_factory, position, value):
    """A damaged header is refused by a ValueError, or what is read lies within the file."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.gguf"
    damaged = bytearray(content)
    damaged[position % len(content)] = value
    path.write_bytes(damaged)
    try:
        infos, _ = read_gguf_header(path)
    except ValueError:
        return
    tensors = map_gguf(path, infos)
    assert tensors.keys() == infos.keys()
    assert sum(tensor.nbytes for tensor in tensors.values()) <= len(content)


def test_models_are_checked_as_in_safetensors(tmp_path, parts):
    state = names(parts)
    gone = {key: tensor for key, tensor in state.items() if key != "single_blocks.1.linear1.weight"}
    tiny_gguf.write(tmp_path / "gone.gguf", gone, "Q8_0")
    with pytest.raises(ValueError, match="1 tensors are missing, first single_blocks.1.linear1.weight"):
        open_checkpoint(tmp_path / "gone.gguf", TRANSFORMER)
    tiny_gguf.write(tmp_path / "odd.gguf", state | {"img_in.bias": torch.ones(7)}, "Q8_0")
    with pytest.raises(ValueError, match=r"has the shape \[7\] where img_in.bias should have"):
        open_checkpoint(tmp_path / "odd.gguf", TRANSFORMER)
    with pytest.raises(ValueError, match="looks like an Ovis-Image diffusion model, not like"):
        open_checkpoint(tmp_path / "odd.gguf", TEXT_ENCODER)


def test_scales_that_are_no_numbers_are_refused(tmp_path, parts):
    path = tmp_path / "nan.gguf"
    tiny_gguf.write(path, names(parts), "Q4_K")
    infos, _ = read_gguf_header(path)
    content = bytearray(path.read_bytes())
    offset = infos["single_blocks.0.linear1.weight"].offset
    content[offset : offset + 2] = struct.pack("<e", float("nan"))
    path.write_bytes(content)
    with pytest.raises(ValueError, match="linear1.weight in nan.gguf has scales that are NaN"):
        open_checkpoint(path, TRANSFORMER).read(keep_quantized=True)


def test_a_gguf_file_under_another_name_is_named(tmp_path, parts):
    tiny_gguf.write(tmp_path / "model.safetensors", names(parts), "Q8_0")
    with pytest.raises(ValueError, match="is a GGUF file under another name; give it the ending .gguf"):
        open_checkpoint(tmp_path / "model.safetensors", TRANSFORMER)
