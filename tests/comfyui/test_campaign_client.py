"""The campaign client against the real server: nothing is made twice or lost, whatever is killed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_model
from PIL import Image

SCRIPT = tiny_model.ROOT / "workflows" / "api" / "campaign.py"
GRAPH = {
    "seed": {"class_type": "SeedNode", "inputs": {"seed": 5}},
    "text": {"class_type": "PreviewAny", "inputs": {"source": ["seed", 0]}},
    "picture": {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 9},
    },
    "save": {"class_type": "SaveImage", "inputs": {"images": ["picture", 0], "filename_prefix": "x"}},
}


class Client:
    """A campaign in a folder: its table, its workflow, and runs of the script."""

    def __init__(self, folder: Path, server, graph: dict = GRAPH):
        self.folder, self.server = folder, server
        self.out = folder / "out"
        (folder / "graph.json").write_text(json.dumps(graph), "utf-8")

    def table(self, count: int) -> None:
        lines = [f'"Nr. {i}, ""双11"" <b>",{i}' for i in range(1, count + 1)]
        (self.folder / "rows.csv").write_text("\n".join(["headline,number", *lines]), "utf-8")

    def start(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, str(SCRIPT), "--server", self.server.address, "--out", str(self.out)]
        command += ["--rows", str(self.folder / "rows.csv"), "--workflow", str(self.folder / "graph.json")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
        return subprocess.Popen([*command, *arguments], **pipes)

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=200)
        return process.returncode, output

    def events(self, status: str) -> list[dict]:
        path = self.out / "journal.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [event for event in map(json.loads, lines) if event.get("status") == status]

    def until_made(self, count: int) -> None:
        deadline = time.monotonic() + 100
        while len(self.events("made")) < count:
            assert time.monotonic() < deadline, "the client makes nothing"
            time.sleep(0.02)

    def folder_of(self, base: Path) -> Path:
        """Where this campaign's pictures lie in the server's output folder."""
        first = json.loads((self.out / "journal.jsonl").read_bytes().split(b"\n")[0])
        return base / "output" / "campaign" / first["campaign"][:8]

    def saved(self, base: Path) -> list[str]:
        """The row numbers of those pictures."""
        return sorted(path.name.split("-")[0] for path in self.folder_of(base).iterdir())

    def report(self) -> list[dict]:
        with (self.out / "report.csv").open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def client(server, tmp_path) -> Client:
    return Client(tmp_path, server.process)


def numbers(count: int) -> list[str]:
    return [f"{i:05}" for i in range(1, count + 1)]


def slow(server) -> dict:
    """The shipped workflow on the small model: some tenths of a second a row."""
    return server.graph(steps=3)


def test_every_row_is_made_and_reported(client, server):
    client.table(4)
    status, output = client.run("--set", "picture.color={number}", "--set", "seed.seed=10{number}")
    assert (status, output.splitlines()[-1]) == (0, f"4 of 4 rows are made: {client.out / 'report.html'}")
    assert client.saved(server.base) == numbers(4)
    rows = client.report()
    assert [(row["row"], row["status"], row["number"]) for row in rows] == [
        (str(i), "made", str(i)) for i in range(1, 5)
    ]
    assert rows[2]["headline"] == 'Nr. 3, "双11" <b>'
    for i, row in enumerate(rows, 1):
        assert Image.open(client.out / row["files"]).getpixel((0, 0)) == (0, 0, i)
    page = (client.out / "report.html").read_text("utf-8")
    assert page.count("<img ") == 4
    assert all(f'src="{row["files"]}"' in page for row in rows)
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_a_finished_campaign_queues_nothing(client, server):
    client.table(2)
    client.run()
    before = len(server.get("/history"))
    assert client.run()[0] == 0
    assert len(server.get("/history")) == before
    assert client.saved(server.base) == numbers(2)


def test_rows_added_later_are_made_alone(client, server):
    client.table(2)
    client.run()
    client.table(3)
    assert client.run()[0] == 0
    assert client.saved(server.base) == numbers(3)


def test_killed_clients_repeat_and_lose_nothing(server, tmp_path):
    client = Client(tmp_path, server.process, slow(server))
    client.table(7)
    for made in (1, 3, 5):
        process = client.start("--set", "2.text={headline}", "--set", "5.seed={number}")
        client.until_made(made)
        process.send_signal(signal.SIGKILL if made != 3 else signal.SIGINT)
        process.communicate(timeout=60)
    assert client.run("--set", "2.text={headline}", "--set", "5.seed={number}")[0] == 0
    assert client.saved(server.base) == numbers(7)
    assert [row["status"] for row in client.report()] == ["made"] * 7
    assert len(client.events("made")) == 7


def test_a_half_written_line_of_the_journal_did_not_happen(client, server):
    client.table(3)
    client.run()
    path = client.out / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert client.run()[0] == 0
    assert client.saved(server.base) == numbers(3)
    assert len(client.events("made")) == 3


def test_what_the_server_has_forgotten_is_found_by_its_file(client, server):
    client.table(1)
    client.run()
    path = client.out / "journal.jsonl"
    forgotten = b"".join(path.read_bytes().splitlines(keepends=True)[:-1])  # all but that the row is made
    (picture,) = (client.out / "pictures").iterdir()

    path.write_bytes(forgotten)
    picture.unlink()
    server.post("/history", {"clear": True})
    assert client.run()[0] == 0
    assert server.get("/history") == {}
    assert picture.is_file()
    assert client.saved(server.base) == numbers(1)

    path.write_bytes(forgotten)
    (saved,) = client.folder_of(server.base).iterdir()
    saved.write_bytes(saved.read_bytes()[:-9])  # cut off, as by a crash: it is made again
    server.post("/free", {"free_memory": True})  # a crash empties ComfyUI's cache too
    assert client.run()[0] == 0
    assert len(server.get("/history")) == 1
    assert client.saved(server.base) == numbers(1) * 2
    assert Image.open(picture).size == (64, 64)


def test_a_restarted_server_repeats_and_loses_nothing(server, tmp_path):
    dev = tiny_model.import_by_path("dev", tiny_model.ROOT / "dev.py")
    base = tmp_path / "comfyui"
    (base / "models").mkdir(parents=True)
    for folder in (server.base / "models").iterdir():
        (base / "models" / folder.name).symlink_to(folder, target_is_directory=True)
    arguments = (
        Path(sys.executable),
        Path(os.environ["COMFYUI_PATH"]),
        base,
        ["--disable-api-nodes"],
        tmp_path / "log.txt",
    )
    with dev.ComfyServer(*arguments) as process:
        client = Client(tmp_path, process, slow(server))
        client.table(6)
        running = client.start("--set", "5.seed={number}", "--ahead", "4")
        client.until_made(2)
    port = int(process.address.split(":")[1])
    with dev.ComfyServer(*arguments, port=port):
        output, _ = running.communicate(timeout=200)
    assert running.returncode == 0, output
    assert "waiting for ComfyUI" in output
    assert client.saved(base) == numbers(6)
    assert len(client.events("made")) == 6


def test_what_is_not_verified_gets_a_new_seed(client):
    client.table(2)
    client.run("--verify", "text:2000007", "--set", "seed.seed={number}", "--retries", "3")
    assert [(row["status"], row["tries"], row["text"]) for row in client.report()] == [
        ("made", "3", "2000007"),
        ("unverified", "4", "3000011"),
    ]
    assert client.run("--verify", "text:2000007", "--set", "seed.seed={number}")[0] == 0
    assert len(client.events("queued")) == 7


def test_a_row_that_fails_is_named_and_the_rest_goes_on(client):
    (client.folder / "rows.csv").write_text("size\n64\n0\nwide\n96\n", "utf-8")
    status, output = client.run("--set", "picture.width={size}")
    assert status == 1
    assert "2 rows failed" in output
    rows = client.report()
    assert [row["status"] for row in rows] == ["made", "failed", "failed", "made"]
    assert rows[1]["error"] == "EmptyImage (node picture): Value 0 smaller than min of 1 (width)"
    assert rows[2]["error"] == "'wide' must be a int, as 64 is in the workflow"
    assert client.run("--set", "picture.width={size}")[0] == 1
    assert len(client.events("made")) == 2


def test_a_server_away_is_waited_for_with_a_bound(client):
    client.table(1)
    status, output = client.run("--server", "127.0.0.1:9", "--patience", "1.5")
    assert status == 1
    assert "did not answer for 1.5 s" in output
    assert client.run()[0] == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--set", "picture.size={number}"), "--set takes NODE.INPUT=TEMPLATE with an input of the workflow"),
        (("--set", "nothing.width=1"), "--set takes NODE.INPUT=TEMPLATE with an input of the workflow"),
        (("--verify", "ocr:passed"), "--verify takes NODE:TEXT with a node of the workflow"),
        (("--verify", "text"), "--verify takes NODE:TEXT with a node of the workflow"),
        (("--rows", "nothing.csv"), "There is no file nothing.csv."),
    ],
)
def test_mistakes_are_a_sentence(client, arguments, sentence):
    client.table(1)
    status, output = client.run(*arguments)
    assert status == 1
    assert output.startswith(sentence)


def test_a_journal_of_another_campaign_is_refused(client):
    client.table(1)
    client.run()
    status, output = client.run("--set", "picture.width=96")
    assert status == 1
    assert "is of another workflow, --set or --verify; choose another --out" in output


def test_two_clients_on_one_folder_are_refused(client):
    client.table(1)
    client.out.mkdir()
    campaign = tiny_model.import_by_path("campaign_client", SCRIPT)
    with campaign.lock_folder(client.out):
        status, output = client.run()
        assert (status, output.startswith("Another client works on")) == (1, True)
    assert client.run()[0] == 0


@pytest.mark.parametrize(
    ("name", "data", "rows"),
    [
        ("a.csv", '标题;b\n双11;"x\ny"\n\n'.encode("gbk"), [{"标题": "双11", "b": "x\ny"}]),
        ("a.tsv", "a\tb\n1,5\t{a}\n".encode("utf-16"), [{"a": "1,5", "b": "{a}"}]),
        (
            "a.jsonl",
            b'{"a": 1, "b": true, "c": null}\n\n{"a": "x"}',
            [{"a": "1", "b": "true", "c": ""}, {"a": "x"}],
        ),
        ("a.json", b'\xef\xbb\xbf[{"a": 1.5}]', [{"a": "1.5"}]),
    ],
)
def test_tables_of_every_kind(tmp_path, name, data, rows):
    campaign = tiny_model.import_by_path("campaign_client", SCRIPT)
    (tmp_path / name).write_bytes(data)
    assert campaign.read_rows(tmp_path / name) == rows


@pytest.mark.parametrize("text", ["a,a\n1,2", "a,\n1,2", "a,b\n1", 'a\n"x', ""])
def test_broken_tables_are_refused(tmp_path, text):
    campaign = tiny_model.import_by_path("campaign_client", SCRIPT)
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(SystemExit, match=r"a\.csv"):
        campaign.read_rows(tmp_path / "a.csv")


def test_templates_are_filled_once():
    campaign = tiny_model.import_by_path("campaign_client", SCRIPT)
    assert campaign.fill("{a} {{a}} {b}", {"a": "{b}", "b": "x"}) == "{b} {a} x"
    for wrong in ("{c}", "{a", "a}", "{a.b}"):
        with pytest.raises(campaign.Refused, match="is no column; the columns are a, b"):
            campaign.fill(wrong, {"a": "1", "b": "2"})
