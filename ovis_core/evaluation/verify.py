"""Compares a picture with the texts that it should show: what is right, what is wrong, and where."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from ..drawing.fonts import BUILT_IN, Fonts
from ..drawing.sheet import Look, draw_sheet
from .benchmarks import scores
from .ocr import Reader, Region, looks
from .text_metrics import Match, Piece, Rules, error_rate, fold, match_texts

RIGHT, WRONG, EXTRA = (0, 160, 60), (230, 40, 30), (240, 150, 0)  # colours of the frames
CELL, LABEL = 384, 16  # pixels of a picture and of its label's letters on a sheet of ranked pictures
SHEET_SIDE = 9000  # pixels of such a sheet at most, were it square; many pictures are made smaller
MAX_COLUMNS = 5


@dataclass(frozen=True)
class Verdict:
    """What one picture shows of the expected texts."""

    score: float  # 1 minus the character error rate of all texts together
    passed: bool
    threshold: float
    matches: list[Match]
    extra: list[Piece]  # read, but of no expected text
    regions: list[Region]  # all that was read, in reading order
    benchmarks: dict[str, float]

    @property
    def is_exact(self) -> bool:
        return all(match.is_exact for match in self.matches)

    def as_dict(self) -> dict:
        """Gives all of it for JSON. Regions are numbered from 1, as in the annotated picture."""
        return {
            "score": self.score,
            "character_error_rate": 1 - self.score,
            "passed": self.passed,
            "threshold": self.threshold,
            "exact": self.is_exact,
            "texts": [
                {
                    "expected": match.expected,
                    "read": match.read,
                    "exact": match.is_exact,
                    "similarity": match.similarity,
                    "character_error_rate": match.error_rate,
                    "regions": [i + 1 for i in match.regions],
                }
                for match in self.matches
            ],
            "extra": [{"text": piece.text, "region": piece.region + 1} for piece in self.extra],
            "regions": [
                {"text": region.text, "box": region.corners, "confidence": region.score}
                for region in self.regions
            ],
            "benchmarks": self.benchmarks,
        }

    def report(self) -> str:
        """Writes a line for the picture, and one for each text that is wrong or not asked for."""
        verdict = "passed" if self.passed else "failed"
        right = sum(match.is_exact for match in self.matches)
        lines = [f"{verdict}: score {self.score:.3f}, {right} of {len(self.matches)} texts right"]
        for match in self.matches:
            if not match.is_exact:
                where = ", ".join(str(i + 1) for i in match.regions)
                seen = f'reads "{match.read}" (region {where})' if match.regions else "was not found"
                lines.append(f'"{match.expected}" {seen}, {match.errors} of {match.characters} wrong')
        lines += [f'extra: "{piece.text}" (region {piece.region + 1})' for piece in self.extra]
        return "\n".join(lines)


def expected_texts(texts: str) -> list[str]:
    """Reads one text a line, or a JSON list of texts. Empty ones are left out."""
    lines = texts.splitlines()
    if texts.lstrip().startswith("["):
        try:
            parsed = json.loads(texts)
        except (ValueError, RecursionError):
            parsed = None  # a text that begins with a bracket
        if isinstance(parsed, list) and all(isinstance(text, str) for text in parsed):
            lines = parsed
    return [line.strip() for line in lines if line.strip()]


def verify(
    image: np.ndarray,
    texts: Sequence[str],
    read: Reader,
    rules: Rules | None = None,
    threshold: float = 1.0,
    count_extra: bool = True,
) -> Verdict:
    """Judges a picture, uint8 (height, width, 3), by the look at it that fits best.

    count_extra: whether characters that nobody asked for are errors. Without texts, a picture is right when
    nothing is read in it.
    """
    verdicts: list[Verdict] = []
    for regions in looks(image, read):
        verdicts.append(judge(regions, texts, rules or Rules(), threshold, count_extra))
        if verdicts[-1].score == 1.0:
            break
    return max(verdicts, key=lambda verdict: verdict.score)


def judge(
    regions: list[Region], texts: Sequence[str], rules: Rules, threshold: float, count_extra: bool
) -> Verdict:
    """Judges what was read."""
    lines = [region.text for region in regions]
    matches, extra = match_texts(texts, lines, rules)
    errors = sum(match.errors for match in matches)
    if count_extra:
        errors += sum(len(fold(piece.text, rules)) for piece in extra)
    score = 1 - error_rate(errors, sum(match.characters for match in matches))
    return Verdict(score, score >= threshold, threshold, matches, extra, regions, scores(texts, lines))


def annotate(image: np.ndarray, verdict: Verdict) -> np.ndarray:
    """Frames the regions of a picture, uint8 (height, width, 3): green right, red wrong, orange extra."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    line = max(2, min(picture.size) // 250)
    colours = dict.fromkeys(range(len(verdict.regions)), EXTRA)
    for match in verdict.matches:
        for i in match.regions:
            colours[i] = WRONG if not match.is_exact or colours[i] == WRONG else RIGHT
    # Numbers, since no font with Chinese characters can be relied on.
    font = BUILT_IN.at(max(10, min(picture.size) // 40))
    for i, region in enumerate(verdict.regions):
        draw.polygon(region.corners, outline=colours[i], width=line)
        corner = (max(region.left, 0), max(region.top - font.size - 4, 0))
        box = draw.textbbox(corner, str(i + 1), font=font)
        draw.rectangle((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2), fill=colours[i])
        draw.text(corner, str(i + 1), fill=(255, 255, 255), font=font)
    return np.asarray(picture)


def ranking(verdicts: Iterable[Verdict]) -> list[int]:
    """Sorts indices from the best to the worst picture; of equal ones the first comes first."""
    graded = [(not verdict.passed, -verdict.score, i) for i, verdict in enumerate(verdicts)]
    return [i for _, _, i in sorted(graded)]


def draw_ranking(images: Sequence[np.ndarray], verdicts: Sequence[Verdict]) -> np.ndarray:
    """Draws all pictures, uint8, from the best to the worst, each with its rank, number and score."""
    order = ranking(verdicts)
    labels = [f"#{rank}  picture {i + 1}  score {verdicts[i].score:.3f}" for rank, i in enumerate(order, 1)]
    look = Look(
        cell_size=min(CELL, int(SHEET_SIDE / len(images) ** 0.5)),
        font_size=LABEL,
        paper=(32, 32, 32),
        strips=[RIGHT if verdicts[i].passed else WRONG for i in order],
    )
    pictures = [Image.fromarray(images[i]) for i in order]
    columns = min(len(images), MAX_COLUMNS)
    return np.asarray(draw_sheet(pictures, labels, columns=columns, look=look, fonts=Fonts([])))
