"""The core's verification with ComfyUI's images, interruption and node expansion."""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_execution.graph_utils import GraphBuilder
from torch import Tensor

from ....ovis_core.evaluation.ocr import RapidReader
from ....ovis_core.evaluation.text_metrics import Rules
from ....ovis_core.evaluation.verify import (
    Verdict,
    annotate,
    draw_ranking,
    expected_texts,
    ranking,
    verify,
)
from ..sampling.checks import check_finite

MAX_SEED = 2**64 - 1
JUDGING = ("texts", "threshold", "case_sensitive", "width_sensitive", "count_extra")


@lru_cache(maxsize=1)
def _reader() -> RapidReader:
    """One for the process: loading it takes a second. Some 200 MB of ordinary memory, none of the GPU's."""
    return RapidReader()


def to_arrays(images: Tensor) -> list[np.ndarray]:
    """IMAGE (B, height, width, C) -> uint8 (height, width, 3) each. Raises ValueError for anything else."""
    if images.ndim != 4 or images.shape[0] == 0 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"the image has the shape {[*images.shape]}, pictures have [batch, height, width, 3]; connect "
            "the IMAGE of a VAE Decode or Load Image node"
        )
    check_finite(images, "the image", "use another picture")
    colours = images[..., :3].expand(*images.shape[:-1], 3) if images.shape[-1] == 1 else images[..., :3]
    return list((colours.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def to_image(arrays: Sequence[np.ndarray]) -> Tensor:
    """The inverse, for pictures of one size."""
    return torch.from_numpy(np.stack(arrays)).float() / 255


def verify_all(
    arrays: Sequence[np.ndarray],
    texts: str,
    threshold: float,
    case_sensitive: bool,
    width_sensitive: bool,
    count_extra: bool,
) -> list[Verdict]:
    """A verdict on each picture; can be interrupted between two."""
    wanted, rules, reader = expected_texts(texts), Rules(case_sensitive, width_sensitive), _reader()
    progress = comfy.utils.ProgressBar(len(arrays))
    verdicts = []
    for array in arrays:
        comfy.model_management.throw_exception_if_processing_interrupted()
        verdicts.append(verify(array, wanted, reader, rules, threshold, count_extra))
        progress.update(1)
    return verdicts


def verify_images(images: Tensor, texts: str, **how) -> tuple[Tensor, float, bool, str, str]:
    """-> the annotated pictures, the lowest score, whether all passed, the report and all of it as JSON."""
    arrays = to_arrays(images)
    verdicts = verify_all(arrays, texts, **how)
    return (
        to_image([annotate(array, verdict) for array, verdict in zip(arrays, verdicts, strict=True)]),
        min(verdict.score for verdict in verdicts),
        all(verdict.passed for verdict in verdicts),
        _report(verdicts),
        _json([verdict.as_dict() for verdict in verdicts]),
    )


def best_of(images: Sequence[Tensor], texts: Sequence[str], **how) -> tuple:
    """Batches of pictures -> the best, its number from 1, all from the best to the worst, their scores, a
    contact sheet, the report and JSON. Raises ValueError for several lists of texts."""
    if len(set(texts)) != 1:
        raise ValueError(
            f"got {len(set(texts))} different expected texts, pictures are ranked by one; use one "
            "OvisTextBestOf for each"
        )
    arrays = [array for batch in images for array in to_arrays(batch)]
    verdicts = verify_all(arrays, texts[0], **how)
    order = ranking(verdicts)
    ranked = [to_image([arrays[i]]) for i in order]
    return (
        ranked[0],
        order[0] + 1,
        ranked,
        [verdicts[i].score for i in order],
        to_image([draw_ranking(arrays, verdicts)]),
        _report(verdicts, order),
        _json([{"picture": i + 1} | verdicts[i].as_dict() for i in order]),
    )


def retry(
    node_id: str,
    inputs: dict,
    tell: Callable[[str, str], None],
    state: dict | None = None,
    image: Tensor | None = None,
    best: Tensor | None = None,
) -> tuple[tuple, dict | None]:
    """One step of drawing until the text is right -> the node's outputs, and the nodes of the next try.

    Sampler, decoder and this node again take the place of the node, for as long as no try has passed. `state`
    is what a step hands to the next one, with the decoded `image` and the `best` one before it. `inputs` are
    the node's own, connections to models and the like as they came.
    """
    state = state or {"node": node_id, "tries": []}
    if image is not None:
        state, best = _judge(state, inputs, image, best)
        tell(_progress(state, inputs["max_tries"]), state["node"])
        if state["tries"][-1]["passed"] or len(state["tries"]) >= inputs["max_tries"]:
            return _finish(state, best), None
    sampling = {name: value for name, value in inputs.items() if name not in (*JUDGING, "max_tries", "vae")}
    graph = GraphBuilder()
    sampler = graph.node("OvisImageSampler", **sampling | {"seed": _seed(state, inputs)})
    decoder = graph.node("OvisImageVAEDecode", samples=sampler.out(0), vae=inputs["vae"], tile_size=0)
    drawn = decoder.out(0)
    handed = {"state": state | {"image": drawn}, "image": drawn}
    if "best" in state:
        handed["best"] = state["best"]
    step = graph.node("OvisTextRetry", **inputs, **handed)
    return tuple(step.out(i) for i in range(6)), graph.finalize()


def _seed(state: dict, inputs: dict) -> int:
    """Of the next try, or the one that is being judged."""
    return (inputs["seed"] + len(state["tries"])) % (MAX_SEED + 1)


def _judge(state: dict, inputs: dict, image: Tensor, best: Tensor | None) -> tuple[dict, Tensor]:
    """The state with another try, and the best picture so far."""
    verdicts = verify_all(to_arrays(image), **{name: inputs[name] for name in JUDGING})
    i = ranking(verdicts)[0]
    tries = state["tries"]
    tried = {"seed": _seed(state, inputs), "score": verdicts[i].score, "passed": verdicts[i].passed}
    state = state | {"tries": [*tries, tried]}
    if not tries or tried["score"] > tries[state["winner"]]["score"]:
        said = {"verdict": verdicts[i].as_dict(), "report": verdicts[i].report()}
        return state | {"winner": len(tries), "best": state["image"], "picture": i} | said, image
    return state, best


def _finish(state: dict, best: Tensor) -> tuple:
    winner, tries = state["tries"][state["winner"]], state["tries"]
    lines = [f"try {i + 1}, seed {t['seed']}: score {t['score']:.3f}" for i, t in enumerate(tries)]
    report = "\n".join([f"seed {winner['seed']} of {len(tries)} tries", state["report"], *lines])
    found = {"seed": winner["seed"], "num_tries": len(tries), "tries": tries, "verdict": state["verdict"]}
    picture = best[state["picture"] : state["picture"] + 1]
    return picture, winner["seed"], len(tries), winner["passed"], report, _json(found)


def _progress(state: dict, max_tries: int) -> str:
    last, count = state["tries"][-1], len(state["tries"])
    verdict = "passed" if last["passed"] else "failed"
    return f"try {count} of {max_tries}, seed {last['seed']}: {verdict}, score {last['score']:.3f}"


def _report(verdicts: Sequence[Verdict], order: Sequence[int] | None = None) -> str:
    """One after the other; numbered where there are several."""
    if len(verdicts) == 1:
        return verdicts[0].report()
    order = range(len(verdicts)) if order is None else order
    return "\n\n".join(f"picture {i + 1}: {verdicts[i].report()}" for i in order)


def _json(value: list | dict) -> str:
    return json.dumps(value, ensure_ascii=False)
