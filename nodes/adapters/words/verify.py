"""Connects the core's verification to ComfyUI's images, interruption and node expansion."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import comfy.model_management
import comfy.utils
import numpy as np
import torch
from comfy_execution.graph_utils import GraphBuilder
from torch import Tensor

from ....ovis_core.evaluation.legibility import Legibility
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
JUDGING = ("texts", "threshold", "case_sensitive", "width_sensitive", "count_extra", "min_legibility")


@lru_cache(maxsize=1)
def _reader() -> RapidReader:
    """Loads one reader for the process, in a second; it takes some 200 MB of RAM and no GPU memory."""
    return RapidReader()


@lru_cache(maxsize=1)
def _legibility() -> Legibility:
    """Finds the system's plain fonts once for the process; their glyphs take a few MB of RAM."""
    return Legibility()


def to_arrays(images: Tensor) -> list[np.ndarray]:
    """Converts IMAGE (B, height, width, C) to uint8 (height, width, 3) each. Raises ValueError otherwise."""
    if images.ndim != 4 or images.shape[0] == 0 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"the image has the shape {[*images.shape]}, pictures have [batch, height, width, 3]; connect "
            "the IMAGE of a VAE Decode or Load Image node"
        )
    check_finite(images, "the image", "use another picture")
    colours = images[..., :3].expand(*images.shape[:-1], 3) if images.shape[-1] == 1 else images[..., :3]
    return list((colours.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


def to_image(arrays: Sequence[np.ndarray]) -> Tensor:
    """Inverts `to_arrays` for pictures of one size."""
    return torch.from_numpy(np.stack(arrays)).float() / 255


def verify_all(
    arrays: Sequence[np.ndarray],
    texts: str,
    threshold: float,
    case_sensitive: bool,
    width_sensitive: bool,
    count_extra: bool,
    min_legibility: float = 0.0,
) -> list[Verdict]:
    """Judges each picture; can be interrupted between two."""
    wanted, rules, reader = expected_texts(texts), Rules(case_sensitive, width_sensitive), _reader()
    progress = comfy.utils.ProgressBar(len(arrays))
    verdicts = []
    for array in arrays:
        comfy.model_management.throw_exception_if_processing_interrupted()
        verdicts.append(
            verify(array, wanted, reader, rules, threshold, count_extra, _legibility(), min_legibility)
        )
        progress.update(1)
    return verdicts


class Verified(NamedTuple):
    """The outputs of OvisTextVerify."""

    annotated: Tensor
    score: float  # the lowest
    passed: bool  # all of them
    report: str
    json: str


class Ranked(NamedTuple):
    """The outputs of OvisTextBestOf."""

    best: Tensor
    number: int  # of the best, from 1
    ranked: list[Tensor]  # from the best to the worst
    scores: list[float]
    sheet: Tensor
    report: str
    json: str


class Found(NamedTuple):
    """The outputs of OvisTextRetry."""

    image: Tensor
    seed: int
    num_tries: int
    passed: bool
    report: str
    json: str


def verify_images(images: Tensor, texts: str, **how: Any) -> Verified:
    """Reads each picture of a batch; `how` is what `verify_all` takes."""
    arrays = to_arrays(images)
    verdicts = verify_all(arrays, texts, **how)
    return Verified(
        annotated=to_image(
            [annotate(array, verdict) for array, verdict in zip(arrays, verdicts, strict=True)]
        ),
        score=min(verdict.score for verdict in verdicts),
        passed=all(verdict.passed for verdict in verdicts),
        report=_report(verdicts),
        json=_json([verdict.as_dict() for verdict in verdicts]),
    )


def best_of(images: Sequence[Tensor], texts: Sequence[str], **how: Any) -> Ranked:
    """Ranks the pictures of several batches. Raises ValueError for several lists of texts."""
    if len(set(texts)) != 1:
        raise ValueError(
            f"got {len(set(texts))} different expected texts, pictures are ranked by one; use one "
            "OvisTextBestOf for each"
        )
    arrays = [array for batch in images for array in to_arrays(batch)]
    verdicts = verify_all(arrays, texts[0], **how)
    order = ranking(verdicts)
    ranked = [to_image([arrays[i]]) for i in order]
    return Ranked(
        best=ranked[0],
        number=order[0] + 1,
        ranked=ranked,
        scores=[verdicts[i].score for i in order],
        sheet=to_image([draw_ranking(arrays, verdicts)]),
        report=_report(verdicts, order),
        json=_json([{"picture": i + 1} | verdicts[i].as_dict() for i in order]),
    )


Link = list  # a node's id and the number of its output, as graphs have it


@dataclass(frozen=True)
class Try:
    """A picture that was drawn and read."""

    seed: int
    score: float
    passed: bool
    legibility: float

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Compares tries: the higher, the better."""
        return self.passed, self.score, self.legibility


@dataclass(frozen=True)
class Best:
    """The best try so far."""

    number: int  # of the try, from 0
    picture: int  # of its batch, from 0
    verdict: dict
    report: str
    image: Link


@dataclass(frozen=True)
class Tries:
    """The state that a step of OvisTextRetry passes to the next one.

    It passes through the graph as a dictionary: ComfyUI caches a node by its constant inputs, and compares
    only those of JSON's types.
    """

    node: str  # of the user's graph, which shows the progress
    tries: tuple[Try, ...] = ()
    best: Best | None = None
    image: Link | None = None  # of the current try

    @classmethod
    def from_dict(cls, values: dict) -> "Tries":
        """Inverts dataclasses.asdict."""
        tries, best = (Try(**entry) for entry in values["tries"]), values["best"]
        return cls(**values | {"tries": tuple(tries), "best": best and Best(**best)})

    def seed(self, inputs: dict) -> int:
        """Computes the seed of the next try, or of the one that is being judged."""
        return (inputs["seed"] + len(self.tries)) % (MAX_SEED + 1)

    def judged(self, inputs: dict, image: Tensor) -> "Tries":
        """Adds the current try, by its decoded image."""
        verdicts = verify_all(to_arrays(image), **{name: inputs[name] for name in JUDGING if name in inputs})
        i = ranking(verdicts)[0]
        tried = Try(self.seed(inputs), verdicts[i].score, verdicts[i].passed, verdicts[i].legibility)
        best = self.best
        if best is None or tried.rank > self.tries[best.number].rank:
            verdict = verdicts[i].as_dict()
            best = Best(len(self.tries), i, verdict, verdicts[i].report(), self.image)
        return replace(self, tries=(*self.tries, tried), best=best)

    def progress(self, max_tries: int) -> str:
        """Describes the last try in a line."""
        last = self.tries[-1]
        verdict = "passed" if last.passed else "failed"
        figures = f"score {last.score:.3f}, legibility {last.legibility:.2f}"
        return f"try {len(self.tries)} of {max_tries}, seed {last.seed}: {verdict}, {figures}"

    def found(self, image: Tensor) -> Found:
        """Collects the node's outputs, with the batch of the best try."""
        best, tries = self.best, self.tries
        winner = tries[best.number]
        lines = [
            f"try {i}, seed {t.seed}: score {t.score:.3f}, legibility {t.legibility:.2f}"
            for i, t in enumerate(tries, 1)
        ]
        report = "\n".join([f"seed {winner.seed} of {len(tries)} tries", best.report, *lines])
        details = {
            "seed": winner.seed,
            "num_tries": len(tries),
            "tries": [asdict(tried) for tried in tries],
            "verdict": best.verdict,
        }
        picture = image[best.picture : best.picture + 1]
        return Found(picture, winner.seed, len(tries), winner.passed, report, _json(details))


class Expansion(NamedTuple):
    """The nodes of the next try, and their links to the outputs of OvisTextRetry."""

    outputs: tuple[Link, ...]
    graph: dict


def retry(
    node_id: str,
    inputs: dict,
    tell: Callable[[str, str], None],
    state: dict | None = None,
    image: Tensor | None = None,
    best: Tensor | None = None,
) -> Found | Expansion:
    """Takes one step of drawing until the text is right.

    Sampler, decoder and this node again replace the node until a try has passed. `state`
    is what a step passes to the next one, with the decoded `image` and the `best` one before it. `inputs` are
    the node's own, with connections (to models, for example) unchanged.
    """
    tries = Tries.from_dict(state) if state else Tries(node_id)
    if image is not None:
        tries = tries.judged(inputs, image)
        tell(tries.progress(inputs["max_tries"]), tries.node)
        if tries.tries[-1].passed or len(tries.tries) >= inputs["max_tries"]:
            is_last = tries.best.number == len(tries.tries) - 1
            return tries.found(image if is_last else best)
    sampling = {name: value for name, value in inputs.items() if name not in (*JUDGING, "max_tries", "vae")}
    graph = GraphBuilder()
    sampler = graph.node("OvisImageSampler", **sampling | {"seed": tries.seed(inputs)})
    decoder = graph.node("OvisImageVAEDecode", samples=sampler.out(0), vae=inputs["vae"], tile_size=0)
    drawn = decoder.out(0)
    handed = {"state": asdict(replace(tries, image=drawn)), "image": drawn}
    if tries.best:
        handed["best"] = tries.best.image
    step = graph.node("OvisTextRetry", **inputs, **handed)
    return Expansion(tuple(step.out(i) for i in range(len(Found._fields))), graph.finalize())


def _report(verdicts: Sequence[Verdict], order: Sequence[int] | None = None) -> str:
    """Lists the reports, numbered where there are several."""
    if len(verdicts) == 1:
        return verdicts[0].report()
    order = range(len(verdicts)) if order is None else order
    return "\n\n".join(f"picture {i + 1}: {verdicts[i].report()}" for i in order)


def _json(value: list | dict) -> str:
    return json.dumps(value, ensure_ascii=False)
