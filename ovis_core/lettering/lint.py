"""Finds what will go wrong with a prompt: findings with a severity, a place and a remedy.

Nothing here blocks, and no fix touches a character between quotation marks.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .meter import Meter, Reading, read
from .quotes import Quoted, parse

MAX_GUIDANCE = 7.0
MIN_STEPS = 20
CONTROL = re.compile(r"<\|[a-z_]+\|>|</?(?:think|tool_call|tool_response)>")
EMBEDDING = re.compile(r"(?<!\S)embedding:[^\s,\0]+")
# A digit before the colon is a ratio or a time of day, not a weight.
WEIGHT = re.compile(r"(?P<open>\()[^()\n]*[^()\s\d](?P<close>:\d*\.?\d+\))")
LORA_TAG = re.compile(r"<lora:[^<>\s\0]+>")
SINGLE = re.compile(r"(?<![\w'])'([^'\n\0]*[^'\s\0])'(?![\w'])")
EDITOR_SYNTAX = re.compile(r"//|/\*|\{[^{}|]*\|[^{}]*\}|\\[()]")
VERTICAL = re.compile(
    r"\bvertical(?:ly)?\b(?=.{0,30}\b(?:text|letter|type|writ|read|layout|column|set|arrang))"
    r"|\b(?:text|letters|lettering|written|set|arranged|typeset) vertically\b|竖排|竖写|竖向|纵向|直排|豎排",
    re.IGNORECASE,
)
UNQUOTED = (
    re.compile(r"\b(?:says|saying|reads|reading|titled|labell?ed):?\s+(?P<copy>[A-Z0-9][^\0,.;:\n]{0,60})"),
    re.compile(r"(?:写着|写有|标题为|标题是|文字为|文字是|字样为)[：:\s]*(?P<copy>[^\0，。；、,;\s]{1,30})"),
    re.compile(r"(?P<copy>(?:https?://|www\.)[^\s\0]+)"),
    re.compile(
        r"(?P<copy>[$¥￥€£]\s?\d[\d.,]*\d|[$¥￥€£]\s?\d|\b\d+\s?% off\b|\d+(?:\.\d)?折)", re.IGNORECASE
    ),
    re.compile(r"(?P<copy>\b[A-Z][A-Z'&]+(?:\s+[A-Z][A-Z'&]+)+\b)"),
)
MERGED = re.compile(r'\s*"[^\w\s"“”.,!?;:]+')


@dataclass(frozen=True)
class Finding:
    """One thing that will go wrong.

    start, end: where in the prompt, in characters; None for what is not in the prompt.

    edits: (start, end, new text) that put it right, if a machine may. values: for the message.
    """

    code: str
    severity: str
    start: int | None = None
    end: int | None = None
    edits: tuple[tuple[int, int, str], ...] = ()
    values: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A prompt (the fixed one, if it was fixed), what is found in it, and what was found and fixed before."""

    prompt: str
    findings: tuple[Finding, ...]
    fixed: tuple[tuple[str, Finding], ...]  # with the prompt that each was found in
    reading: Reading | None


def check(
    prompt: str, meter: Meter | None = None, steps: int = 50, cfg: float = 5.0, fix: bool = False
) -> Check:
    """Checks a prompt; without a meter, not its tokens. Raises ValueError as `meter.read` does."""
    fixed: list[tuple[str, Finding]] = []
    findings, reading = _findings(prompt, meter, steps, cfg)
    # Each round makes the prompt shorter or a mark match; a second one sees what the first laid open.
    for _ in range(10):
        mended = [finding for finding in findings if fix and finding.edits]
        if not mended:
            break
        fixed += [(prompt, finding) for finding in mended]
        prompt = _edited(prompt, [edit for finding in mended for edit in finding.edits])
        findings, reading = _findings(prompt, meter, steps, cfg)
    return Check(prompt, tuple(findings), tuple(fixed), reading)


def _findings(
    prompt: str, meter: Meter | None, steps: int, cfg: float
) -> tuple[list[Finding], Reading | None]:
    quoted, _ = parse(prompt)
    outside = _masked(prompt, quoted)
    reading = read(prompt, meter) if meter else None
    found = [
        *(_budget(prompt, reading) if reading else ()),
        *_control_tokens(prompt, outside),
        *_quotes(prompt, outside),
        *_syntax(prompt, outside),
        *_unquoted(outside, quoted),
        *(_symbols(prompt, quoted, reading) if reading else ()),
        *(_split_characters(prompt, quoted, reading) if reading else ()),
        *_vertical(outside, quoted),
        *(_settings(steps, cfg) if quoted else ()),
    ]
    order = ("error", "warning", "note")
    return sorted(found, key=lambda f: (order.index(f.severity), f.start or 0)), reading


