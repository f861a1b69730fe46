"""Reads a verification's JSON: which texts are wrong in a picture, and where they stand."""

import json
import math
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

EXPECTED = "connect the json output of Ovis Text Verify"

Corners = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Wrong:
    """Texts to be set anew on one line, and the boxes that they were read in: none where they were not found.

    numbers: of the texts among those expected, from 0.
    """

    text: str
    boxes: tuple[Corners, ...]
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Findings:
    """What is wrong in one picture. Boxes are corners in pixels, clockwise from the top left one."""

    wrong: tuple[Wrong, ...] = ()
    extra: tuple[Corners, ...] = ()  # boxes of text that nobody asked for, where that counted
    right: tuple[Corners, ...] = ()  # boxes of the rest
    num_texts: int = 0


def read_findings(verified: str) -> list[Findings]:
    """Reads the findings of each picture; of one that passed there are none.

    Raises ValueError for anything but the JSON of Ovis Text Verify, Best Of or Retry.
    """
    try:
        entries: Any = json.loads(verified)
    except (ValueError, RecursionError):
        raise ValueError(f"the verification is no JSON; {EXPECTED}") from None
    if isinstance(entries, dict):  # of Retry
        entries = [entries.get("verdict")]
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"the verification is no list of verdicts; {EXPECTED}")
    try:
        return [_findings(entry) for entry in entries]
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"the verification lacks what a verdict has ({error!r}); {EXPECTED}") from None


def _findings(verdict: dict) -> Findings:
    texts = verdict["texts"]
    boxes = [tuple((float(x), float(y)) for x, y in region["box"]) for region in verdict["regions"]]
    if any(len(box) != 4 for box in boxes):
        raise ValueError("a box without four corners")
    if verdict["passed"]:
        return Findings(right=tuple(boxes), num_texts=len(texts))

    extra = {piece["region"] - 1 for piece in verdict["extra"]} if _counts_extra(verdict) else set()
    where = [{number - 1 for number in text["regions"]} for text in texts]
    wrong = {i for i, text in enumerate(texts) if not text["exact"]}
    if not wrong and not extra:
        wrong = set(range(len(texts)))  # read right, and failed for another reason, as legibility
    wrong_boxes = extra.union(*(where[i] for i in wrong))
    while more := {i for i in range(len(texts)) if i not in wrong and where[i] & wrong_boxes}:
        wrong |= more  # in a box with what is wrong
        wrong_boxes |= set().union(*(where[i] for i in more))

    groups = _sharing_boxes(sorted(wrong), where)
    found = [_group(numbers, texts, where, verdict["regions"], boxes) for numbers in groups]
    return Findings(
        wrong=tuple(_in_place_of_extra(found, [boxes[i] for i in sorted(extra)])),
        extra=tuple(boxes[i] for i in sorted(extra)),
        right=tuple(box for i, box in enumerate(boxes) if i not in wrong_boxes),
        num_texts=len(texts),
    )


def _counts_extra(verdict: dict) -> bool:
    """Tells whether text that nobody asked for lowered the score: more is wrong than the texts are.

    Where all is wrong there is no telling, and it is taken to be what became of them.
    """
    lengths = [len("".join(text["expected"].split())) for text in verdict["texts"]]
    errors = [
        length * text["character_error_rate"] for length, text in zip(lengths, verdict["texts"], strict=True)
    ]
    rate = verdict["character_error_rate"]
    return rate >= 1 or rate > sum(errors) / max(sum(lengths), 1) + 1e-6


def _sharing_boxes(numbers: list[int], where: list[set[int]]) -> list[list[int]]:
    """Puts texts together that were read in the same boxes."""
    groups: list[list[int]] = []
    for number in numbers:
        sharing = [group for group in groups if any(where[i] & where[number] for i in group)]
        groups = [group for group in groups if group not in sharing]
        groups.append(sorted([number, *(i for group in sharing for i in group)]))
    return sorted(groups)


def _group(
    numbers: list[int], texts: list[dict], where: list[set[int]], regions: list[dict], boxes: list[Corners]
) -> Wrong:
    """Joins texts of the same boxes, in the order in which they were read."""
    used = sorted(set().union(*(where[i] for i in numbers)))
    line = " ".join(regions[i]["text"] for i in used)
    ordered = sorted(numbers, key=lambda i: (line.find(texts[i]["read"]) if texts[i]["read"] else -1, i))
    text = " ".join(texts[i]["expected"] for i in ordered)
    return Wrong(text, tuple(boxes[i] for i in used), tuple(ordered))


def _in_place_of_extra(found: list[Wrong], extra: list[Corners]) -> list[Wrong]:
    """Gives texts that were not found the largest boxes of what nobody asked for, in the order of reading."""
    lost = [wrong for wrong in found if not wrong.boxes]
    largest = sorted(extra, key=lambda box: -math.dist(box[0], box[1]) * math.dist(box[0], box[3]))
    largest = largest[: len(lost)]
    boxes = iter([box for box in extra if box in largest])
    return [replace(wrong, boxes=tuple(islice(boxes, 1))) if wrong in lost else wrong for wrong in found]
