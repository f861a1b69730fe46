"""Tables in every format and encoding, whole and broken."""

import csv
import io
import json
import tracemalloc

import pytest
import tiny_model  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st

from ovis_core.campaign import rows as module
from ovis_core.campaign.rows import Row, find_delimiter, open_table, read_rows

TEXT = "headline,style\nSALE,neon\n双11狂欢,霓虹\n"
ROWS = [Row(1, {"headline": "SALE", "style": "neon"}), Row(2, {"headline": "双11狂欢", "style": "霓虹"})]
CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
NAMES = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=6),
    min_size=1,
    max_size=4,
    unique=True,
)


def read(text: str, extension: str = "") -> list[Row]:
    return list(read_rows(io.StringIO(text, newline=""), extension))


def read_bytes(folder, data: bytes, name: str = "table.csv") -> list[Row]:
    path = folder / name
    path.write_bytes(data)
    with open_table(path) as rows:
        return list(rows)


@st.composite
def tables(draw) -> list[dict[str, str]]:
    names = draw(NAMES)
    return draw(st.lists(st.fixed_dictionaries(dict.fromkeys(names, CELLS)), min_size=1, max_size=6))


def written(table: list[dict[str, str]], delimiter: str) -> str:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([list(table[0]), *([row[name] for name in table[0]] for row in table)])
    return stream.getvalue()


@given(tables(), st.sampled_from([(".tsv", "\t"), (".csv", ",")]))
def test_what_is_written_as_csv_is_read(table, kind):
    assert read(written(table, kind[1]), kind[0]) == [Row(i + 1, row) for i, row in enumerate(table)]


@given(tables(), st.booleans())
def test_what_is_written_as_json_is_read(table, ascii_only):
    wanted = [Row(i + 1, row) for i, row in enumerate(table)]
    assert read(json.dumps(table, ensure_ascii=ascii_only, indent=1)) == wanted
    lines = "\r\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in table)
    # Line ends inside texts are escaped by JSON; the others that Unicode knows do not end a line here.
    assert read(lines) == wanted


def outcome(read_it, *arguments) -> tuple[list[Row], Exception | None]:
    try:
        return read_it(*arguments), None
    except ValueError as error:
        return [], error


@given(st.binary(max_size=200), st.sampled_from(module.EXTENSIONS))
def test_any_bytes_are_rows_or_one_sentence(tmp_path_factory, data, extension):
    rows, error = outcome(read_bytes, tmp_path_factory.getbasetemp(), data, f"any{extension}")
    assert [row.number for row in rows] == [*range(1, len(rows) + 1)]
    assert type(error) in (type(None), ValueError)  # and no UnicodeDecodeError, which is a ValueError too
    if error:
        assert "\n" not in str(error)
        assert any(word in str(error) for word in ("row", "line", "header", "JSON", "empty"))


@given(st.text(max_size=100), st.sampled_from(["", ".csv", ".json"]))
def test_any_text_is_rows_or_one_sentence(text, extension):
    rows, error = outcome(read, text, extension)
    assert type(error) in (type(None), ValueError)
    assert all(isinstance(value, str) for row in rows for value in row.values.values())


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "gbk", "gb18030", "utf-16", "utf-16-le", "utf-16-be"]
)
def test_encodings_of_spreadsheets(tmp_path, encoding):
    assert read_bytes(tmp_path, TEXT.encode(encoding)) == ROWS


def test_utf16_with_a_big_endian_mark(tmp_path):
    assert read_bytes(tmp_path, ("\ufeff" + TEXT).encode("utf-16-be")) == ROWS


def test_western_european_text_is_not_taken_for_chinese(tmp_path):
    with pytest.raises(ValueError, match=r"^table\.csv, line 2: this is not UTF-8 text; save the table as"):
        read_bytes(tmp_path, "headline\ncafés für Gäste\n".encode("latin-1"))


def test_broken_bytes_name_the_line(tmp_path):
    data = TEXT.encode() * 3000
    with pytest.raises(ValueError, match="line 9001: this is not UTF-8 text"):
        read_bytes(tmp_path, data + "双".encode()[:2] + b"\n")
    with pytest.raises(ValueError, match="is not UTF-16-LE text"):
        read_bytes(tmp_path, TEXT.encode("utf-16-le")[:-1])


