"""The campaign client against the real server: nothing is made twice or lost, whatever is killed."""

import contextlib
import csv
import hashlib
import html.parser
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_model
from PIL import Image

SCRIPT = tiny_model.ROOT / "workflows" / "api" / "campaign.py"
EDITORS = min((tiny_model.ROOT / "workflows").glob("*.json"))  # a workflow in the editor's format
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
        self.folder, self.address, self.environment = folder, server.address, {}
        self.out = folder / "out"
        (folder / "graph.json").write_text(json.dumps(graph), "utf-8")

    def table(self, count: int) -> None:
        lines = [f'"Nr. {i}, ""双11"" <b>",{i}' for i in range(1, count + 1)]
        self.write("\n".join(["headline,number", *lines]))

    def write(self, table: str) -> None:
        (self.folder / "rows.csv").write_text(table, "utf-8")

    def start(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, str(SCRIPT), *self.arguments(*arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
        return subprocess.Popen(command, **pipes, env={**os.environ, **self.environment})

    def arguments(self, *arguments: str) -> list[str]:
        files = ["--rows", str(self.folder / "rows.csv"), "--workflow", str(self.folder / "graph.json")]
        return ["--server", self.address, "--out", str(self.out), *files, *arguments]

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


class Cable:
    """A connection to the server that can be cut and mended: a server away is one that nothing reaches."""

    def __init__(self, address: str):
        host, port = address.split(":")
        self.server, self.open = (host, int(port)), []
        self.listen(0)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"

    def listen(self, port: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self.accept, args=[self.listener], daemon=True).start()

    def accept(self, listener: socket.socket) -> None:
        while True:
            try:
                here, _ = listener.accept()
            except OSError:  # cut
                return
            there = socket.create_connection(self.server)
            self.open += [here, there]
            for source, target in ((here, there), (there, here)):
                threading.Thread(target=self.carry, args=(source, target), daemon=True).start()

    @staticmethod
    def carry(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:  # cut
            return

    def cut(self) -> None:
        for end in [self.listener, *self.open]:
            with contextlib.suppress(OSError):  # the other side was quicker
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture
def client(server, tmp_path) -> Client:
    return Client(tmp_path, server.process)


@pytest.fixture(scope="module")
def campaign():
    return tiny_model.import_by_path("campaign_client", SCRIPT)


def numbers(count: int) -> list[str]:
    return [f"{i:05}" for i in range(1, count + 1)]


def slow() -> dict:
    """Larger pictures, some tenths of a second a row."""
    picture = {"width": 2048, "height": 1536, "batch_size": 1, "color": 9}
    return {**GRAPH, "picture": {"class_type": "EmptyImage", "inputs": picture}}


def test_every_row_is_made_named_and_told_in_a_line(client, server):
    client.table(3)
    colour = ("--set", "picture.color={number}", "--set", "seed.seed=10{number}")
    status, output = client.run(*colour, "--name", "{row}-{headline}")
    lines = output.splitlines()
    assert (status, lines[-1]) == (0, f"3 of 3 rows are made: {client.out / 'report.html'}")
    assert [line.split(",")[0] for line in lines[:-1]] == [f"{i} of 3: row {i} made" for i in (1, 2, 3)]
    assert client.saved(server.base) == numbers(3)
    rows = client.report()
    assert [(row["row"], row["status"], row["tries"], row["final_seed"]) for row in rows] == [
        (str(i), "made", "1", f"10{i}") for i in (1, 2, 3)
    ]
    assert rows[2]["headline"] == 'Nr. 3, "双11" <b>'
    assert rows[2]["files"] == "pictures/003-Nr. 3, _双11_ _b_.png"
    for i, row in enumerate(rows, 1):
        assert Image.open(client.out / row["files"]).getpixel((0, 0)) == (0, 0, i)

    made = len(server.get("/history"))
    assert client.run(*colour)[0] == 0
    assert len(server.get("/history")) == made, "a finished campaign queues nothing"
    client.table(4)
    assert client.run(*colour)[0] == 0
    assert client.saved(server.base) == numbers(4), "a row added later is made alone"
    assert [row["files"] for row in client.report()[:3]] == [row["files"] for row in rows]


def test_without_websocket_client_the_server_is_asked(client, server):
    (client.folder / "websocket.py").write_text("raise ImportError")
    client.environment = {"PYTHONPATH": str(client.folder)}
    client.write("size\n64\n0\nwide\n96\n")
    status, output = client.run("--set", "picture.width={size}")
    assert status == 1
    assert "2 of 4 rows are made, 2 failed: rows 2, 3" in output
    rows = client.report()
    assert [row["status"] for row in rows] == ["made", "failed", "failed", "made"]
    assert rows[1]["error"] == "EmptyImage (node picture): Value 0 smaller than min of 1 (width)"
    assert rows[2]["error"] == "'wide' must be a whole number, as 64 is in the workflow"

    assert client.run("--set", "picture.width={size}")[0] == 1
    assert len(client.events("failed")) == 2
    assert client.run("--set", "picture.width={size}", "--retry-failed")[0] == 1
    assert (len(client.events("failed")), len(client.events("made"))) == (4, 2)
    client.write("size\n64\n32\n48\n96\n")
    status, output = client.run("--set", "picture.width={size}")
    assert (status, output.splitlines()[-1][:20]) == (0, "4 of 4 rows are made")
    assert len(client.events("made")) == 4


def test_killed_clients_repeat_and_lose_nothing(server, tmp_path):
    client = Client(tmp_path, server.process, slow())
    client.table(5)
    for made, by in ((1, signal.SIGKILL), (3, signal.SIGTERM)):
        process = client.start("--set", "picture.color={number}")
        client.until_made(made)
        process.send_signal(by)
        process.communicate(timeout=60)
    assert {row["status"] for row in client.report()} == {"made", "waiting"}
    assert client.run("--set", "picture.color={number}")[0] == 0
    assert client.saved(server.base) == numbers(5)
    assert [row["status"] for row in client.report()] == ["made"] * 5
    assert len(client.events("made")) == 5


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


def test_a_server_away_that_comes_back_without_its_queue_repeats_and_loses_nothing(server, tmp_path):
    cable = Cable(server.process.address)
    client = Client(tmp_path, cable, slow())
    client.table(6)
    running = client.start("--set", "picture.color={number}", "--ahead", "4")
    client.until_made(2)
    cable.cut()
    server.post("/queue", {"clear": True})
    server.post("/interrupt", {})
    while server.get("/queue")["queue_running"]:
        time.sleep(0.02)
    server.post("/history", {"clear": True})
    time.sleep(1.5)
    cable.listen(int(cable.address.split(":")[1]))
    output, _ = running.communicate(timeout=200)
    assert running.returncode == 0, output
    assert "waiting for ComfyUI" in output
    assert client.saved(server.base) == numbers(6)
    assert len(client.events("made")) == 6


def test_what_is_not_verified_is_said_and_gets_new_seeds(client):
    client.table(2)
    arguments = ("--verify", "text:2000007", "--set", "seed.seed={number}")
    status, output = client.run(*arguments, "--retries", "3")
    assert status == 3
    assert "1 of 2 verified, 1 not: row 2\n" in output
    assert [(row["status"], row["tries"], row["final_seed"], row["text"]) for row in client.report()] == [
        ("made", "3", "2000007", "2000007"),
        ("unverified", "4", "3000011", "3000011"),
    ]
    assert client.run(*arguments)[0] == 3
    assert len(client.events("queued")) == 7, "a second run without --retry-unverified does nothing"

    assert client.run(*arguments, "--retry-unverified", "--retries", "1")[0] == 3
    assert [event["attempt"] for event in client.events("queued")[7:]] == [4, 5]
    assert client.report()[1]["final_seed"] == "5000017"
    assert len(list((client.out / "pictures").iterdir())) == 2, (
        "the last picture takes the place of the others"
    )


def test_a_seed_that_a_node_shows_is_the_final_one(client):
    number = {"class_type": "PrimitiveInt", "inputs": {"value": 5}}
    graph = {**GRAPH, "number": number, "seed": {"class_type": "SeedNode", "inputs": {"seed": ["number", 0]}}}
    (client.folder / "graph.json").write_text(json.dumps(graph))
    client.table(2)
    assert client.run("--set", "number.value=4{number}")[0] == 0
    assert [row["final_seed"] for row in client.report()] == ["41", "42"]


def test_a_node_that_shows_no_text_verifies_nothing(client):
    client.table(1)
    status, output = client.run("--verify", "save:x")
    assert (status, "node save showed no text to verify" in output) == (1, True)


def test_a_journal_of_an_older_client_goes_on(client):
    client.write("headline\na\nb\nc\n")
    settings = hashlib.sha256(json.dumps([GRAPH, [], "text:9"], sort_keys=True).encode()).hexdigest()
    head = {"campaign": "5b0d9d5c-6f3b-4a34-9e0c-d2b6a4a2a7a1", "settings": settings}
    keys = ["00001-55b99a21649d", "00002-a51b5ded3dd0"]
    kept = {"files": [f"pictures/{keys[0]}.png"], "text": "5"}
    events = [
        {"row": keys[0], "status": "queued", "attempt": 0, "prompt_id": "x"},
        {"row": keys[0], "status": "unverified", "attempt": 0, **kept},
        {"row": keys[1], "status": "queued", "attempt": 0, "prompt_id": "y"},
        {"row": keys[1], "status": "failed", "attempt": 0, "error": "no memory"},
    ]
    client.out.mkdir()
    lines = "".join(json.dumps(event) + "\n" for event in [head, *events])
    (client.out / "journal.jsonl").write_text(lines)
    assert client.run("--verify", "text:9", "--retries", "0")[0] == 1
    rows = client.report()
    assert [(row["status"], row["tries"], row["final_seed"], row["error"]) for row in rows] == [
        ("unverified", "1", "5", ""),
        ("failed", "1", "5", "no memory"),
        ("unverified", "1", "5", ""),
    ]
    assert rows[0]["files"] == kept["files"][0]


def test_a_server_away_is_waited_for_with_a_bound(client):
    client.table(1)
    status, output = client.run("--server", "127.0.0.1:9", "--patience", "0.5")
    assert status == 1
    assert "did not answer for 0.5 s" in output
    assert client.run("--set", "picture.width=96")[0] == 0, (
        "settings that nothing was queued with do not bind"
    )
    status, output = client.run("--set", "picture.width=97")
    assert status == 1
    assert "is of another workflow, --set or --verify; choose another --out" in output


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (
            ("--set", "picture.size=1", "--set", "x.width=1", "--set", "picture", "--verify", "text"),
            [
                "--set picture.size: node picture (EmptyImage) has no input 'size'; its inputs are width,",
                "--set x.width: the workflow has no node 'x'; its nodes are seed (SeedNode), text",
                "--set takes NODE.INPUT=TEMPLATE, got 'picture'.",
                "--verify takes NODE:TEXT with a node of the workflow, got 'text'; they are seed (SeedNode),",
            ],
        ),
        (
            ("--set", "picture.width={size}", "--name", "{row}-{titel}"),
            [
                "--set picture.width: '{size}' in '{size}' is no column; the columns are headline, number,",
                "--name: '{titel}' in '{row}-{titel}' is no column; the columns are headline, number, row.",
            ],
        ),
        (("--rows", "nothing.csv"), ["There is no file nothing.csv."]),
        (("--out", f"{SCRIPT}/out"), [f"--out {SCRIPT}/out cannot be written ("]),
        (
            ("--workflow", str(EDITORS)),
            [
                f"{EDITORS} is a workflow in the editor's format, not "
                "in API format; open it in ComfyUI, choose File > Export (API) (文件 > 导出 (API)) and give"
            ],
        ),
        (
            ("--verify", "picture:x"),
            ["--verify: node picture (EmptyImage) shows no text; name one that does"],
        ),
    ],
)
def test_mistakes_are_sentences_before_the_first_row(client, campaign, monkeypatch, arguments, sentences):
    client.table(1)
    monkeypatch.setattr(sys, "argv", ["campaign.py", *client.arguments(*arguments)])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        campaign.main()
    said = str(stop.value).splitlines()
    assert [s[: len(sentence)] for s, sentence in zip(said, sentences, strict=True)] == sentences
    assert client.events("queued") == []


def test_nodes_that_the_server_lacks_and_other_servers_are_named(client, server):
    client.table(1)
    (client.folder / "graph.json").write_text(
        json.dumps({**GRAPH, "b": {"class_type": "a/b c", "inputs": {}}})
    )
    assert "ComfyUI has no a/b c (node b); install the nodes that it is from." in client.run()[1]


NASTY = {"=1+1": "<script>alert(1)</script>", "text": "-2+3", 'a"b': "@x ' onload='x' <b>&amp;</b>"}


def written(campaign, folder: Path, rows: list[dict]) -> tuple[list[list[str]], str]:
    """The reports of rows of which the second failed and the third waits."""
    arguments = {"out": folder, "title": "<i>Sale</i>", "rows": Path("a<b>.csv"), "workflow": Path("w.json")}
    journal = campaign.Journal(folder / "journal.jsonl", "")
    jobs = [campaign.Job(number, row, journal, {}) for number, row in enumerate(rows, 1)]
    jobs[0].tell("made", files=["pictures/夜 #1%.png"], text="=read")
    jobs[1].tell("failed", error="<img src=x onerror=alert(1)>")
    assert campaign.write_reports(SimpleNamespace(**arguments, set=[], verify=None), GRAPH, jobs) == ""
    table = (folder / "report.csv").read_text("utf-8-sig")
    return list(csv.reader(io.StringIO(table, newline=""))), (folder / "report.html").read_text("utf-8")


def test_no_cell_is_a_formula(campaign, tmp_path):
    rows, _ = written(campaign, tmp_path, [NASTY, {**NASTY, "text": "\t=1", 'a"b': "＝1"}, NASTY])
    own = ["row", "status", "tries", "final_seed", "files", "text", "error"]
    assert rows[0] == [*own, "'=1+1", "text (table)", 'a"b']
    assert rows[1] == ["1", "made", "1", "5", "pictures/夜 #1%.png", "'=read", "", *rows[1][7:]]
    assert rows[1][8:] == ["'-2+3", "'@x ' onload='x' <b>&amp;</b>"]
    assert rows[2][8:] == ["'\t=1", "'＝1"]


class Page(html.parser.HTMLParser):
    """What a browser sees: tags with their attributes, and each row's names and values."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.figures, self.said = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "figure":
            self.figures.append((dict(attrs)["class"], []))
        self.said = ""

    def handle_endtag(self, tag):
        if tag in ("dt", "dd", "h1"):
            self.figures[-1][1].append(self.said) if self.figures else setattr(self, "title", self.said)

    def handle_data(self, data):
        self.said += data


def test_the_page_says_what_the_table_says_and_runs_nothing_of_it(campaign, tmp_path):
    rows, text = written(campaign, tmp_path, [NASTY] * 3)
    page = Page(text)
    assert page.title == "<i>Sale</i>"
    assert '<p class="total">1 of 3 rows are made, 1 failed: row 2, 1 still waiting</p>' in text
    assert [state for state, _ in page.figures] == ["made", "failed", "waiting"]
    for _, said in page.figures:
        cells = dict(zip(said[::2], said[1::2], strict=True))
        assert {"=1+1": cells["=1+1"], "text": cells["text (table)"], 'a"b': cells['a"b']} == NASTY
    assert "<img src=x onerror=alert(1)>" in page.figures[1][1]
    assert [tag for tag, _ in page.tags].count("script") == 1
    addresses = [value for _, some in page.tags for name, value in some.items() if name in ("src", "href")]
    assert {urllib.parse.unquote(address) for address in addresses} == {"pictures/夜 #1%.png"}
    assert not [name for _, some in page.tags for name in some if name.startswith("on")]
    assert "//" not in text.replace("</", ""), "nothing from elsewhere"


def test_names_are_safe_and_no_two_rows_share_one(campaign, tmp_path):
    journal = campaign.Journal(tmp_path / "journal.jsonl", "")
    gone = campaign.Job(9, {"h": "a"}, journal, {})
    gone.tell("made", files=["pictures/a.png"])
    journal = campaign.Journal(tmp_path / "journal.jsonl", "")
    cells = [
        "a",
        "A",
        "Ａ/\u202e\n b?",
        "CON.txt",
        " ..",
        "-rf",
        "e\u0301",
        "\u00e9",
        "夜" * 99,
        "夜" * 98,
        "a-3",
    ]
    jobs = [campaign.Job(number, {"h": cell}, journal, {}) for number, cell in enumerate(cells, 1)]
    names = campaign.Names("{h}", jobs, journal)
    assert [names.of(job, 0) for job in jobs] == [
        *("a-2", "A-3", "Ａ_ b_", "_CON.txt", "005", "_-rf", "é", "é-2", "夜" * 40, "夜" * 40 + "-2", "a-3-2")
    ]
    assert [names.of(jobs[0], i) for i in (1, 2)] == ["a-2-2", "a-2-3"]
    assert campaign.Names("{h}-{number}", jobs, journal).of(jobs[0], 0) == "a-001"
    assert campaign.Names(None, jobs, journal).of(jobs[0], 1) == f"{jobs[0].key}-2"


def test_two_clients_on_one_folder_are_refused(client, campaign):
    client.table(1)
    client.out.mkdir()
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
def test_tables_of_every_kind(campaign, tmp_path, name, data, rows):
    (tmp_path / name).write_bytes(data)
    assert campaign.read_rows(tmp_path / name) == rows


@pytest.mark.parametrize("text", ["a,a\n1,2", "a,\n1,2", "a,b\n1", 'a\n"x', ""])
def test_broken_tables_are_refused(campaign, tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(SystemExit, match=r"a\.csv"):
        campaign.read_rows(tmp_path / "a.csv")


def test_templates_are_filled_once(campaign):
    assert campaign.fill("{a} {{a}} {b}", {"a": "{b}", "b": "x"}) == "{b} {a} x"
    for wrong in ("{c}", "{a", "a}", "{a.b}"):
        with pytest.raises(campaign.Refused, match="is no column; the columns are a, b"):
            campaign.fill(wrong, {"a": "1", "b": "2"})
