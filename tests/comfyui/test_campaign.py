"""Tables and sheets on the real server."""

import shutil

import pytest
import torch

TABLE = "headline,style,seed,size\nOPEN 24H,neon,7,64x96\n双11狂欢,霓虹,8,96x64\n"


@pytest.fixture
def folders(server):
    """The server's input and output folder, which end as they were."""
    for name in ("input", "output"):
        (server.base / name).mkdir(exist_ok=True)
    before = {path for name in ("input", "output") for path in (server.base / name).iterdir()}
    yield server.base / "input", server.base / "output"
    for path in {path for name in ("input", "output") for path in (server.base / name).iterdir()} - before:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def rows_graph(**inputs) -> dict:
    """A plain picture a row, saved under the row's name."""
    return {
        "rows": {
            "class_type": "OvisCampaignRows",
            "inputs": {
                **{
                    "file": "pasted rows",
                    "rows": TABLE,
                    "headline": "A sign: {headline}",
                    "style": "{style}",
                },
                **{"seed": "{seed}", "size": "{size}", "file_name": "campaign/{headline}"},
                **{"first_row": 1, "last_row": 0, "max_rows": 16, "skip_existing": False},
                **inputs,
            },
        },
        "picture": {
            "class_type": "EmptyImage",
            "inputs": {"width": ["rows", 3], "height": ["rows", 4], "batch_size": 1, "color": 255},
        },
        "save": {
            "class_type": "SaveImage",
            "inputs": {"images": ["picture", 0], "filename_prefix": ["rows", 5]},
        },
        **{
            name: {"class_type": "PreviewAny", "inputs": {"source": ["rows", i]}}
            for i, name in enumerate(("headline", "style", "seed"))
        },
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["rows", 6]}},
    }


def saved(outputs: dict) -> list[str]:
    return [image["filename"] for image in outputs["save"]["images"]]


def test_one_queue_makes_a_picture_a_row(server, folders):
    outputs = server.run(rows_graph())
    assert [*outputs["headline"]["text"]] == ["A sign: OPEN 24H", "A sign: 双11狂欢"]
    assert [*outputs["style"]["text"]] == ["neon", "霓虹"]
    assert [*outputs["seed"]["text"]] == ["7", "8"]
    assert saved(outputs) == ["OPEN 24H_00001_.png", "双11狂欢_00001_.png"]
    assert (folders[1] / "campaign" / "双11狂欢_00001_.png").is_file()
    assert outputs["rows"]["text"] == outputs["report"]["text"]
    assert outputs["report"]["text"] == ["2 rows to make, 0 exist already, 0 with errors"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("table.csv", TABLE.encode("gbk")),
        ("中文.tsv", TABLE.replace(",", "\t").encode("utf-16")),
        ("lines.jsonl", '{"headline": "双11狂欢", "style": "", "seed": 8, "size": "64x64"}'.encode()),
    ],
    ids=["gbk", "utf-16", "json lines"],
)
def test_files_of_the_input_folder(server, folders, name, data):
    (folders[0] / name).write_bytes(data)
    options = server.get("/object_info/OvisCampaignRows")["OvisCampaignRows"]["input"]["required"]["file"][1]
    assert options["options"] == ["pasted rows", name]
    outputs = server.run(rows_graph(file=name, rows=""))
    assert outputs["headline"]["text"][-1] == "A sign: 双11狂欢"
    assert outputs["seed"]["text"][-1] == "8"


def test_a_changed_file_is_read_again(server, folders):
    (folders[0] / "table.csv").write_text(TABLE, "utf-8")
    assert len(saved(server.run(rows_graph(file="table.csv")))) == 2
    (folders[0] / "table.csv").write_text(TABLE + "SALE,,,64x64\n", "utf-8")
    assert saved(server.run(rows_graph(file="table.csv")))[2] == "SALE_00001_.png"


@pytest.mark.parametrize("file", ["../log.txt", "/etc/passwd", "nothing.csv", "..\\..\\x.csv"])
def test_no_file_outside_the_input_folder(server, pack, file):
    status, answer = server.post("/prompt", {"prompt": rows_graph(file=file)})
    assert status == 400
    assert answer["node_errors"]["rows"]["errors"][0]["type"] == "value_not_in_list"
    with pytest.raises(ValueError, match="is no table in ComfyUI's input folder; put it there"):
        pack("nodes.adapters.words.campaign").table_path(file)


def test_errors_are_reported_and_the_rest_is_made(server, folders):
    outputs = server.run(rows_graph(rows=TABLE + "SALE,neon,x,64x64\nNEW,neon,,63x64\nLAST,neon,,64x64\n"))
    assert saved(outputs)[2:] == ["LAST_00001_.png"]
    assert outputs["seed"]["text"][2] == "5"
    assert outputs["report"]["text"][0].splitlines() == [
        "3 rows to make, 0 exist already, 2 with errors",
        f"row 3: the seed 'x' must be a whole number from 0 to {2**64 - 1}",
        "row 4: the size 63x64 must be of multiples of 16 from 64 to 8192",
    ]


