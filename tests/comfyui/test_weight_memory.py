"""The memory table of docs/quantised_weights.md, counted from the full-size networks without their weights.

After a wanted change: `UPDATE_GOLDEN=1 python3 dev.py test tests/comfyui/test_weight_memory.py`.
"""

import math
import os
import re

import tiny_model

from ovis_core.dequantize import BLOCK_FORMATS
from ovis_core.text_encoder import TextEncoder, TextEncoderConfig
from ovis_core.transformer import OvisImageTransformer, TransformerConfig

PAGE = tiny_model.ROOT / "docs" / "quantised_weights.md"
TABLE = re.compile(r"\| weights \|.*?\n\n", re.DOTALL)
PLAIN = {"fp32": 4, "bf16, fp16": 2, "fp8_e4m3fn": 1}


def shapes(module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def gguf_bytes(shape: tuple[int, ...], name: str) -> int:
    """A matrix in the format; what does not fit it in F16, vectors in F32, as converters have it."""
    form = BLOCK_FORMATS[name]
    if len(shape) < 2:
        return 4 * math.prod(shape)
    return shape[0] * (2 * shape[1] if shape[1] % form.numbers else form.row_bytes(shape[1]))


def scaled_bytes(key: str, shape: tuple[int, ...], quantized: re.Pattern, name: str) -> int:
    if not quantized.fullmatch(key):
        return 2 * math.prod(shape)
    return math.prod(shape) + 4 * (1 if name == "fp8_scaled" else shape[0])


def table(quantized: re.Pattern) -> str:
    networks = [
        shapes(OvisImageTransformer(TransformerConfig(), device="meta")),
        shapes(TextEncoder(TextEncoderConfig(), device="meta")),
    ]
    rows = {}
    for name, size in PLAIN.items():
        counts = [size * sum(map(math.prod, network.values())) for network in networks]
        rows[name] = [counts[0], None] if name == "fp8_e4m3fn" else counts
    for name in ("fp8_scaled", "int8"):
        rows[name] = [sum(scaled_bytes(*item, quantized, name) for item in networks[0].items()), None]
    for name in sorted(BLOCK_FORMATS, key=lambda name: -BLOCK_FORMATS[name].row_bytes(256)):
        rows[f"GGUF {name}"] = [sum(gguf_bytes(s, name) for s in network.values()) for network in networks]
    lines = ["| weights | diffusion model, GiB | text encoder, GiB |", "|---|---|---|"]
    for name, counts in rows.items():
        cells = ("-" if count is None else f"{count / 2**30:.2f}" for count in counts)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n"


def test_the_table_is_what_is_counted(pack):
    expected = table(pack("nodes.adapters.low_precision").QUANTIZED)
    page = PAGE.read_text("utf-8")
    if os.environ.get("UPDATE_GOLDEN"):
        page = TABLE.sub(lambda _: expected, page)
        PAGE.write_text(page, "utf-8")
    assert TABLE.search(page).group() == expected