def _budget(prompt: str, reading: Reading) -> Iterator[Finding]:
    if reading.num_lost:
        values = {"lost": reading.num_lost}
        if reading.kept < len(prompt):
            yield Finding("over_budget", "error", reading.kept, len(prompt), values=values)
        else:
            yield Finding("end_lost", "error", values=values)


def _control_tokens(prompt: str, outside: str) -> Iterator[Finding]:
    for match in CONTROL.finditer(prompt):
        start, end = match.span()
        is_outside = outside[start:end] == match.group()
        yield Finding("control_token", "error", start, end, ((start, end, " "),) if is_outside else ())


def _quotes(prompt: str, outside: str) -> Iterator[Finding]:
    for slip in parse(prompt)[1]:
        start, end = slip.position, slip.position + 1
        if slip.expected:
            edits = ((start, end, slip.expected),)
            yield Finding("mixed_quotes", "warning", start, end, edits, {"expected": slip.expected})
        else:
            yield Finding("unbalanced_quote", "warning", start, end)
    for match in SINGLE.finditer(outside):
        start, end = match.span()
        edits = ((start, start + 1, '"'), (end - 1, end, '"')) if '"' not in outside else ()
        yield Finding("single_quotes", "warning", start, end, edits)


def _syntax(prompt: str, outside: str) -> Iterator[Finding]:
    for code, pattern in (("embedding", EMBEDDING), ("lora_tag", LORA_TAG)):
        for match in pattern.finditer(outside):
            yield Finding(code, "warning", *match.span(), ((*match.span(), " "),))
    for match in WEIGHT.finditer(outside):
        edits = ((*match.span("open"), ""), (*match.span("close"), ""))
        is_after_mark = outside[: match.start()].endswith('"')  # which a letter would make an opening one
        yield Finding("weight", "warning", *match.span(), () if is_after_mark else edits)
    for match in EDITOR_SYNTAX.finditer(prompt):
        if prompt[match.start() - 1 : match.start()] != ":":  # https:// is said of the address as a whole
            yield Finding("editor_syntax", "note", *match.span())


def _unquoted(outside: str, quoted: list[Quoted]) -> Iterator[Finding]:
    taken = bytearray(len(outside))
    for pattern in UNQUOTED:
        for match in pattern.finditer(outside):
            start, end = match.span("copy")
            if not any(taken[start:end]):
                taken[start:end] = b"\1" * (end - start)
                yield Finding("unquoted_copy", "warning", start, end)
    if not any(q.text.strip() for q in quoted):
        yield Finding("no_copy", "note")


def _symbols(prompt: str, quoted: list[Quoted], reading: Reading) -> Iterator[Finding]:
    merged = {piece.strip() for piece in reading.pieces if MERGED.fullmatch(piece)}
    for q in quoted:
        for piece in (piece for piece in merged if prompt.startswith(piece, q.start - 1)):
            start, end = q.start - 1, q.end
            curly = not set("“”") & set(q.text)
            edits = ((start, start + 1, "“"), (end, end + 1, "”")) if curly and prompt[end] == '"' else ()
            yield Finding("merged_symbol", "note", start, start + len(piece), edits)
    for char in reading.in_bytes:
        start = prompt.find(char)
        if start >= 0:
            drawn = any(char in q.text for q in quoted)
            code = "rare_character" if char.isalpha() else "rare_symbol"
            yield Finding(code, "warning" if drawn else "note", start, start + 1)


def _split_characters(prompt: str, quoted: list[Quoted], reading: Reading) -> Iterator[Finding]:
    for q in quoted:
        for char in reading.split:
            start = prompt.find(f" {char}", q.start, q.end)
            if start >= 0:
                yield Finding("split_character", "note", start + 1, start + 2)


def _vertical(outside: str, quoted: list[Quoted]) -> Iterator[Finding]:
    match = VERTICAL.search(outside)
    if match and quoted and match.start() > quoted[0].start:
        yield Finding("late_vertical", "warning", *match.span())


def _settings(steps: int, cfg: float) -> Iterator[Finding]:
    if cfg > MAX_GUIDANCE:
        yield Finding("high_guidance", "warning", values={"value": f"{cfg:g}"})
    if steps < MIN_STEPS:
        yield Finding("few_steps", "warning", values={"value": steps})


def _masked(prompt: str, quoted: list[Quoted]) -> str:
    """Puts NUL for every quoted character and its marks, so that positions stay."""
    characters = list(prompt)
    for q in quoted:
        characters[q.start - 1 : q.end + 1] = "\0" * (q.end + 2 - q.start)
    return "".join(characters)


def _edited(prompt: str, edits: list[tuple[int, int, str]]) -> str:
    """Makes the edits from the end, so that positions stay; of two that overlap, the later one."""
    limit = len(prompt)
    for start, end, new in sorted(edits, reverse=True):
        if end <= limit:
            prompt = prompt[:start] + new + prompt[end:]
            limit = start
    return prompt