def test_cells_keep_quotes_newlines_and_spaces():
    text = 'a,b\r\n"say ""hi"", you"," x "\r\n"two\r\nlines",\r\n'
    assert read(text) == [
        Row(1, {"a": 'say "hi", you', "b": " x "}),
        Row(2, {"a": "two\r\nlines", "b": ""}),
    ]


def test_one_column_and_blank_lines():
    assert read("headline\n\nSALE\n\n双11\n") == [
        Row(1, {"headline": "SALE"}),
        Row(2, {"headline": "双11"}),
    ]


@pytest.mark.parametrize(
    ("start", "delimiter"),
    [("a,b", ","), ("a;b;c\n1,2", ";"), ("a\tb", "\t"), ('"a,b,c";d', ";"), ("a", ","), ("", ",")],
)
def test_delimiters_are_found_in_the_header(start, delimiter):
    assert find_delimiter(start) == delimiter


def test_a_row_of_another_length_is_named_and_the_rest_goes_on():
    rows = read("a,b\n1,2\n1,2,3\n4\n5,6\n")
    assert [bool(row.error) for row in rows] == [False, True, True, False]
    assert rows[1].error == "3 cells for 2 columns (line 3)"
    assert rows[3].values == {"a": "5", "b": "6"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the table is empty"),
        (" \n\n", "the table is empty"),
        ("a,,c\n1,2,3", "column 2 has no name"),
        ("a,b,a\n1,2,3", "column 'a' is in the header twice"),
        ('a,b\n1,2\n"3,4\n', r"row 2 \(line 3\) cannot be read: unexpected end of data"),
        ('a,b\n"1"x,2\n', r"row 1 \(line 2\) cannot be read"),
        ("a,b\n" + "x" * 2**18, "line 2 has more than 262144 characters"),
        ("a,b\n" + "x" * 200_000 + ",1", "row 1 .* field larger than field limit"),
        (",".join(f"c{i}" for i in range(1001)), "the header has 1001 columns"),
        ('[{"a": "1"}, {"a": ]', "row 2 cannot be read"),
        ('[{"a": "1"} {"a": "2"}]', "row 1 must be followed by a comma"),
        ('[{"a": "1"}, 7]', "row 2 must be a JSON object"),
        ('[{"a": "1"}] x', "there is more after the list's end"),
        ('[{"a": "1"}', "row 1 must be followed by a comma"),
        ('[{"a": NaN}]', "row 1 cannot be read: NaN is no number"),
        ('[{"a": "1", "a": "2"}]', "row 1 cannot be read: 'a' is there twice"),
        ('[{"a":' * 100_000, "row 1 cannot be read"),
    ],
)
def test_a_broken_table_is_one_sentence(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(text)


def test_json_lines_name_a_broken_row_and_go_on():
    rows = read(
        '{"a": 1.50, "b": null, "c": true}\n{"a": \n[1]\n{"a": {"x": 1}}\n{"a": "\\ud800"}\n{"a": 7}\n'
    )
    assert rows[0] == Row(1, {"a": "1.50", "b": "", "c": "true"})
    assert [row.error.split(" ")[0] for row in rows[1:5]] == ["line", "a", "column", "column"]
    assert rows[5] == Row(6, {"a": "7"})


def test_long_cells_and_nul_are_errors_of_their_row():
    rows = read("a\n" + "x" * 20_001 + "\nb\0\nc\n")
    assert rows[0].error == "column 'a' holds 20001 characters, at most 20000 are read"
    assert "holds what is no text" in rows[1].error
    assert rows[2].values == {"a": "c"}


def test_a_file_too_large_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match=r"table\.csv has 44 bytes, a table at most 10"):
        read_bytes(tmp_path, TEXT.encode())


def write_many(path) -> None:
    table = [{"headline": f"第{i}号", "style": "霓虹 " * 200} for i in range(4_000)]
    if path.suffix == ".csv":
        text = written(table, ",")
    elif path.suffix == ".json":
        text = json.dumps(table, ensure_ascii=False)
    else:
        text = "\n".join(json.dumps(row) for row in table)
    path.write_text(text, "utf-8", newline="")


@pytest.mark.parametrize("extension", [".csv", ".json", ".jsonl"])
def test_thousands_of_rows_in_bounded_memory(tmp_path, extension):
    path = tmp_path / f"many{extension}"
    write_many(path)
    assert path.stat().st_size > 5_500_000
    tracemalloc.start()
    with open_table(path) as rows:
        count = sum(not row.error for row in rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 4_000
    assert peak < 2_800_000
