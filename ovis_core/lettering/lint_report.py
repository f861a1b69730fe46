"""Writes what a prompt's check has found as one line, as a report and as JSON."""

import json
from collections import Counter
from collections.abc import Iterable

from ..prompt import MAX_TOKENS
from .lint import Check, Finding
from .messages import CLEAN, COUNTS, FIXED, JOINTS, MESSAGES, NO_METER, PLACE, PLURALS, SEVERITIES, TOKENS
from .meter import Reading
from .quotes import quoted_texts

MAX_EXCERPT = 80
MAX_PER_CODE = 20  # findings of one kind that are listed; the summary counts all


def summary(check: Check, language: str) -> str:
    """Says in one line the tokens, and how many findings of each severity there are."""
    counts = Counter(finding.severity for finding in check.findings)
    parts = [_tokens(check.reading, language)]
    parts += [
        COUNTS[language].format(
            count=counts[severity], label=names[language] + PLURALS[language] * (counts[severity] > 1)
        )
        for severity, names in SEVERITIES.items()
        if counts[severity]
    ]
    if check.fixed:
        parts.append(COUNTS[language].format(count=len(check.fixed), label=FIXED[language]))
    if not check.findings:
        parts.append(CLEAN[language])
    return JOINTS[language][0].join(parts)


def report(check: Check, language: str) -> str:
    """Writes the summary, then a line for each finding, the worst first, then what was fixed."""
    lines = [summary(check, language)]
    lines += [
        _line(SEVERITIES[finding.severity][language], check.prompt, finding, language)
        for finding in _listed(check.findings)
    ]
    lines += [_line(FIXED[language], prompt, finding, language) for prompt, finding in _listed_fixed(check)]
    return "\n".join(lines)


def as_json(check: Check, language: str) -> str:
    """Writes {"tokens": {...} or null, "findings", "fixed", "texts": [...], "prompt": "..."}."""
    reading = check.reading
    tokens = reading and {
        "used": reading.num_tokens,
        "limit": MAX_TOKENS,
        "template": reading.num_template,
        "lost": reading.num_lost,
        "lost_text": check.prompt[reading.kept :],
    }
    return json.dumps(
        {
            "tokens": tokens,
            "findings": [_entry(check.prompt, finding, language) for finding in _listed(check.findings)],
            "fixed": [_entry(prompt, finding, language) for prompt, finding in _listed_fixed(check)],
            "texts": quoted_texts(check.prompt),
            "prompt": check.prompt,
        },
        ensure_ascii=False,
    )


def _listed(findings: Iterable[Finding]) -> list[Finding]:
    seen: Counter[str] = Counter()
    listed = []
    for finding in findings:
        seen[finding.code] += 1
        if seen[finding.code] <= MAX_PER_CODE:
            listed.append(finding)
    return listed


def _listed_fixed(check: Check) -> list[tuple[str, Finding]]:
    listed = {id(finding) for finding in _listed(finding for _, finding in check.fixed)}
    return [(prompt, finding) for prompt, finding in check.fixed if id(finding) in listed]


def _tokens(reading: Reading | None, language: str) -> str:
    if reading is None:
        return NO_METER[language]
    return TOKENS[language].format(used=reading.num_tokens, limit=MAX_TOKENS, template=reading.num_template)


def _entry(prompt: str, finding: Finding, language: str) -> dict:
    message, remedy = _texts(prompt, finding, language)
    line, column = _place(prompt, finding)
    return {
        "code": finding.code,
        "severity": finding.severity,
        "start": finding.start,
        "end": finding.end,
        "line": line,
        "column": column,
        "message": message,
        "fix": remedy,
        "fixable": bool(finding.edits),
    }


def _line(label: str, prompt: str, finding: Finding, language: str) -> str:
    separator, colon = JOINTS[language]
    line, column = _place(prompt, finding)
    place = "" if line is None else f" ({PLACE[language].format(line=line, column=column)})"
    return label + place + colon + separator.join(_texts(prompt, finding, language))


def _texts(prompt: str, finding: Finding, language: str) -> tuple[str, str]:
    excerpt = "" if finding.start is None else prompt[finding.start : finding.end]
    excerpt = " ".join(excerpt.split())
    if len(excerpt) > MAX_EXCERPT:
        excerpt = excerpt[:MAX_EXCERPT] + "…"
    message, remedy = MESSAGES[finding.code][language]
    values = {"excerpt": excerpt, **finding.values}
    return message.format_map(values), remedy.format_map(values)


def _place(prompt: str, finding: Finding) -> tuple[int | None, int | None]:
    """Counts line and column, from 1."""
    if finding.start is None:
        return None, None
    before = prompt[: finding.start]
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
