"""Make a picture for every row of a table on one ComfyUI server. Needs `pip install websocket-client`.

python campaign.py --server 127.0.0.1:8188 --workflow text_to_image.json --rows rows.csv --out campaign \
    --set '2.text=A poster that says "{headline}", {style}' --set '5.seed={seed}'

Run the same command again after any interruption: OUT/journal.jsonl knows what was queued and what was made.
The pictures, report.csv and report.html are in OUT too. In a template {column} is the row's cell, {row} its
number, {{ and }} are braces.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import html
import http.client
import io
import itertools
import json
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import websocket

# ComfyUI is on this machine or next to it; a proxy for the internet would not find it.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
SEEDS = ("seed", "noise_seed")
SEED_STEP = 1_000_003  # between a seed and the next try's; neighbours are often other rows' seeds
FINAL = ("made", "unverified")
PNG_END = b"IEND\xaeB`\x82"


class Away(Exception):
    """The server does not answer."""


class Refused(Exception):
    """The server answers that it will not do it."""


def main() -> None:
    args = parse_arguments()
    rows = read_rows(args.rows)
    workflow = json.loads(args.workflow.read_text(encoding="utf-8"))
    check_places(args, workflow)
    args.out.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(args.out)
    settings = json.dumps([workflow, args.set, args.verify], sort_keys=True)
    journal = Journal(args.out / "journal.jsonl", hashlib.sha256(settings.encode()).hexdigest())
    jobs = [Job(number, row, journal) for number, row in enumerate(rows, 1)]
    try:
        Campaign(args, workflow, jobs, journal).run()
    except Away as error:
        sys.exit(f"ComfyUI at {args.server} did not answer for {args.patience} s ({error}); run this again.")
    except Refused as error:
        sys.exit(f"ComfyUI refuses to be asked: {error}")
    except OSError as error:
        sys.exit(f"{args.out} cannot be written: {error}; the same command goes on from here.")
    except KeyboardInterrupt:
        sys.exit("Stopped; the server goes on with what it was given. The same command goes on from here.")
    finally:
        write_reports(args.out, jobs)
        lock.close()
    failed = sum(job.status not in FINAL for job in jobs)
    print(f"{len(jobs) - failed} of {len(jobs)} rows are made: {args.out / 'report.html'}")
    if failed:
        sys.exit(f"{failed} rows failed, see {args.out / 'report.csv'}; the same command tries them again.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).resolve().parent
    parser.add_argument("--server", default="127.0.0.1:8188", metavar="HOST:PORT")
    parser.add_argument("--rows", type=Path, required=True, help=".csv, .tsv, .json or .jsonl")
    parser.add_argument("--workflow", type=Path, default=here / "text_to_image.json", help="in API format")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=TEMPLATE")
    parser.add_argument(
        "--verify", metavar="NODE:TEXT", help="a picture is good when NODE's text output contains TEXT"
    )
    parser.add_argument("--retries", type=int, default=3, help="new seeds for a row that is not good")
    parser.add_argument("--ahead", type=int, default=2, help="prompts kept in the server's queue")
    parser.add_argument("--patience", type=float, default=600, help="seconds to wait for a server away")
    args = parser.parse_args()
    for path in (args.rows, args.workflow):
        if not path.is_file():
            sys.exit(f"There is no file {path}.")
    return args


def check_places(args: argparse.Namespace, workflow: dict[str, Any]) -> None:
    for text in args.set:
        node, _, name = text.partition("=")[0].partition(".")
        if "=" not in text or name not in workflow.get(node, {}).get("inputs", {}):
            sys.exit(f"--set takes NODE.INPUT=TEMPLATE with an input of the workflow, got {text!r}.")
    node, _, wanted = (args.verify or "").partition(":")
    if args.verify and not (wanted and node in workflow):
        sys.exit(f"--verify takes NODE:TEXT with a node of the workflow, got {args.verify!r}.")


def read_rows(path: Path) -> list[dict[str, str]]:
    data = path.read_bytes()
    marked = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", "gb18030"):
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        sys.exit(f"{path} is not text in UTF-8, UTF-16 with a mark, or GBK; save it as UTF-8.")
    try:
        if path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
            lines = text.split("\n") if path.suffix.lower() != ".json" else [text]
            values = [json.loads(line) for line in lines if line.strip()]
            rows = values[0] if path.suffix.lower() == ".json" else values
            return [{name: as_text(value) for name, value in row.items()} for row in rows]
        header = text.partition("\n")[0]
        delimiter = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names, *rows = filter(None, reader)  # without blank lines
    except (ValueError, TypeError, AttributeError, IndexError, csv.Error) as error:
        sys.exit(f"{path} cannot be read: {error}")
    if "" in names or len(set(names)) < len(names) or "\0" in text:
        sys.exit(f"{path}: the header must give each column a name of its own, it is {names}.")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            sys.exit(f"{path}, row {number} has {len(row)} cells for {len(names)} columns.")
    return [dict(zip(names, row, strict=True)) for row in rows]


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def lock_folder(folder: Path) -> Any:
    """Two clients on one journal would make rows twice. The system lifts the lock however we end."""
    lock = (folder / ".lock").open("a")
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit(f"Another client works on {folder}; wait for it, or choose another --out.")
    return lock


class Journal:
    """What happened to each row: a line an event, on the disk before anything else is done."""

    def __init__(self, path: Path, settings: str) -> None:
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        # A line without its end was being written when the client was killed: it did not happen.
        events = [json.loads(line) for line in lines[:-1]]
        self.file = path.open("ab")
        self.file.truncate(sum(len(line) + 1 for line in lines[:-1]))
        if not events:
            self.write(campaign=str(uuid.uuid4()), settings=settings)
            events = [self.last]
        if events[0]["settings"] != settings:
            sys.exit(f"{path} is of another workflow, --set or --verify; choose another --out.")
        self.id = uuid.UUID(events[0]["campaign"])
        self.rows: dict[str, list[dict[str, Any]]] = {}
        for event in events[1:]:
            self.rows.setdefault(event["row"], []).append(event)

    def write(self, **event: Any) -> None:
        self.last = event
        self.file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())


class Job:
    """A row, known by its number and content, and what became of it."""

    def __init__(self, number: int, row: dict[str, str], journal: Journal) -> None:
        self.number, self.row, self.journal = number, row, journal
        content = json.dumps([number, row], sort_keys=True, ensure_ascii=False)
        self.key = f"{number:05}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
        self.status, self.attempt, self.rejected = "new", 0, 0
        self.details: dict[str, Any] = {}
        for event in journal.rows.get(self.key, []):
            self.apply(event)
        if self.status == "failed":  # the command was given again
            self.status = "new"

    def tell(self, status: str, **details: Any) -> None:
        event = {"row": self.key, "status": status, "attempt": self.attempt, **details}
        self.journal.write(**event)
        self.apply(event)

    def apply(self, event: dict[str, Any]) -> None:
        self.status, self.attempt, self.details = event["status"], event["attempt"], event
        if self.status in ("failed", "rejected"):
            self.attempt += 1
        self.rejected += self.status == "rejected"

    @property
    def prompt_id(self) -> str:
        """The same after any restart, so that the server can be asked for it."""
        return str(uuid.uuid5(self.journal.id, f"{self.key} {self.attempt}"))

    @property
    def prefix(self) -> str:
        return f"campaign/{str(self.journal.id)[:8]}/{self.key}-{self.attempt}"

    def prompt(self, workflow: dict[str, Any], sets: list[str]) -> dict[str, Any]:
        prompt = json.loads(json.dumps(workflow))
        for text in sets:
            place, _, template = text.partition("=")
            node, _, name = place.partition(".")
            old = prompt[node]["inputs"][name]
            prompt[node]["inputs"][name] = convert(fill(template, {"row": f"{self.number}", **self.row}), old)
        for node in prompt.values():
            inputs = node["inputs"]
            for name in SEEDS:
                if isinstance(inputs.get(name), int):
                    inputs[name] = (inputs[name] + self.rejected * SEED_STEP) % 2**63
            if "filename_prefix" in inputs:
                inputs["filename_prefix"] = self.prefix
        return prompt


def fill(template: str, row: dict[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] is None or match[1] not in row:
            raise Refused(f"{match[0]!r} in {template!r} is no column; the columns are {', '.join(row)}")
        return row[match[1]]

    return PLACEHOLDER.sub(value, template)


def convert(text: str, old: Any) -> Any:
    """The text as the kind of value that the workflow has there."""
    try:
        if isinstance(old, bool):
            return {"true": True, "false": False}[text.strip().lower()]
        return type(old)(text) if isinstance(old, int | float) else text
    except (KeyError, ValueError):
        raise Refused(f"{text!r} must be a {type(old).__name__}, as {old} is in the workflow") from None


class Campaign:
    """Keeps the server's queue filled until every row is made."""

    def __init__(self, args: argparse.Namespace, workflow: dict, jobs: list[Job], journal: Journal) -> None:
        self.args, self.workflow, self.jobs = args, workflow, jobs
        self.client_id = journal.id.hex  # also that of the client before a restart: its messages come to us
        self.socket: websocket.WebSocket | None = None
        self.since, self.made, self.shown = time.monotonic(), 0, ""

    def run(self) -> None:
        away_since = None
        while any(job.status not in (*FINAL, "failed") for job in self.jobs):
            try:
                self.turn()
                away_since = None
                self.listen()
            except (Away, ConnectionError, websocket.WebSocketException) as error:
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > self.args.patience:
                    raise Away(error) from None
                self.show(f"waiting for ComfyUI: {error}")
                self.socket = None
                time.sleep(1)

    def turn(self) -> None:
        """Asks for what is under way, takes what has ended, queues what is next."""
        if self.socket is None:
            url = f"ws://{self.args.server}/ws?clientId={self.client_id}"
            try:
                self.socket = websocket.create_connection(url, timeout=10, http_no_proxy=["*"])
            except OSError as error:
                raise Away(error) from None
        # The queue first: a prompt that leaves it afterwards is in the history by then.
        queue = json.loads(self.fetch("/queue"))
        waiting = {item[1] for item in queue["queue_running"] + queue["queue_pending"]}
        under_way = [job for job in self.jobs if job.status == "queued"]
        for job in under_way:
            if job.prompt_id not in waiting:
                try:
                    self.take(job)
                except Refused as error:  # the picture is gone
                    job.tell("failed", error=str(error))
        new = (job for job in self.jobs if job.status in ("new", "rejected"))
        free = self.args.ahead - sum(job.status == "queued" for job in under_way)
        for _, job in zip(range(free), new, strict=False):
            self.queue(job)

    def queue(self, job: Job) -> None:
        if job.status != "queued":
            job.tell("queued", prompt_id=job.prompt_id)  # before it is, so that it is asked for after a crash
        try:
            body = {"prompt": job.prompt(self.workflow, self.args.set), "prompt_id": job.prompt_id}
            answer = self.fetch("/prompt", json.dumps({**body, "client_id": self.client_id}).encode())
            if json.loads(answer)["node_errors"]:  # what is without error would be run alone
                self.fetch("/queue", json.dumps({"delete": [job.prompt_id]}).encode())
                raise Refused(reasons(answer))
        except Refused as error:
            job.tell("failed", error=str(error))

    def take(self, job: Job) -> None:
        """What became of a prompt that is no longer queued."""
        entry = json.loads(self.fetch(f"/history/{job.prompt_id}")).get(job.prompt_id)
        if entry is None:  # the server was restarted, or never got it
            # With its history a text to verify is gone too, so that the row must be made again.
            images = [] if self.args.verify else self.find_outputs(job)
            return self.keep(job, "made", images, "") if images else self.queue(job)
        if entry["status"]["status_str"] != "success":
            return job.tell("failed", error=reason(entry))
        images = [image for output in entry["outputs"].values() for image in output.get("images", [])]
        images = [image for image in images if image.get("type") == "output"]
        if not images:
            return job.tell("failed", error="the workflow saves no picture: it needs a SaveImage node")
        node, _, wanted = (self.args.verify or "").partition(":")
        text = "\n".join(map(str, entry["outputs"].get(node, {}).get("text", [])))
        if wanted in text:
            return self.keep(job, "made", images, text)
        if job.rejected < self.args.retries:
            return job.tell("rejected", text=text)
        return self.keep(job, "unverified", images, text)

    def find_outputs(self, job: Job) -> list[dict[str, str]]:
        """The pictures of a prompt that the server has forgotten, those that were saved whole."""
        folder, _, name = job.prefix.rpartition("/")
        found = []
        for counter in itertools.count(1):
            image = {"filename": f"{name}_{counter:05}_.png", "subfolder": folder, "type": "output"}
            try:
                if self.fetch(view(image)).endswith(PNG_END):
                    found.append(image)
            except Refused:  # there is none
                return found

    def keep(self, job: Job, status: str, images: list[dict[str, str]], text: str) -> None:
        files = []
        for i, image in enumerate(images):
            more = f"-{i + 1}" if i else ""
            files.append(f"pictures/{job.key}{more}{Path(image['filename']).suffix}")
            write_whole(self.args.out / files[-1], self.fetch(view(image)))
        job.tell(status, files=files, text=text)
        self.made += 1
        done = sum(job.status in FINAL for job in self.jobs)
        left = (time.monotonic() - self.since) / self.made * (len(self.jobs) - done)
        about = f"{left / 60:.0f} min" if left > 120 else f"{left:.0f} s"
        self.show(f"{done} of {len(self.jobs)} rows, about {about} left")

    def listen(self) -> None:
        """Shows the steps until a prompt ends, or for a second: the server may be silent."""
        self.socket.settimeout(1)
        end = time.monotonic() + 1
        while time.monotonic() < end and any(job.status == "queued" for job in self.jobs):
            try:
                frame = self.socket.recv()
            except websocket.WebSocketTimeoutException:
                return
            message = json.loads(frame) if isinstance(frame, str) and frame else {}
            data = message.get("data", {})
            if message.get("type") == "progress":
                self.show(f"step {data['value']} of {data['max']}", "\r")
            elif message.get("type") in ("execution_success", "execution_error", "execution_interrupted"):
                return

    def show(self, line: str, end: str = "\n") -> None:
        if line != self.shown and (end == "\n" or sys.stdout.isatty()):
            print(line.ljust(40), end=end, flush=True)
            self.shown = line

    def fetch(self, path: str, body: bytes | None = None) -> bytes:
        address = f"http://{self.args.server}{path}"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        try:
            with DIRECT.open(request, timeout=60) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            kind = Away if error.code >= 502 else Refused
            raise kind(f"HTTP {error.code}: {reasons(error.read())}") from None
        except (OSError, http.client.HTTPException) as error:
            raise Away(error) from None


