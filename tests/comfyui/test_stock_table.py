"""The table of stock nodes in docs/stock_nodes.md, made of what the tests beside this one asserted.

After a wanted change: `UPDATE_GOLDEN=1 python3 dev.py test tests/comfyui`, then read the difference. What
these tests share stands here too: `Outcome`, which asserts and writes a row in one go, and graphs to put a
node into.
"""

import itertools
import os

import pytest
import tiny_model

DOCUMENT = tiny_model.ROOT / "docs" / "stock_nodes.md"
SECTIONS = {
    "test_stock_models": "Models and sampling",
    "test_stock_conditioning": "Conditioning, LoRAs and hooks",
    "test_stock_latents": "Latents and pictures",
}
REQUIRED = {
    *("ModelSamplingFlux", "ModelSamplingSD3", "ModelSamplingAuraFlow", "CFGGuider", "BasicGuider"),
    *("DualCFGGuider", "PerpNegGuider", "RescaleCFG", "CFGZeroStar", "CFGNorm", "SkipLayerGuidanceDiT"),
    *("EasyCache", "LazyCache", "TorchCompileModel", "ModelMergeSimple", "ModelMergeFlux1", "ModelSave"),
    *("CLIPSave", "VAESave", "CheckpointSave", "CLIPTextEncode", "CLIPLoader", "UNETLoader", "FluxGuidance"),
    *("VAEDecodeTiled", "VAEEncodeTiled", "LatentUpscale", "ImageScale", "SaveLatent", "LoadLatent"),
    *("ControlNetApply", "ControlNetApplyAdvanced", "SplitSigmas", "KSamplerAdvanced", "SetLatentNoiseMask"),
    *("VAEEncodeForInpaint", "InpaintModelConditioning", "DifferentialDiffusion", "ImagePadForOutpaint"),
    *("ConditioningAverage", "ConditioningConcat", "ConditioningCombine", "ConditioningSetTimestepRange"),
    *("ConditioningSetArea", "ConditioningSetMask", "ConditioningSetProperties", "ConditioningZeroOut"),
    *("CreateHookLora", "CreateHookModelAsLora", "SetClipHooks", "SetHookKeyframes", "LoraLoaderModelOnly"),
}
HEADER = """\
# Stock nodes around ours

What ComfyUI's own nodes do with the MODEL, CLIP, VAE, CONDITIONING and LATENT of this pack, on the real
server with a small random model. The tests `tests/comfyui/test_stock_*.py` write this page: a row is what a
test has just asserted, and the bound is the relative distance (L2) that it allowed.
"""
COLUMNS = ("node", "outcome", "compared with", "bound")

NATIVE = "ovis_image_tiny_comfyui.safetensors"  # the file that ComfyUI's own loader takes too
ON_NATIVE = "the same on ComfyUI's own model"
# Where parts of the schedule are given in per cent, both models need the same: ComfyUI's own has no shift.
FIXED_SHIFT = {"max_shift": 1.15, "base_shift": 0.5, "width": 1024, "height": 1024}


def distance(a, b) -> float:
    return ((a - b).norm() / b.norm()).item()


class Outcome:
    """Asserts what a stock node does; what held becomes a row of the table."""

    def __init__(self, record_property):
        self.record = record_property

    def equals(self, nodes, peer, result, expected, bound, text="works", unlike=None):
        """`result` is `expected` within `bound` (0: to the bit), and not what it is without the node."""
        assert result.isfinite().all()
        assert distance(result, expected) <= bound
        if unlike is not None:
            assert distance(result, unlike) > max(1e-3, 10 * bound)
        self.record(
            "row", (nodes, text, peer, f"{bound:.0e}".replace("e-0", "e-") if bound else "to the bit")
        )

    def refused(self, nodes, server, workflow, sentence):
        """The graph ends with ValueError and this sentence."""
        error = server.fail(workflow)
        assert error["exception_type"] == "ValueError", error["exception_message"]
        assert error["exception_message"].strip() == sentence
        self.record("row", (nodes, f'refused: "{sentence}"', "", ""))


@pytest.fixture
def outcome(record_property):
    return Outcome(record_property)


def add(workflow, name, class_type, /, **inputs) -> list:
    """Adds a node -> the link to its first output."""
    workflow[name] = {"class_type": class_type, "inputs": inputs}
    return [name, 0]


def with_model_node(server, class_type=None, inputs=None, native=False, **sampler) -> dict:
    """Our graph with a node between the loader's MODEL and the sampler; `native`: on ComfyUI's own model."""
    workflow = server.graph("comfyui", **{"steps": 4, **sampler})
    source = ["1", 0]
    if native:
        source = add(workflow, "unet", "UNETLoader", unet_name=NATIVE, weight_dtype="default")
    if class_type:
        source = add(workflow, "patch", class_type, model=source, **inputs)
    workflow["5"]["inputs"]["model"] = source
    add(workflow, "other", "OvisImageTextEncode", clip=["1", 1], text="A different picture")
    return workflow


def with_fixed_shift(server, native=False, **sampler) -> dict:
    return with_model_node(server, "ModelSamplingFlux", FIXED_SHIFT, native, **sampler)


def rows_of(items) -> dict[str, list[tuple]]:
    """Section -> rows of the tests that passed, by node."""
    sections = {title: [] for title in SECTIONS.values()}
    for item in items:
        found = [value for name, value in item.user_properties if name == "row"]
        sections[SECTIONS[item.path.stem]] += found
    return {title: sorted(rows, key=lambda row: row[0].casefold()) for title, rows in sections.items()}


def line(cells) -> str:
    return "| " + " | ".join(cells) + " |"


def render(sections) -> str:
    parts = [HEADER]
    for title, rows in sections.items():
        parts.append("\n".join([f"\n## {title}\n", line(COLUMNS), line(["---"] * 4), *map(line, rows), ""]))
    return "".join(parts)


def test_the_page_is_what_the_tests_have_found(request):
    """Runs last. With a selection of the tests, its rows must be on the page; with all, they are the page."""
    items = [item for item in request.session.items if item.path.stem in SECTIONS]
    sections = rows_of(items)
    rows = list(itertools.chain(*sections.values()))
    assert len({row[0] for row in rows}) == len(rows), "one row a node"
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    selected = reporter.stats.get("deselected") or any("::" in arg for arg in request.config.args)
    complete = not selected and {item.path.stem for item in items} == SECTIONS.keys()
    if complete and os.environ.get("UPDATE_GOLDEN"):
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(render(sections), "utf-8")
    page = DOCUMENT.read_text("utf-8")
    assert set(map(line, rows)) <= set(page.splitlines())
    assert not complete or render(sections) == page


def test_no_node_of_the_requirement_is_missing():
    rows = [row for row in DOCUMENT.read_text("utf-8").splitlines() if row.startswith("| ")]
    nodes = {node.strip() for row in rows for node in row.split("|")[1].split(",")}
    assert nodes >= REQUIRED, REQUIRED - nodes