def test_queueing_again_goes_on_with_what_is_left(server, folders):
    text = "headline\n" + "\n".join(f"Nr. {i}" for i in range(1, 6))
    used = {"rows": text, "style": "", "seed": "", "size": "64x64", "max_rows": 2, "skip_existing": True}
    made = [saved(server.run(rows_graph(**used))) for _ in range(3)]
    assert made == [[f"Nr. {i}_00001_.png" for i in numbers] for numbers in ((1, 2), (3, 4), (5,))]
    error = server.fail(rows_graph(**used))
    assert error["exception_type"] == "ValueError"
    assert error["exception_message"].startswith("nothing is left to make: 0 rows to make, 5 exist already")


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        (
            {"headline": "{titel}"},
            "row 1: headline: there is no column 'titel'; the columns are row, headline",
        ),
        ({"headline": "{headline"}, "headline: { at character 1 is not closed"),
        ({"rows": ""}, "the table is empty; its first row must name the columns"),
        ({"rows": "a,a\n1,2"}, "column 'a' is in the header twice"),
        ({"first_row": 9}, "first_row is 9, the table has 2 rows"),
    ],
)
def test_mistakes_are_one_sentence(server, inputs, sentence):
    error = server.fail(rows_graph(**inputs))
    assert (error["exception_type"], error["node_type"]) == ("ValueError", "OvisCampaignRows")
    assert sentence in error["exception_message"]


def test_names_with_a_counter_of_their_own(pack, tmp_path, monkeypatch):
    adapter = pack("nodes.adapters.words.campaign")
    monkeypatch.setattr(adapter.folder_paths, "get_output_directory", lambda: str(tmp_path))
    for name in ("row_7_00001_.png", "row_8.webp", "双11_00012_.jpg", "notes_00001_.txt"):
        (tmp_path / name).touch()
    exists = adapter.output_exists()
    wanted = {"row_7": True, "ROW_8": True, "双11": True, "row": False, "notes": False, "no/row_7": False}
    assert {name: exists(name) for name in wanted} == wanted


def grid_graph(**inputs) -> dict:
    """Two rows of two pictures of two sizes, each labelled with its headline."""
    table = "headline,size\nSALE,64x64\nÜber,96x64\nOPEN,64x96\nNEW,64x64\n"
    graph = rows_graph(rows=table, headline="{headline}", style="", seed="")
    graph = {name: graph[name] for name in ("rows", "picture", "save")}
    graph["grid"] = {
        "class_type": "OvisLabelledGrid",
        "inputs": {
            **{
                "images": ["picture", 0],
                "labels": ["rows", 0],
                "columns": 0,
                "cell_size": 64,
                "font_size": 0,
            },
            **inputs,
        },
    }
    graph["save"]["inputs"] = {"images": ["grid", 0], "filename_prefix": "grid"}
    return graph


def test_a_list_of_pictures_becomes_one_sheet(server, folders):
    outputs = server.run(grid_graph(column_labels="a\nb", row_labels="1\n2"))
    assert len(outputs["save"]["images"]) == 1
    sheet = server.image(outputs, "save")
    plain = server.image(server.run(grid_graph(labels="")), "save")
    assert sheet.size[0] > plain.size[0] > 2 * 64
    assert sheet.size[1] > plain.size[1] > 2 * 64
    blue = (0, 0, 255)
    assert [sum(p == blue for p in s.get_flattened_data()) for s in (sheet, plain)] == [
        2 * 64 * 64 + 64 * 43 * 2
    ] * 2


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"labels": "one\ntwo"}, "there are 2 labels for 4 pictures; give each its own, or none"),
        ({"columns": 3, "column_labels": "a\nb"}, "there are 2 column labels for 3 columns"),
        ({"labels": "\U000f0000\nb\nc\nd"}, "no font of this system has \U000f0000 (U+F0000); install one"),
    ],
)
def test_labels_that_cannot_be_are_a_sentence(server, inputs, sentence):
    error = server.fail(grid_graph(**inputs))
    assert (error["exception_type"], error["node_type"]) == ("ValueError", "OvisLabelledGrid")
    assert sentence in error["exception_message"]


PLAIN = {"column_labels": "", "row_labels": "", "columns": 0, "cell_size": 64, "font_size": 0}


def test_a_font_in_models_fonts_is_used(pack, tmp_path, monkeypatch):
    adapter = pack("nodes.adapters.words.campaign")
    seen = []
    monkeypatch.setattr(adapter.folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(
        adapter, "draw_sheet", lambda pictures, labels, **how: seen.append(how["fonts"]) or pictures[0]
    )
    adapter.labelled_grid([torch.ones(1, 8, 8, 4)], ["a"], **PLAIN)
    assert seen[0].folders[0] == tmp_path / "fonts"


def test_gray_and_transparent_pictures(pack):
    adapter = pack("nodes.adapters.words.campaign")
    clear = torch.tensor([0.2, 0.2, 0.2, 0.0]).expand(1, 2, 2, 4)
    sheet = adapter.labelled_grid([clear, torch.zeros(1, 2, 2, 1)], [""], **PLAIN | {"columns": 2})
    assert sheet.shape[-1] == 3
    assert int((sheet == 0).all(-1).sum()) == 4
    assert int((sheet == 1).all(-1).sum()) == sheet[..., 0].numel() - 4
