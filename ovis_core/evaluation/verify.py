"""Compares a picture with the texts that it should show: what is right, what is wrong, and where."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from ..drawing.fonts import BUILT_IN, Fonts
from ..drawing.sheet import Look, draw_sheet
from .benchmarks import scores
from .legibility import Measure, Weakest
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
    weakest: tuple[Weakest, ...] = ()  # of each text, where legibility was measured
    min_legibility: float = 0.0

    @property
    def legibility(self) -> float:
        """The lowest legibility of all texts' characters, 0 to 1; 1 where there is none to measure."""
        return min((weakest.legibility for weakest in self.weakest), default=1.0)

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
            "legibility": self.legibility if self.weakest else None,
            "min_legibility": self.min_legibility,
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
                | ({"legibility": weakest.legibility, "weakest": weakest.character} if weakest else {})
                for match, weakest in self.measured_matches()
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
        first = f"{verdict}: score {self.score:.3f}, {right} of {len(self.matches)} texts right"
        lines = [first + (f", legibility {self.legibility:.2f}" if self.weakest else "")]
        for match, weakest in self.measured_matches():
            where = ", ".join(str(i + 1) for i in match.regions)
            if match.regions and weakest and weakest.legibility < self.min_legibility:
                value = f"legibility {weakest.legibility:.2f}"
                lines.append(
                    f'"{match.expected}" is hard to read at "{weakest.character}" (region {where}), {value}'
                )
            if not match.is_exact:
                seen = f'reads "{match.read}" (region {where})' if match.regions else "was not found"
                lines.append(f'"{match.expected}" {seen}, {match.errors} of {match.characters} wrong')
        lines += [f'extra: "{piece.text}" (region {piece.region + 1})' for piece in self.extra]
        return "\n".join(lines)

    def measured_matches(self) -> list[tuple[Match, Weakest | None]]:
        """Lists the matches with their weakest characters, None where legibility was not measured."""
        return list(zip(self.matches, self.weakest or [None] * len(self.matches), strict=True))


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
    measure: Measure | None = None,
    min_legibility: float = 0.0,
) -> Verdict:
    """Judges a picture, uint8 (height, width, 3), by the look at it that fits best.

    count_extra: whether characters that nobody asked for are errors. Without texts, a picture is right when
    nothing is read in it. With a measure, legibility is judged as well.
    """
    verdicts: list[Verdict] = []
    for regions in looks(image, read):
        verdicts.append(judge(regions, texts, rules or Rules(), threshold, count_extra))
        if verdicts[-1].score == 1.0:
            break
    best = max(verdicts, key=lambda verdict: verdict.score)
    return measured(best, image, measure, min_legibility) if measure else best


def measured(verdict: Verdict, image: np.ndarray, measure: Measure, min_legibility: float) -> Verdict:
    """Adds the legibility of each text to a verdict; what was not found has none."""
    weakest = []
    for match in verdict.matches:
        characters = [found for i in match.regions for found in measure(image, verdict.regions[i])]
        nothing = Weakest("", 1.0 if match.regions else 0.0)  # no font to compare with, or not found
        weakest.append(min(characters, key=lambda found: found.legibility, default=nothing))
    judged = replace(verdict, weakest=tuple(weakest), min_legibility=min_legibility)
    return replace(judged, passed=judged.passed and judged.legibility >= min_legibility)


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
    """Frames the regions of a picture, uint8 (height, width, 3): green right, red wrong, orange extra.

    What is right but less legible than asked for is red, too.
    """
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    line = max(2, min(picture.size) // 250)
    colours = dict.fromkeys(range(len(verdict.regions)), EXTRA)
    for match, weakest in verdict.measured_matches():
        is_right = match.is_exact and (weakest is None or weakest.legibility >= verdict.min_legibility)
        for i in match.regions:
            colours[i] = RIGHT if is_right and colours[i] != WRONG else WRONG
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
    """Sorts indices from the best to the worst picture: by score, then by legibility, then by number."""
    graded = [(not v.passed, -v.score, -v.legibility, i) for i, v in enumerate(verdicts)]
    return [i for *_, i in sorted(graded)]


def draw_ranking(images: Sequence[np.ndarray], verdicts: Sequence[Verdict]) -> np.ndarray:
    """Draws all pictures, uint8, from the best to the worst, each with its rank, number and score."""
    order = ranking(verdicts)
    labels = [
        f"#{rank}  picture {i + 1}  score {verdicts[i].score:.3f}"
        + (f"  legibility {verdicts[i].legibility:.2f}" if verdicts[i].weakest else "")
        for rank, i in enumerate(order, 1)
    ]
    look = Look(
        cell_size=min(CELL, int(SHEET_SIDE / len(images) ** 0.5)),
        font_size=LABEL,
        paper=(32, 32, 32),
        strips=[RIGHT if verdicts[i].passed else WRONG for i in order],
    )
    pictures = [Image.fromarray(images[i]) for i in order]
    columns = min(len(images), MAX_COLUMNS)
    return np.asarray(draw_sheet(pictures, labels, columns=columns, look=look, fonts=Fonts([])))
