"""The tables of memory in the docs, counted from the full-size networks without their weights.

After a wanted change: `UPDATE_GOLDEN=1 python3 dev.py test tests/comfyui/test_weight_memory.py`.
"""

import math
import os
import re

import tiny_model
import torch

from ovis_core.files.dequantize import BLOCK_FORMATS
from ovis_core.text_encoder import TextEncoder, TextEncoderConfig
from ovis_core.transformer import OvisImageTransformer, TransformerConfig

PAGE = tiny_model.ROOT / "docs" / "quantised_weights.md"
MEMORY = tiny_model.ROOT / "docs" / "memory.md"
TABLE = re.compile(r"\| weights \|.*?\n\n", re.DOTALL)
LADDER = re.compile(r"\| card \|.*?\n\n", re.DOTALL)
CARDS = (24, 16, 12, 8)  # GiB
ON_THE_LADDER = ("bf16, fp16", "fp8_scaled", "int8", "GGUF Q8_0", "GGUF Q6_K", "GGUF Q4_K")
CONTEXT = 0.5  # GiB that a CUDA context takes; assumed, since it was measured on no card
GGUF_LAYER = 0.19  # GiB of the largest layer, multiplied out
TABLE_OF_SIGMAS = 0.05  # GiB of the modulation of 50 steps
# What is computed from sigma alone, and not on the GPU while sampling.
MODULATION = re.compile(r".*(_mod|modulation)\.lin\..*|final_layer\.adaLN_modulation\..*")
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


def counted(quantized: re.Pattern) -> dict[str, list[int | None]]:
    """Bytes of the diffusion model, of its part on the GPU, and of the text encoder in each format."""
    model = shapes(OvisImageTransformer(TransformerConfig(), device="meta"))
    sampling = {key: shape for key, shape in model.items() if not MODULATION.fullmatch(key)}
    networks = [model, sampling, shapes(TextEncoder(TextEncoderConfig(), device="meta"))]
    rows = {}
    for name, size in PLAIN.items():
        counts = [size * sum(map(math.prod, network.values())) for network in networks]
        rows[name] = [*counts[:2], None] if name == "fp8_e4m3fn" else counts
    for name in ("fp8_scaled", "int8"):
        sizes = [[scaled_bytes(*item, quantized, name) for item in net.items()] for net in networks[:2]]
        rows[name] = [*map(sum, sizes), None]
    for name in sorted(BLOCK_FORMATS, key=lambda name: -BLOCK_FORMATS[name].row_bytes(256)):
        rows[f"GGUF {name}"] = [sum(gguf_bytes(s, name) for s in network.values()) for network in networks]
    return rows


def table(rows: dict[str, list[int | None]]) -> str:
    lines = [
        "| weights | diffusion model, GiB | of it on the GPU, GiB | text encoder, GiB |",
        "|---|---|---|---|",
    ]
    for name, counts in rows.items():
        cells = ("-" if count is None else f"{count / 2**30:.2f}" for count in counts)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n"


def ladder(rows: dict[str, list[int | None]], kept_free: float) -> str:
    """Which weights a card holds whole beside `kept_free` (GiB), and how much of them it does not."""
    lines = [f"| card | {' | '.join(ON_THE_LADDER)} |", "|---" * (1 + len(ON_THE_LADDER)) + "|"]
    for card in CARDS:
        cells = []
        for name in ON_THE_LADDER:
            needed = rows[name][1] / 2**30 + TABLE_OF_SIGMAS + kept_free + CONTEXT
            missing = needed + GGUF_LAYER * name.startswith("GGUF") - card
            cells.append("whole" if missing <= 0 else f"{missing:.1f} GiB streamed")
        lines.append(f"| {card} GB | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n"


def test_the_tables_are_what_is_counted(pack, model, monkeypatch):
    import comfy.model_management as management

    rows = counted(pack("nodes.adapters.weights.low_precision").QUANTIZED)
    monkeypatch.setattr(management, "pytorch_attention_flash_attention", lambda: True)
    monkeypatch.setattr(model.model.diffusion_model, "config", TransformerConfig())
    monkeypatch.setattr(model.model, "get_dtype_inference", lambda: torch.bfloat16)
    # What ComfyUI keeps free of weights when it loads a model to sample with guidance.
    memory = pack("nodes.adapters.sampling.memory")
    activations = memory.FACTOR * model.model.memory_required((2, 16, 128, 128))
    kept_free = max(activations + management.extra_reserved_memory(), management.minimum_inference_memory())
    for path, pattern, expected in (
        (PAGE, TABLE, table(rows)),
        (MEMORY, LADDER, ladder(rows, kept_free / 2**30)),
    ):
        page = path.read_text("utf-8")
        if os.environ.get("UPDATE_GOLDEN"):
            page = pattern.sub(lambda _, text=expected: text, page)
            path.write_text(page, "utf-8")
        assert pattern.search(page).group() == expected
