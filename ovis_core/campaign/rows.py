"""Reads the rows of a table: CSV, TSV, JSON and JSON lines in the encodings that spreadsheets write.

One row is read at a time, so that memory does not grow with the table.
"""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

MAX_BYTES = 256 * 2**20
MAX_CELL = 20_000  # characters; a prompt of the model holds about a thousand
MAX_RECORD = 2**18  # characters of a line, or of a JSON object
MAX_COLUMNS = 1000
CHUNK = 2**16
BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
EXTENSIONS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt")
LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Row:
    """One row of a table, by its column names; `error` says why a row has no values."""

    number: int  # from 1, without the header
    values: dict[str, str]
    error: str = ""


@contextmanager
def open_table(path: Path) -> Iterator[Iterator[Row]]:
    """Reads the rows of a file, one at a time.

    UTF-8, UTF-16 with or without its mark, GBK. Raises ValueError for what cannot be read, naming the line
    or the row.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path.name} has {size} bytes, a table at most {MAX_BYTES}; split it")
    with path.open(encoding=find_encoding(path), newline="") as stream:
        yield read_rows(stream, path.suffix.lower())


def read_rows(stream: TextIO, extension: str = "") -> Iterator[Row]:
    """Reads the rows of a text, opened with newline=""; without a telling extension its beginning decides.

    Raises ValueError where the rest cannot be read, naming the row; a row that alone is wrong has an `error`.
    """
    text = LookAhead(stream)
    start = text.peek().lstrip()
    if not start:
        raise ValueError("the table is empty; its first row must name the columns")
    if extension in LINES or (start[0] == "{" and extension not in (".csv", ".tsv")):
        return _json_lines(text)
    if extension == ".json" or (start[0] == "[" and extension not in (".csv", ".tsv")):
        return _json_array(text)
    return _separated(text, "\t" if extension == ".tsv" else find_delimiter(start))


def find_encoding(path: Path) -> str:
    """Finds the encoding of a text file, proven by decoding all of it.

    The order cannot misread: a mark decides. NUL bytes are in no UTF-8 or GBK text, and in every UTF-16 one
    that has a line end. Text in GBK is hardly ever UTF-8 too, so UTF-8 comes before it.
    """
    with path.open("rb") as file:
        start = file.read(CHUNK)
    for bom, encoding in BOMS:
        if start.startswith(bom):
            return _decodes(path, encoding)
    if b"\0" in start:
        # The high byte of a line end is zero: at odd places in little-endian text.
        little = start[1::2].count(0) >= start[0::2].count(0)
        return _decodes(path, "utf-16-le" if little else "utf-16-be")
    try:
        return _decodes(path, "utf-8")
    except ValueError as error:
        if not _looks_like_gbk(start):
            raise error from None
    return _decodes(path, "gb18030")


def find_delimiter(start: str) -> str:
    """Chooses the comma, semicolon or tab that stands most often in the header, outside of quotes."""
    outside = "".join(start.split('"')[::2]).lstrip().splitlines() or [""]
    return max(",;\t", key=outside[0].count)


class LookAhead:
    """A stream that can be looked into ahead, and that refuses lines without end."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.ahead, self.line = stream, io.StringIO(newline=""), 0

    def peek(self) -> str:
        """Gives the beginning, which is read again later."""
        start = self.stream.read(CHUNK)
        if start.endswith("\r"):  # whose other half must not become a line of its own
            start += self.stream.read(1)
        start += self.stream.readline(MAX_RECORD)  # up to a line end, so that no line is read in two pieces
        self.ahead = io.StringIO(start.removeprefix("\ufeff"), newline="")
        return self.ahead.getvalue()

    def read(self, size: int) -> str:
        return self.ahead.read(size) or self.stream.read(size)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.ahead.readline(MAX_RECORD) or self.stream.readline(MAX_RECORD)
        if not line:
            raise StopIteration
        self.line += 1
        if len(line) >= MAX_RECORD:
            raise ValueError(f"line {self.line} has more than {MAX_RECORD} characters; is this a table?")
        return line


