"""The blocks for inference beside the textbook's: the same numbers, out of the same parameters."""

import pytest
import torch

from ovis_core.blocks import TEXTBOOK, DoubleStreamBlock, LastLayer, SingleStreamBlock, call_block
from ovis_core.lean_blocks import (
    ACTIVATIONS,
    LeanDoubleStreamBlock,
    LeanLastLayer,
    LeanSingleStreamBlock,
    Tools,
    fewest_parts,
    lean_blocks,
    most_parts,
)
from ovis_core.rope import EmbedND, apply_rope
from ovis_core.transformer import OvisImageTransformer

HIDDEN, HEADS, MLP, BATCH, TEXT, IMAGE = 32, 2, 48, 3, 7, 30
KINDS = {
    "double": (DoubleStreamBlock, LeanDoubleStreamBlock),
    "single": (SingleStreamBlock, LeanSingleStreamBlock),
}


def rotating_norm(norm, q, k, pe):
    """As a kernel that does both."""
    q, k = norm(q, k)
    return apply_rope(q, pe), apply_rope(k, pe), True


def pair(kind, dtype=torch.float32, tools=None):
    """A textbook block and the lean one with its weights."""
    torch.manual_seed(0)
    textbook, lean = KINDS[kind]
    blocks = textbook(HIDDEN, HEADS, MLP), lean(HIDDEN, HEADS, MLP, tools=tools or Tools())
    blocks[1].load_state_dict(blocks[0].state_dict(), strict=True)
    return [block.to(dtype).requires_grad_(False) for block in blocks]


