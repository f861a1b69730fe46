"""Plans a picture a row of a table: headline, style, seed, size, file name.

Values are put into templates as they are: nothing in a table is ever run or expanded again.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from .rows import Row

MAX_SEED = 2**64 - 1
MIN_SIDE, MAX_SIDE, SIDE_STEP = 64, 8192, 16  # pixels; the model draws in squares of 16
MAX_NAME = 120  # bytes of a file name, which leaves room for a counter and an ending on every system
SHOWN = 20  # errors told in full
# Device names of Windows, with any ending and in any case.
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9\u00b9\u00b2\u00b3]|lpt[0-9\u00b9\u00b2\u00b3])(\..*)?", re.I)
# % because ComfyUI expands %date% and the like in names; controls and marks that turn the direction of text.
UNSAFE = re.compile(r'[<>:"/\\|?*%\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]')
SIZE = re.compile(r"\s*(\d{1,5})\s*[xX\u00d7*]\s*(\d{1,5})\s*")


@dataclass(frozen=True)
class Job:
    """What one picture needs; `width` and `height` in pixels."""

    row: int
    headline: str
    style: str
    seed: int
    width: int
    height: int
    file_name: str


@dataclass
class Plan:
    """The pictures to make, and what became of the other rows."""

    jobs: list[Job] = field(default_factory=list)
    skipped: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        return f"{len(self.jobs)} rows to make, {self.skipped} exist already, {len(self.errors)} with errors"

    @property
    def report(self) -> str:
        hidden = len(self.errors) - SHOWN
        more = [f"and {hidden} more"] if hidden > 0 else []
        return "\n".join([self.summary, *self.errors[:SHOWN], *more])


class Templates:
    """The templates of one campaign. Columns are the table's, and `row`, the row's number."""

    def __init__(self, *, headline: str, style: str, seed: str, size: str, file_name: str) -> None:
        self.headline, self.style = Template(headline, "headline"), Template(style, "style")
        self.seed, self.size = Template(seed, "seed"), Template(size, "size")
        self.file_name = Template(file_name, "file_name")

    def job(self, row: Row) -> Job:
        """Fills in what the row's picture needs.

        Raises ValueError for a value that does not do, naming it.
        """
        values = {"row": f"{row.number:05}", **row.values}
        headline = self.headline.fill(values)
        if not headline.strip():
            raise ValueError("the headline is empty")
        width, height = parse_size(self.size.fill(values))
        seed = parse_seed(self.seed.fill(values), row.number)
        name = safe_path(self.file_name.fill(values, clean=safe_value))
        return Job(row.number, headline, self.style.fill(values), seed, width, height, name)


@dataclass(frozen=True)
class Selection:
    """Which rows of a table are made."""

    first_row: int = 1
    last_row: int = 0  # 0: the table's last
    max_rows: int = 0  # at most; 0: all


def plan_rows(
    rows: Iterable[Row],
    templates: Templates,
    selection: Selection,
    exists: Callable[[str], bool] = lambda name: False,
) -> Plan:
    """Plans the pictures of the selected rows.

    Rows whose output `exists` do not count towards `max_rows`. A row with an error is named in the plan, the
    rest goes on. Raises ValueError when nothing is left to make.
    """
    first_row, last_row, max_rows = selection.first_row, selection.last_row, selection.max_rows
    plan, names, seen = Plan(), {}, 0
    for row in rows:
        if (last_row and row.number > last_row) or (max_rows and len(plan.jobs) >= max_rows):
            break
        seen = row.number
        if row.number < first_row:
            continue
        try:
            if row.error:
                raise ValueError(row.error)
            job = templates.job(row)
            other = names.setdefault(job.file_name.casefold(), row.number)
            if other != row.number:
                raise ValueError(
                    f"its file name {job.file_name!r} is that of row {other}; put {{row}} into it"
                )
        except ValueError as error:
            plan.errors.append(f"row {row.number}: {error}")
            continue
        if exists(job.file_name):
            plan.skipped += 1
        else:
            plan.jobs.append(job)
    if not plan.jobs:
        if seen < first_row:
            raise ValueError(f"first_row is {first_row}, the table has {seen} rows")
        raise ValueError("nothing is left to make: " + plan.report)
    return plan


class Template:
    """Text with `{column}` in it; `{{` and `}}` are braces. No formats, no attributes, no expressions."""

    def __init__(self, text: str, what: str) -> None:
        self.what = what
        self.parts: list[tuple[str, bool]] = []  # text, whether it is a column's name
        literal, i = "", 0
        while i < len(text):
            if text[i : i + 2] in ("{{", "}}"):
                literal, i = literal + text[i], i + 2
            elif text[i] == "{":
                end = text.find("}", i)
                name = text[i + 1 : end]
                if end < 0 or "{" in name:
                    raise ValueError(
                        f"{what}: {{ at character {i + 1} is not closed; write {{column}}, or {{{{"
                    )
                self.parts += [(literal, False), (name.strip(), True)]
                literal, i = "", end + 1
            elif text[i] == "}":
                raise ValueError(f"{what}: }} at character {i + 1} closes nothing; write }}}} for a brace")
            else:
                literal, i = literal + text[i], i + 1
        self.parts.append((literal, False))

    def fill(self, values: dict[str, str], clean: Callable[[str], str] = str) -> str:
        """Puts each column's value, passed through `clean`, into the text.

        Raises ValueError for an unknown one.
        """
        for name, is_column in self.parts:
            if is_column and name not in values:
                have = ", ".join(values)
                raise ValueError(f"{self.what}: there is no column {name!r}; the columns are {have}")
        return "".join(clean(values[text]) if is_column else text for text, is_column in self.parts)


def parse_seed(text: str, default: int) -> int:
    """Reads a whole number; an empty text is `default`."""
    text = text.strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= MAX_SEED):
        raise ValueError(f"the seed {text[:30]!r} must be a whole number from 0 to {MAX_SEED}")
    return int(text)


def parse_size(text: str) -> tuple[int, int]:
    """Reads `1024x768` as (1024, 768) pixels."""
    match = SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"the size {text[:30]!r} must be WIDTHxHEIGHT in pixels, as 1024x768")
    width, height = int(match[1]), int(match[2])
    if any(side % SIDE_STEP or not MIN_SIDE <= side <= MAX_SIDE for side in (width, height)):
        raise ValueError(
            f"the size {width}x{height} must be of multiples of {SIDE_STEP} from {MIN_SIDE} to {MAX_SIDE}"
        )
    return width, height


def safe_value(text: str) -> str:
    """Takes out of a value what would be a folder, a variable or a control character in a path."""
    return UNSAFE.sub("_", unicodedata.normalize("NFC", text))


def safe_path(text: str) -> str:
    """Makes a path below the output folder that every system can write; `/` divides folders."""
    parts = [part for part in text.replace("\\", "/").split("/") if part.strip(" .")]
    if not parts:
        raise ValueError(
            f"the file name {text[:30]!r} has no letters; put a column or {{row}} into file_name"
        )
    return "/".join(_safe_part(part) for part in parts)


def _safe_part(text: str) -> str:
    name = safe_value(text).strip(" .")
    if RESERVED.fullmatch(name):
        name = f"_{name}"
    data = name.encode()
    if len(data) > MAX_NAME:  # names that differ must stay different
        digest = hashlib.sha256(data).hexdigest()[:8]
        name = f"{data[: MAX_NAME - 9].decode(errors='ignore').rstrip(' .')}-{digest}"
    return name
