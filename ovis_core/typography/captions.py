"""Writes a picture's caption: what is written, where and how, in English or Chinese."""

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

from ..drawing.fonts import STYLES
from .lexicon import CHARACTERS
from .palette import COLOURS, PALETTE

CHINESE_STYLES = {"sans": "无衬线体", "bold": "粗无衬线体", "serif": "衬线体", "mono": "等宽体"}
POSITIONS = {
    "centre": ("centred", "居中"),
    "top": ("at the top", "在上方"),
    "bottom": ("at the bottom", "在下方"),
    "left": ("on the left", "在左侧"),
    "right": ("on the right", "在右侧"),
    "top left": ("in the top left corner", "在左上角"),
    "top right": ("in the top right corner", "在右上角"),
    "bottom left": ("in the bottom left corner", "在左下角"),
    "bottom right": ("in the bottom right corner", "在右下角"),
}
SCALES = {"large": ("large letters", "大字"), "small": ("small letters", "小字")}
DECORATIONS = {
    "frame": ("{} frame", "{}色边框"),
    "top stripe": ("{} stripe at the top", "上方{}色条纹"),
    "bottom stripe": ("{} stripe at the bottom", "下方{}色条纹"),
    "bottom half": ("lower half {}", "下半部{}色"),
    "right half": ("right half {}", "右半部{}色"),
}
NOUNS = {
    "character": "the character",
    "letters": "the word",
    "word": "the word",
    "phrase": "the words",
    "number": "the text",
}

FULL = (
    '{a} {ground} poster with {noun} "{text}" in {colour}{details}',
    '{a} {ground} sign that says "{text}" in {colour}{details}',
    '{noun} "{text}" in {colour} on {a} {ground} background{details}',
)
SHORT = (
    '"{text}" in {colour} on {ground}{details}',
    '{colour} "{text}" on {ground}{details}',
    '{a} {ground} sign, "{text}" in {colour}{details}',
)
CHINESE_FULL = (
    "一张{ground}色海报，上面写着{colour}色的“{text}”{details}",
    "一块{ground}色招牌，写着“{text}”，{colour}色文字{details}",
    "{ground}色背景上的{colour}色文字“{text}”{details}",
)
CHINESE_SHORT = (
    "“{text}”，{colour}色，{ground}色背景{details}",
    "{ground}底{colour}字“{text}”{details}",
    "{ground}色招牌，{colour}字“{text}”{details}",
)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a caption may state of a picture."""

    texts: tuple[str, ...]  # the lines, as drawn
    text_colour: str
    background_colour: str  # of two-tone backgrounds the upper or left half
    decoration: tuple[str, str] | None  # a key of DECORATIONS, and its colour
    language: str  # of the writing: en, zh
    kind: str
    style: str
    scale: str | None  # large, small, or neither
    position: str
    angle: float  # degrees, counterclockwise


def caption(
    rng: Random,
    facts: Facts,
    language: str,
    is_short: bool,
    num_short: int = len(SHORT),
    has_place: bool = True,
) -> str:
    """Says what is written, in quotes, and how; short, without the style, the size and `centred`.

    num_short: how many of the short sentences are used. has_place: whether short ones say where it stands.
    """
    is_chinese = language == "zh"
    templates = {
        (False, False): FULL,
        (False, True): SHORT[:num_short],
        (True, False): CHINESE_FULL,
        (True, True): CHINESE_SHORT[:num_short],
    }[is_chinese, is_short]
    separator = "，" if is_chinese else ", "
    ground = _colour_name(facts.background_colour, is_chinese)
    return rng.choice(templates).format(
        a="an" if ground[0] in "aeiou" else "a",
        ground=ground,
        noun=NOUNS[facts.kind],
        text=" ".join(facts.texts),
        colour=_colour_name(facts.text_colour, is_chinese),
        details="".join(separator + detail for detail in _details(facts, is_chinese, is_short, has_place)),
    )


def _details(facts: Facts, is_chinese: bool, is_short: bool, has_place: bool) -> Iterable[str]:
    if not is_short:
        yield CHINESE_STYLES[facts.style] if is_chinese else STYLES[facts.style]
        if facts.scale:
            yield SCALES[facts.scale][is_chinese]
    if not is_short or (has_place and facts.position != "centre"):
        yield POSITIONS[facts.position][is_chinese]
    if len(facts.texts) > 1:
        yield "分两行" if is_chinese else "on two lines"
    if facts.angle:
        yield "倾斜" if is_chinese else "tilted"
    if facts.decoration:
        name, colour = facts.decoration
        yield DECORATIONS[name][is_chinese].format(_colour_name(colour, is_chinese))


def _colour_name(colour: str, is_chinese: bool) -> str:
    return COLOURS[colour].chinese if is_chinese else colour


def caption_characters() -> str:
    """Lists all characters beyond ASCII that captions can hold, in a fixed order, for a vocabulary."""
    sources = (
        *(CHARACTERS, "！？¥“”，"),
        *(colour.chinese for colour in PALETTE),
        *CHINESE_STYLES.values(),
        *(chinese for _, chinese in (*POSITIONS.values(), *SCALES.values(), *DECORATIONS.values())),
        *(*CHINESE_FULL, *CHINESE_SHORT, "分两行倾斜"),
    )
    return "".join(c for c in dict.fromkeys("".join(sources)) if not c.isascii())