def inputs(kind, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    txt, img = (torch.randn(BATCH, length, HIDDEN, generator=generator) for length in (TEXT, IMAGE))
    vec = torch.randn(BATCH, HIDDEN, generator=generator)
    pe = EmbedND((4, 6, 6), 1e4)(torch.arange(TEXT + IMAGE)[:, None].expand(-1, 3), txt.device)
    tokens = (img, txt) if kind == "double" else (torch.cat((txt, img), dim=1),)
    return *(x.to(dtype) for x in (*tokens, vec)), pe


@pytest.mark.parametrize(
    ("kind", "dtype", "num_parts", "norm"),
    [
        ("double", torch.float32, 1, None),
        ("double", torch.bfloat16, 1, rotating_norm),
        ("single", torch.float32, 1, rotating_norm),
        ("single", torch.float32, 4, None),
        ("single", torch.bfloat16, 1, None),
        ("single", torch.bfloat16, 3, rotating_norm),
        ("single", torch.float16, 2, None),
    ],
)
def test_lean_blocks_are_the_textbooks(kind, dtype, num_parts, norm):
    textbook, lean = pair(kind, dtype, Tools(norm=norm) if norm else None)
    given = inputs(kind, dtype)
    options = {"num_parts": num_parts} if kind == "single" else {}
    expected = textbook(*given)
    before = [tensor.clone() for tensor in given]
    with torch.no_grad():
        got = lean(*given, **options)
    for one, other in zip(*((x if kind == "double" else (x,)) for x in (got, expected)), strict=True):
        assert (one - other).norm() <= (1e-6 if dtype == torch.float32 else 4e-3) * other.norm()
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(given, before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_table_stand_for_the_modulation_layers(kind):
    textbook, lean = pair(kind)
    *tokens, vec, pe = inputs(kind)
    layers = [lean.img_mod, lean.txt_mod] if kind == "double" else [lean.modulation]
    rows = torch.cat([layer.lin(torch.nn.functional.silu(vec)) for layer in layers], dim=-1)
    expected = textbook(*tokens, vec, pe)
    for layer in layers:
        layer.lin.weight.fill_(float("nan"))  # not asked
    with torch.no_grad():
        got = lean(*tokens, vec, pe, modulation=rows)
    for one, other in zip(*((x if kind == "double" else (x,)) for x in (got, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_the_last_layer():
    torch.manual_seed(0)
    textbook, lean = LastLayer(HIDDEN, 8), LeanLastLayer(HIDDEN, 8)
    lean.load_state_dict(textbook.state_dict(), strict=True)
    x, vec = torch.randn(BATCH, IMAGE, HIDDEN), torch.randn(BATCH, HIDDEN)
    expected = textbook(x, vec)
    with torch.no_grad():
        torch.testing.assert_close(lean(x, vec), expected)
        torch.testing.assert_close(lean(x, vec, modulation=lean.adaLN_modulation(vec)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_rotary_table_the_attention_rotates(kind):
    textbook, lean = pair(kind, tools=Tools(norm=lambda norm, q, k, pe: (*norm(q, k), False)))
    *tokens, vec, pe = inputs(kind)
    seen = []

    def attention(q, k, v, given):
        seen.append(given)
        return (
            torch.nn.functional.scaled_dot_product_attention(apply_rope(q, pe), apply_rope(k, pe), v)
            .transpose(1, 2)
            .flatten(2)
        )

    with torch.no_grad():
        got = lean(*tokens, vec, None, attention)
    assert seen == [None]
    expected = textbook(*tokens, vec, pe)
    for one, other in zip(*((x if kind == "double" else (x,)) for x in (got, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_a_layer_that_cannot_be_held_is_called_once():
    _, lean = pair("single", tools=Tools(hold=lambda layer, x: None))
    calls = []
    lean.linear1.register_forward_hook(lambda layer, given, out: calls.append(out.shape[1]))
    with torch.no_grad():
        lean(*inputs("single"), num_parts=4)
    assert calls == [TEXT + IMAGE]


@pytest.mark.parametrize("kind", KINDS)
def test_with_gradients_they_are_the_textbook_to_the_bit(kind):
    textbook, lean = (block.requires_grad_(True) for block in pair(kind))
    for block in (textbook, lean):
        out = block(*inputs(kind))
        sum(x.square().mean() for x in (out if kind == "double" else (out,))).backward()
    for one, other in zip(lean.parameters(), textbook.parameters(), strict=True):
        assert other.grad.abs().max() > 0
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_of_lean_blocks(parts, dtype):
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(2, 16, 8, 12, generator=generator), torch.randn(2, 40, 32, generator=generator)
    sigma, errors = torch.tensor([0.9375, 0.25]), []
    with torch.no_grad():
        exact = parts[0](x, sigma, context)
        for blocks in (TEXTBOOK, lean_blocks()):
            network = OvisImageTransformer(parts[0].config, blocks=blocks)
            network.load_state_dict(parts[0].state_dict(), strict=True)
            out = network.to(dtype)(x.to(dtype), sigma, context.to(dtype))
            errors.append(((out - exact).norm() / exact.norm()).item())
    assert errors[1] <= max(1e-6, 1.1 * errors[0])


def test_runs_see_every_block_in_order(parts):
    """The one loop, with its one seam."""
    seen = []

    def run(kind, index, block, *inputs):
        seen.append((kind, index, block))
        return call_block(kind, index, block, *inputs)

    network = parts[0]
    x, context = torch.randn(1, 16, 4, 4), torch.randn(1, 8, 32)
    with torch.no_grad():
        out = network(x, torch.ones(1), context, run=run)
        assert torch.equal(out, network(x, torch.ones(1), context))
    doubles = [("double", i, block) for i, block in enumerate(network.double_blocks)]
    singles = [("single", i, block) for i, block in enumerate(network.single_blocks)]
    assert seen == [*doubles, *singles, ("last", 0, network.final_layer)]


def test_parts_are_as_few_as_fit():
    num_tokens, bytes_a_token = 8704, 6144
    for parts, values in ACTIVATIONS.items():
        room = values * num_tokens * bytes_a_token
        assert fewest_parts(num_tokens, bytes_a_token, room) == parts
        assert fewest_parts(num_tokens, bytes_a_token, room - 1) == min(parts + 1, 4)
    assert [most_parts(count) for count in (1, 2048, 4096, 6143, 6144, 8192, 100_000)] == [
        1,
        1,
        2,
        2,
        3,
        4,
        4,
    ]