def reasons(answer: bytes) -> str:
    """What ComfyUI finds wrong with a workflow, then with each of its nodes."""
    try:
        found = json.loads(answer)
        lines = [found["error"]["message"]] if found.get("error") else []
        for node_id, node in found["node_errors"].items():
            problems = "; ".join(f"{error['message']} ({error['details']})" for error in node["errors"])
            lines.append(f"{node['class_type']} (node {node_id}): {problems}")
        return "; ".join(lines)
    except (ValueError, KeyError, TypeError):
        return answer.decode(errors="replace")[:500]


def reason(entry: dict[str, Any]) -> str:
    for kind, data in entry["status"]["messages"]:
        if kind == "execution_error":
            return f"{data['node_type']} (node {data['node_id']}): {data['exception_message'].strip()}"
    return "the run was interrupted on the server"


def view(image: dict[str, str]) -> str:
    return f"/view?{urllib.parse.urlencode(image)}"


def write_reports(folder: Path, jobs: list[Job]) -> None:
    """report.csv for spreadsheets, report.html to look at: a picture a row."""
    columns = list(dict.fromkeys(name for job in jobs for name in job.row))
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["row", "status", "tries", "files", "text", "error", *columns])
    cells = []
    for job in jobs:
        details = job.details
        files = details.get("files", [])
        notes = [details.get("text", ""), details.get("error", "")]
        values = [job.row.get(name, "") for name in columns]
        tries = details.get("attempt", -1) + 1
        writer.writerow([job.number, job.status, tries, " ".join(files), *notes, *values])
        pictures = "".join(f'<a href="{file}"><img src="{file}" loading="lazy" alt=""></a>' for file in files)
        words = html.escape("\n".join([f"{job.number}: {job.status}", *filter(None, notes), *values]))
        cells.append(f"<figure>{pictures}<figcaption>{words}</figcaption></figure>")
    style = (
        "body{font:14px sans-serif}figure{display:inline-block;vertical-align:top;width:260px;margin:8px}"
        "img{max-width:260px;max-height:260px}figcaption{white-space:pre-wrap;overflow-wrap:anywhere}"
    )
    head = f'<!doctype html><meta charset="utf-8"><title>Campaign</title><style>{style}</style>'
    write_whole(folder / "report.csv", table.getvalue().encode("utf-8-sig"))
    write_whole(folder / "report.html", (head + "".join(cells)).encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write the file whole or not at all: a reader never sees half of it."""
    path.parent.mkdir(exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


if __name__ == "__main__":
    main()