def _separated(stream: LookAhead, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    header: list[str] = []
    number = 0
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            where = f"row {number + 1}" if header else "the header"
            raise ValueError(
                f"{where} (line {stream.line}) cannot be read: {error}; put cells with quotes in quotes, and "
                "double the quotes inside"
            ) from None
        if cells is None:
            break
        if not cells:  # a blank line
            continue
        if not header:
            header = _checked_header([cell.strip() for cell in cells])
            continue
        number += 1
        if len(cells) != len(header):
            yield Row(number, {}, f"{len(cells)} cells for {len(header)} columns (line {stream.line})")
        else:
            yield _checked(number, dict(zip(header, cells, strict=True)))
    if not header:
        raise ValueError("the table is empty; its first row must name the columns")


def _json_lines(stream: LookAhead) -> Iterator[Row]:
    number = 0
    for line in stream:
        if not line.strip():
            continue
        number += 1
        try:
            values = _DECODER.decode(line.strip())
        except (ValueError, RecursionError) as error:
            yield Row(number, {}, f"line {stream.line} is not a JSON object: {_reason(error)}")
        else:
            yield _json_row(number, values)


def _json_array(stream: LookAhead) -> Iterator[Row]:
    buffer = stream.read(CHUNK).lstrip()
    if not buffer.startswith("["):
        raise ValueError(f"the JSON begins with {buffer[:10]!r}; a list of objects begins with [")
    buffer, number = buffer[1:], 0
    while True:
        buffer = _more(stream, buffer.lstrip())
        if buffer.startswith("]"):
            if (buffer[1:] + stream.read(CHUNK)).strip():
                raise ValueError(f"there is more after the list's end, behind row {number}")
            return
        if number:
            if not buffer.startswith(","):
                raise ValueError(f"row {number} must be followed by a comma or ], found {buffer[:10]!r}")
            buffer = _more(stream, buffer[1:].lstrip())
        number += 1
        values, buffer = _json_object(stream, buffer, number)
        yield _json_row(number, values)


def _json_object(stream: LookAhead, buffer: str, number: int) -> tuple[dict, str]:
    """Reads the object at the buffer's beginning -> the object, and what is left of the buffer."""
    if not buffer.startswith("{"):
        raise ValueError(f"row {number} must be a JSON object, it begins with {buffer[:10]!r}")
    while True:
        try:
            values, end = _DECODER.raw_decode(buffer)
            return values, buffer[end:]
        except (ValueError, RecursionError) as error:
            more = stream.read(CHUNK)
            if not more or len(buffer) > MAX_RECORD or isinstance(error, RecursionError):
                raise ValueError(f"row {number} cannot be read: {_reason(error)}") from None
            buffer += more


def _more(stream: LookAhead, buffer: str) -> str:
    """Fills an empty buffer, unless the stream is at its end."""
    while not buffer:
        more = stream.read(CHUNK)
        if not more:
            break
        buffer = more.lstrip()
    return buffer


def _json_row(number: int, values: object) -> Row:
    if not isinstance(values, dict):
        return Row(number, {}, f"a JSON object is needed, got {str(values)[:30]!r}")
    for name, value in values.items():
        if isinstance(value, dict | list):
            return Row(number, {}, f"column {name!r} holds a {type(value).__name__}, a text is needed")
    words = {None: "", True: "true", False: "false"}
    return _checked(number, {n: v if isinstance(v, str) else words[v] for n, v in values.items()})


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} is there twice")
    return values


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


# Numbers stay the text they are in the file: 1.50 is a price, not 1.5.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=str, parse_int=str, parse_constant=_no_number
)


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _checked_header(names: list[str]) -> list[str]:
    if len(names) > MAX_COLUMNS:
        raise ValueError(f"the header has {len(names)} columns, at most {MAX_COLUMNS} are read")
    for i, name in enumerate(names):
        if not name:
            raise ValueError(f"column {i + 1} has no name in the header; name it or remove it")
        if name in names[:i]:
            raise ValueError(f"column {name!r} is in the header twice; give each its own name")
    error = _checked(0, {"the header": "".join(names)}).error
    if error:
        raise ValueError(error)
    return names


def _checked(number: int, values: dict[str, str]) -> Row:
    for name, value in values.items():
        try:
            _check_cell(value)
        except ValueError as error:
            return Row(number, {}, f"column {name!r} {error}")
    return Row(number, values)


def _check_cell(value: str) -> None:
    if len(value) > MAX_CELL:
        raise ValueError(f"holds {len(value)} characters, at most {MAX_CELL} are read")
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(f"holds what is no text: {value[:30]!r}")


def _decodes(path: Path, encoding: str) -> str:
    """Gives `encoding` back when all of the file is in it. Raises ValueError with the line that is not."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line = 1
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            try:
                line += decoder.decode(chunk).count("\n")
            except UnicodeDecodeError as error:
                line += error.object[: error.start].count(b"\n")
                break
        else:
            try:
                decoder.decode(b"", final=True)
                return encoding
            except UnicodeDecodeError:
                pass
    name = encoding.upper().replace("-SIG", "")
    raise ValueError(f"{path.name}, line {line}: this is not {name} text; save the table as UTF-8")


def _looks_like_gbk(start: bytes) -> bool:
    """Tells whether most of the characters beyond ASCII are the common ones of GB 2312.

    Western European bytes followed by a letter are formally GBK too, but rare characters of it.
    """
    text = start.decode("gb18030", errors="ignore")
    beyond = [character for character in text if character > "\x7f"]
    return 2 * sum(_is_common(c) for c in beyond) > len(beyond)


def _is_common(character: str) -> bool:
    try:
        return bool(character.encode("gb2312"))
    except UnicodeEncodeError:
        return False
