"""Templates, safe names and the choice of rows."""

import pytest
import tiny_model  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st

from ovis_core.campaign.plan import (
    MAX_NAME,
    Job,
    Selection,
    Template,
    Templates,
    parse_seed,
    parse_size,
    plan_rows,
    safe_path,
    safe_value,
)
from ovis_core.campaign.rows import Row

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
TEMPLATES = Templates(
    headline="Poster: {headline}",
    style="{style}",
    seed="{seed}",
    size="1024x768",
    file_name="sale/{headline}",
)


def row(number: int, headline: str = "", style: str = "neon", seed: str = "7") -> Row:
    values = {"headline": headline or f"SALE {number}", "style": style, "seed": seed}
    return Row(number, values)


def plan(rows, first=1, last=0, most=0, exists=lambda name: False, templates=TEMPLATES):
    return plan_rows(rows, templates, Selection(first, last, most), exists)


@given(TEXT, TEXT)
def test_values_are_put_in_as_they_are(before, value):
    escaped = before.replace("{", "{{").replace("}", "}}")
    assert Template(escaped + "{a}", "x").fill({"a": value}) == before + value


def test_values_are_never_expanded_again():
    values = {"a": "{b}", "b": "{a.__class__}", "c": "%s {0} $b"}
    assert Template("{a}{b} {{c}} { c }", "x").fill(values) == "{b}{a.__class__} {c} %s {0} $b"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{a", "headline: { at character 1 is not closed"),
        ("a {b {c}", "headline: { at character 3 is not closed"),
        ("a}", "headline: } at character 2 closes nothing"),
    ],
)
def test_a_broken_template_is_one_sentence(text, sentence):
    with pytest.raises(ValueError, match=sentence.replace("{", r"\{")):
        Template(text, "headline")


@pytest.mark.parametrize("name", ["z", "a.b", "a[0]", "a!r", "a:>9", "", "__class__"])
def test_an_unknown_column_names_those_there_are(name):
    with pytest.raises(ValueError, match="style: there is no column '.*'; the columns are a, 标题$"):
        Template(f"{{{name}}}", "style").fill({"a": "1", "标题": "2"})


def test_a_row_becomes_a_job():
    assert plan([row(3, "50% off/双11")]).jobs == [
        Job(3, "Poster: 50% off/双11", "neon", 7, 1024, 768, "sale/50_ off_双11")
    ]


def test_the_rows_number_is_a_column_unless_the_table_has_one():
    templates = Templates(headline="{row}", style="", seed="", size="64x64", file_name="{row}")
    jobs = plan([Row(1, {"a": ""}), Row(2, {"row": "x"})], templates=templates).jobs
    assert [(job.headline, job.file_name, job.seed) for job in jobs] == [("00001", "00001", 1), ("x", "x", 2)]


def test_errors_are_named_and_the_rest_goes_on():
    rows = [
        row(1),
        row(2, seed="-1"),
        Row(3, {}, "2 cells for 3 columns (line 4)"),
        row(4, " "),
        Row(5, {"style": "a"}),
        row(6, "sale 1"),
        row(7),
    ]
    done = plan(
        rows,
        templates=Templates(
            headline="{headline}", style="{style}", seed="{seed}", size="64x64", file_name="{headline}"
        ),
    )
    assert [job.row for job in done.jobs] == [1, 7]
    assert done.report.splitlines() == [
        "2 rows to make, 0 exist already, 5 with errors",
        f"row 2: the seed '-1' must be a whole number from 0 to {2**64 - 1}",
        "row 3: 2 cells for 3 columns (line 4)",
        "row 4: the headline is empty",
        "row 5: headline: there is no column 'headline'; the columns are row, style",
        "row 6: its file name 'sale 1' is that of row 1; put {row} into it",
    ]


def test_the_report_of_many_errors_is_short():
    done = plan([row(1), *(row(i, seed="x") for i in range(2, 102))])
    assert len(done.errors) == 100
    assert done.report.splitlines()[-1] == "and 80 more"
    assert len(done.report.splitlines()) == 22


@pytest.mark.parametrize(
    ("first", "last", "most", "wanted"),
    [
        (1, 0, 0, [1, 2, 3, 4, 5, 6]),
        (2, 4, 0, [2, 3, 4]),
        (1, 0, 2, [1, 2]),
        (3, 0, 2, [3, 4]),
        (6, 9, 9, [6]),
    ],
)
def test_ranges(first, last, most, wanted):
    assert [job.row for job in plan([row(i) for i in range(1, 7)], first, last, most).jobs] == wanted


def test_rows_behind_the_range_are_not_read():
    def rows():
        yield row(1)
        yield row(2)
        raise ValueError("row 3 cannot be read")

    assert len(plan(rows(), most=1).jobs) == 1
    assert len(plan([row(1), row(2)], last=1).jobs) == 1
    with pytest.raises(ValueError, match="row 3 cannot be read"):
        plan(rows(), last=3)


def test_what_exists_is_skipped_and_does_not_count():
    done = plan([row(i) for i in range(1, 7)], most=2, exists={"sale/SALE 1", "sale/SALE 3"}.__contains__)
    assert [job.row for job in done.jobs] == [2, 4]
    assert done.skipped == 2


def test_nothing_left_is_a_sentence():
    with pytest.raises(ValueError, match="nothing is left to make: 0 rows to make, 2 exist already, 0 with"):
        plan([row(1), row(2)], exists=lambda name: True)
    with pytest.raises(ValueError, match="first_row is 9, the table has 2 rows"):
        plan([row(1), row(2)], first=9)


@pytest.mark.parametrize(("text", "seed"), [("", 5), (" 12 ", 12), (str(2**64 - 1), 2**64 - 1)])
def test_seeds(text, seed):
    assert parse_seed(text, 5) == seed


@pytest.mark.parametrize("text", ["-1", "1.5", "x", str(2**64), "9" * 5000, "²"])
def test_bad_seeds(text):
    with pytest.raises(ValueError, match="must be a whole number from 0 to"):
        parse_seed(text, 5)


@pytest.mark.parametrize("text", ["1024x768", "1024 X 768", " 1024×768 ", "1024*768"])
def test_sizes(text):
    assert parse_size(text) == (1024, 768)


@pytest.mark.parametrize("text", ["", "1024", "1000x1000", "0x64", "64x9999999", "16:9", "-64x64"])
def test_bad_sizes(text):
    with pytest.raises(ValueError, match="the size .* must be"):
        parse_size(text)


@given(TEXT)
def test_names_stay_below_the_folder_and_fit_every_system(text):
    try:
        path = safe_path(text)
    except ValueError:
        assert not text.strip(" ./\\")
        return
    for part in path.split("/"):
        assert part == part.strip(" .")
        assert part not in ("", ".", "..")
        assert len(part.encode()) <= MAX_NAME
        assert not set(part) & set('<>:"\\|?*%\0\n')
    assert safe_path(path) == path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("../../etc/passwd", "etc/passwd"),
        ("C:\\x\\con.txt", "C_/x/_con.txt"),
        ("Lpt1/aux.", "_Lpt1/_aux"),
        ("a/./b//c ", "a/b/c"),
        ("%date:yyyy%", "_date_yyyy_"),
        ("双11 狂欢", "双11 狂欢"),
    ],
)
def test_names(text, path):
    assert safe_path(text) == path


def test_a_value_makes_no_folder():
    assert safe_value("../a\\b") == ".._a_b"


def test_long_names_that_differ_stay_different():
    one, two = safe_path("双" * 200 + "a"), safe_path("双" * 200 + "b")
    assert one != two
    assert one[:30] == "双" * 30
