"""Make a picture for every row of a table on one ComfyUI server. Python's standard library is enough.

python campaign.py --server 127.0.0.1:8188 --workflow text_to_image.json --rows rows.csv --out campaign \
    --set '2.text=A poster that says "{headline}", {style}' --set '5.seed={seed}' --name '{number}-{headline}'

Run the same command again after any interruption: OUT/journal.jsonl knows what was queued and what was made.
The pictures, report.csv and report.html are in OUT too. In a template {column} is the row's cell, {number}
and {row} are its number, {{ and }} are braces. With `pip install websocket-client` steps are shown, too.

Exit status: 0 all rows are made, and verified if that was asked for; 3 all are made, but some not verified;
1 rows failed, or it stopped before the end; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import csv
import datetime as dt
import hashlib
import html
import http.client
import io
import itertools
import json
import os
import re
import signal
import sys
import time
import unicodedata
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

try:
    import websocket

    WEBSOCKET_FAULTS = (OSError, websocket.WebSocketException)
except ImportError:
    websocket = None

# ComfyUI is on this machine or next to it; a proxy for the internet would not find it.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
SEEDS = ("seed", "noise_seed")
SEED_STEP = 1_000_003  # between a seed and the next try's; neighbours are often other rows' seeds
FINAL = ("made", "unverified", "failed")
PNG_END = b"IEND\xaeB`\x82"
POLL = 0.5  # seconds between two looks at the server's queue, where its messages are not heard
PATIENCE_AT_START, PATIENCE = 10, 600  # seconds
MAX_NAME = 120  # bytes of a file name, which leaves room for a number and an ending on every system
UNSAFE = '<>:"/\\|?*%'
# Device names of Windows, with any ending and in any case.
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9\u00b9\u00b2\u00b3]|lpt[0-9\u00b9\u00b2\u00b3])(\..*)?", re.I)
# What makes a spreadsheet take a cell for a formula; the wide forms do in Chinese and Japanese ones.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


class Away(Exception):
    """The server does not answer."""


class Refused(Exception):
    """The server answers that it will not do it, or a row cannot be put into the workflow."""


class Stop(Exception):
    """A sentence to end with."""


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a console may lack the characters of cells and file names
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that the reports are written
    args = parse_arguments()
    rows = read_rows(args.rows)
    workflow = read_workflow(args.workflow)
    problems = [*wrong_places(args, workflow), *wrong_templates(args, rows)]
    if problems:
        sys.exit("\n".join(problems))
    lock = lock_folder(args.out)
    settings = json.dumps([workflow, args.set, args.verify], sort_keys=True)
    journal = open_journal(args.out / "journal.jsonl", hashlib.sha256(settings.encode()).hexdigest())
    retry = {"failed": args.retry_failed, "unverified": args.retry_unverified}
    jobs = [Job(number, row, journal, retry) for number, row in enumerate(rows, 1)]
    try:
        stopped = run(Campaign(args, workflow, jobs, journal), args.out)
    finally:
        unwritten = write_reports(args, workflow, jobs)
        lock.close()
    if stopped or unwritten:
        sys.exit("\n".join(filter(None, [stopped, unwritten])))
    status, summary = summarise(jobs, args)
    print(summary)
    sys.exit(status)


def run(campaign: Campaign, out: Path) -> str:
    """Make the rows -> a sentence that says why it stopped, empty at the end."""
    try:
        campaign.run()
    except Stop as error:
        return str(error)
    except Refused as error:
        return f"ComfyUI refuses to be asked: {error}"
    except OSError as error:
        return f"{out} cannot be written: {error}; the same command goes on from here."
    except KeyboardInterrupt:
        return "Stopped; the server goes on with what it was given. The same command goes on from here."
    return ""


def summarise(jobs: list[Job], args: argparse.Namespace) -> tuple[int, str]:
    """The exit status, and what is to be said at the end."""
    statuses = [job.status for job in jobs]
    report = args.out / "report.html"
    hints = []
    if "unverified" in statuses:
        hints.append("--retry-unverified tries those not verified with new seeds")
    if "failed" in statuses:
        hints.append("--retry-failed tries the failed ones again")
    if not hints:
        return 0, f"{totals(jobs, args.verify)}: {report}"
    hint = f"See {report}. Added to the same command, {' and '.join(hints)}."
    return 1 if "failed" in statuses else 3, f"{totals(jobs, args.verify)}\n{hint}"


def totals(jobs: list[Job], verify: str | None) -> str:
    """How many rows are good, and which are not."""
    rows = {status: [job.number for job in jobs if job.status == status] for status in FINAL}
    said = [f"{len(rows['made'])} of {len(jobs)} {'verified' if verify else 'rows are made'}"]
    if rows["unverified"]:
        said.append(f"{len(rows['unverified'])} not: {list_rows(rows['unverified'])}")
    if rows["failed"]:
        said.append(f"{len(rows['failed'])} failed: {list_rows(rows['failed'])}")
    waiting = sum(job.waits for job in jobs)
    return ", ".join([*said, f"{waiting} still waiting"] if waiting else said)


def list_rows(numbers: list[int]) -> str:
    more = f" and {len(numbers) - 20} more" if len(numbers) > 20 else ""
    return f"row{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:20]))}{more}"


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
    parser.add_argument("--name", metavar="TEMPLATE", help="names the pictures, as '{number}-{headline}'")
    parser.add_argument("--title", help="of report.html; the name of the folder unless given")
    parser.add_argument(
        "--verify", metavar="NODE:TEXT", help="a picture is good when NODE's text output contains TEXT"
    )
    parser.add_argument("--retries", type=int, default=3, help="new seeds for a row that is not good")
    parser.add_argument("--retry-failed", action="store_true", help="try rows that failed again")
    parser.add_argument(
        "--retry-unverified", action="store_true", help="try rows that were never good with new seeds"
    )
    parser.add_argument("--ahead", type=int, default=2, help="prompts kept in the server's queue")
    parser.add_argument(
        "--patience",
        type=float,
        help=f"seconds to wait for a server away; {PATIENCE_AT_START} at the start and {PATIENCE} later",
    )
    args = parser.parse_args()
    args.server = args.server.rstrip("/")
    if "://" not in args.server:
        args.server = f"http://{args.server}"
    files = (args.rows, args.workflow)
    problems = [f"There is no file {path}." for path in files if not path.is_file()]
    problems += [
        f"{path} may not be read." for path in files if path.is_file() and not os.access(path, os.R_OK)
    ]
    if problems:
        sys.exit("\n".join(problems))
    return args


def read_workflow(path: Path) -> dict[str, Any]:
    try:
        workflow = json.loads(path.read_bytes().decode("utf-8-sig"))
    except ValueError as error:
        sys.exit(f"{path} is not JSON: {error}.")
    nodes = workflow.values() if isinstance(workflow, dict) else []
    if nodes and all(isinstance(node, dict) and {"class_type", "inputs"} <= node.keys() for node in nodes):
        return workflow
    found = "no workflow in API format"
    if isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list):
        found = "a workflow in the editor's format, not in API format"
    sys.exit(
        f"{path} is {found}; open it in ComfyUI, choose File > Export (API) "
        "(\u6587\u4ef6 > \u5bfc\u51fa (API)) and give that file to --workflow."
    )


def wrong_places(args: argparse.Namespace, workflow: dict[str, Any]) -> Iterator[str]:
    """A sentence for each node and input that the workflow lacks."""
    nodes = ", ".join(f"{key} ({node['class_type']})" for key, node in workflow.items())
    for text in args.set:
        place, given, _ = text.partition("=")
        node, _, name = place.partition(".")
        if not (given and name):
            yield f"--set takes NODE.INPUT=TEMPLATE, got {text!r}."
        elif node not in workflow:
            yield f"--set {place}: the workflow has no node {node!r}; its nodes are {nodes}."
        elif name not in workflow[node]["inputs"]:
            inputs = ", ".join(workflow[node]["inputs"]) or "none"
            kind = workflow[node]["class_type"]
            yield f"--set {place}: node {node} ({kind}) has no input {name!r}; its inputs are {inputs}."
    if args.verify and not all(split_verify(args.verify, workflow)):
        yield f"--verify takes NODE:TEXT with a node of the workflow, got {args.verify!r}; they are {nodes}."
    if args.retry_unverified and not args.verify:
        yield "--retry-unverified needs the --verify of the rows that were not verified."


def split_verify(verify: str | None, workflow: dict[str, Any]) -> tuple[str, str]:
    """NODE and TEXT. A node inside a subgraph has a colon in its id."""
    nodes = [node for node in workflow if (verify or "").startswith(f"{node}:")]
    node = max(nodes, key=len, default="")
    return node, (verify or "")[len(node) + 1 :] if node else ""


def wrong_templates(args: argparse.Namespace, rows: list[dict[str, str]]) -> Iterator[str]:
    """A sentence for each template that names a column which no row has."""
    if not rows:
        yield f"{args.rows} has no rows below its header."
        return
    columns = dict.fromkeys([*(name for row in rows for name in row), "number", "row"], "")
    templates = [text.partition("=") for text in args.set]
    for place, template in [(f"--set {place}", template) for place, _, template in templates] + [
        ("--name", args.name or "")
    ]:
        try:
            fill(template, columns)
        except Refused as error:
            yield f"{place}: {error}."


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
            return read_objects(text, path.suffix.lower() != ".json")
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


def read_objects(text: str, one_a_line: bool) -> list[dict[str, str]]:
    lines = text.split("\n") if one_a_line else [text]
    values = [json.loads(line) for line in lines if line.strip()]
    rows = values if one_a_line else values[0]
    rows = [{name: as_text(value) for name, value in row.items()} for row in rows]
    json.dumps(rows, ensure_ascii=False).encode()  # half a character is no text for the journal
    return rows


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def lock_folder(folder: Path) -> Any:
    """Two clients on one journal would make rows twice. The system lifts the lock however we end."""
    try:
        probe = folder / "pictures" / ".probe"
        write_whole(probe, b"")
        probe.unlink()
        lock = (folder / ".lock").open("a")
    except OSError as error:
        sys.exit(f"--out {folder} cannot be written ({error}); choose another folder.")
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


def open_journal(path: Path, settings: str) -> Journal:
    try:
        return Journal(path, settings)
    except OSError as error:
        sys.exit(f"{path} cannot be written ({error}); choose another --out.")
    except (ValueError, KeyError, TypeError):
        sys.exit(f"{path} is damaged; choose another --out.")


class Journal:
    """What happened to each row: a line an event, on the disk before anything else is done."""

    def __init__(self, path: Path, settings: str) -> None:
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        # A line without its end was being written when the client was killed: it did not happen.
        events = [json.loads(line) for line in lines[:-1]]
        if len(events) == 1 and events[0]["settings"] != settings:
            events, lines = [], [b""]  # nothing was queued with the other settings
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
    """A row, known by its number and content, and what became of it.

    It is new, queued, rejected (a try was not verified), again (its tries begin anew), or in one of FINAL.
    """

    def __init__(self, number: int, row: dict[str, str], journal: Journal, retry: dict[str, bool]) -> None:
        self.number, self.row, self.journal = number, row, journal
        content = json.dumps([number, row], sort_keys=True, ensure_ascii=False)
        self.key = f"{number:05}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
        self.status, self.attempt, self.rejected, self.rejected_before = "new", 0, 0, 0
        self.details: dict[str, Any] = {}
        self.files: list[str] = []
        for event in journal.rows.get(self.key, []):
            self.apply(event)
        if retry.get(self.status):
            self.tell("again")

    def tell(self, status: str, **details: Any) -> None:
        event = {"row": self.key, "status": status, "attempt": self.attempt, **details}
        self.journal.write(**event)
        self.apply(event)

    def apply(self, event: dict[str, Any]) -> None:
        unverified = event["status"] == "again" and self.status == "unverified"
        self.status, self.attempt, self.details = event["status"], event["attempt"], event
        self.files = event.get("files", self.files)
        if self.status in ("failed", "rejected") or unverified:
            self.attempt += 1
        if self.status == "rejected" or unverified:
            self.rejected += 1
        if self.status == "again":
            self.rejected_before = self.rejected

    @property
    def waits(self) -> bool:
        return self.status not in FINAL

    @property
    def tries(self) -> int:
        return self.details.get("attempt", -1) + 1

    @property
    def prompt_id(self) -> str:
        """The same after any restart, so that the server can be asked for it."""
        return str(uuid.uuid5(self.journal.id, f"{self.key} {self.attempt}"))

    @property
    def prefix(self) -> str:
        return f"campaign/{str(self.journal.id)[:8]}/{self.key}-{self.attempt}"

    def fill(self, template: str, number: str) -> str:
        return fill(template, {"number": number, "row": number, **self.row})

    def prompt(self, workflow: dict[str, Any], sets: list[str]) -> dict[str, Any]:
        prompt = json.loads(json.dumps(workflow))
        for text in sets:
            place, _, template = text.partition("=")
            node, _, name = place.partition(".")
            old = prompt[node]["inputs"][name]
            prompt[node]["inputs"][name] = convert(self.fill(template, f"{self.number}"), old)
        for node in prompt.values():
            inputs = node["inputs"]
            for name in SEEDS:
                if isinstance(inputs.get(name), int):
                    inputs[name] = (inputs[name] + self.rejected * SEED_STEP) % 2**63
            if "filename_prefix" in inputs:
                inputs["filename_prefix"] = self.prefix
        return prompt

    def seed(self, workflow: dict[str, Any], sets: list[str]) -> str:
        """The last try's seed: the one that the workflow showed, else those that it has."""
        if not self.tries or "seed" in self.details:
            return self.details.get("seed", "")
        try:
            nodes = [node["inputs"] for node in self.prompt(workflow, sets).values()]
        except Refused:
            return ""
        seeds = [inputs[name] for inputs in nodes for name in SEEDS if isinstance(inputs.get(name), int)]
        return " ".join(map(str, dict.fromkeys(seeds)))


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
        kind = {bool: "true or false", int: "a whole number", float: "a number"}[type(old)]
        raise Refused(f"{text!r} must be {kind}, as {old} is in the workflow") from None


class Names:
    """The pictures' file names. No two rows share one, whatever a system takes for the same."""

    def __init__(self, template: str | None, jobs: list[Job], journal: Journal) -> None:
        self.owners = {}
        for key, events in journal.rows.items():  # also rows that are no longer in the table
            for file in (file for event in events for file in event.get("files", [])):
                self.owners[self.compared(Path(file).stem)] = key
        width = max(3, len(str(len(jobs))))
        self.names = {}
        for job in jobs:
            name = job.key
            if template is not None:
                number = f"{job.number:0{width}}"
                try:
                    name = safe_name(job.fill(template, number)) or number
                except Refused:  # this row lacks the column
                    name = number
            self.names[job.key] = self.take(name, job.key)

    def of(self, job: Job, i: int) -> str:
        """The name of a row's picture number i, from 0, without its ending."""
        return self.take(f"{self.names[job.key]}-{i + 1}", job.key) if i else self.names[job.key]

    def take(self, name: str, key: str) -> str:
        more = (f"{name}-{i}" for i in itertools.count(2))
        for free in itertools.chain([name], more):
            if self.owners.setdefault(self.compared(free), key) == key:
                return free

    @staticmethod
    def compared(name: str) -> str:
        return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def safe_name(text: str) -> str:
    """A file name that every system can write, of letters of any script; empty if nothing is left."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    kept = [c for c in text if unicodedata.category(c) != "Cf"]  # they show nothing, or turn the text round
    name = "".join("_" if c in UNSAFE or unicodedata.category(c)[0] == "C" else c for c in kept)
    name = name.strip(" .").encode()[:MAX_NAME].decode(errors="ignore").rstrip(" .")
    return f"_{name}" if RESERVED.fullmatch(name) or name.startswith(("-", "~")) else name


class Steps:
    """The server's messages, where `websocket-client` is installed: they only make progress finer."""

    def __init__(self, server: str, client_id: str, show: Callable[[str], None]) -> None:
        self.url, self.show = f"{server.replace('http', 'ws', 1)}/ws?clientId={client_id}", show
        self.socket: Any = None
        self.next_try = 0.0

    def wait(self) -> None:
        """Show the steps until a prompt ends, or for a second: the server may be silent."""
        if not self.connect():
            time.sleep(POLL)
            return
        try:
            end = time.monotonic() + 1
            while (left := end - time.monotonic()) > 0:
                self.socket.settimeout(left)
                frame = self.socket.recv()
                message = json.loads(frame) if isinstance(frame, str) and frame else {}
                data = message.get("data", {})
                if message.get("type") == "progress":
                    self.show(f"step {data['value']} of {data['max']}")
                elif message.get("type") in (
                    "execution_success",
                    "execution_error",
                    "execution_interrupted",
                ):
                    return
        except websocket.WebSocketTimeoutException:
            return
        except WEBSOCKET_FAULTS:
            self.socket = None
            time.sleep(POLL)

    def connect(self) -> bool:
        if websocket and self.socket is None and time.monotonic() >= self.next_try:
            try:
                self.socket = websocket.create_connection(self.url, timeout=5, http_no_proxy=["*"])
            except WEBSOCKET_FAULTS:
                self.next_try = time.monotonic() + 30
        return self.socket is not None


class Campaign:
    """Keeps the server's queue filled until every row is made."""

    def __init__(self, args: argparse.Namespace, workflow: dict, jobs: list[Job], journal: Journal) -> None:
        self.args, self.workflow, self.jobs = args, workflow, jobs
        self.names = Names(args.name, jobs, journal)
        self.node, self.wanted = split_verify(args.verify, workflow)
        self.client_id = journal.id.hex  # also that of the client before a restart: its messages come to us
        self.seed_nodes: list[str] = []
        self.steps = Steps(args.server, self.client_id, lambda line: self.show(line, "\r"))
        self.since, self.ended, self.shown, self.end = time.monotonic(), 0, "", "\n"

    def run(self) -> None:
        if any(job.waits for job in self.jobs):
            self.insist(self.check_nodes, PATIENCE_AT_START)
        while any(job.waits for job in self.jobs):
            self.insist(self.turn, PATIENCE)
            if any(job.waits for job in self.jobs):
                self.steps.wait()

    def insist(self, action: Callable[[], None], patience: float) -> None:
        """Do it again while the server is away, for so many seconds."""
        if self.args.patience is not None:
            patience = self.args.patience
        since = time.monotonic()
        while True:
            try:
                return action()
            except (Away, ConnectionError) as error:
                if time.monotonic() - since > patience:
                    raise Stop(
                        f"ComfyUI at {self.args.server} did not answer for {patience:g} s ({error}); "
                        "start it, or give its address to --server, and run this again."
                    ) from None
                self.show(f"waiting for ComfyUI: {error}")
                self.steps.socket = None
                time.sleep(1)

    def check_nodes(self) -> None:
        """The server is a ComfyUI that has the workflow's nodes."""
        problems, kinds = [], {}
        for kind in dict.fromkeys(node["class_type"] for node in self.workflow.values()):
            try:
                known = json.loads(self.fetch(f"/object_info/{urllib.parse.quote(kind, safe='')}"))
            except (Refused, ValueError):
                raise Stop(f"What answers at {self.args.server} is no ComfyUI.") from None
            nodes = ", ".join(key for key, node in self.workflow.items() if node["class_type"] == kind)
            kinds.update(known)
            if kind not in known:
                problems.append(f"ComfyUI has no {kind} (node {nodes}); install the nodes that it is from.")
            elif self.node in nodes.split(", ") and not known[kind].get("output_node"):
                problems.append(
                    f"--verify: node {self.node} ({kind}) shows no text; name one that does, as "
                    "OvisTextVerify or a PreviewAny behind it."
                )
        if problems:
            raise Stop("\n".join(problems))
        self.seed_nodes = list(seed_nodes(self.workflow, kinds))

    def turn(self) -> None:
        """Asks for what is under way, takes what has ended, queues what is next."""
        # The queue first: a prompt that leaves it afterwards is in the history by then.
        queue = json.loads(self.fetch("/queue"))
        waiting = {item[1] for item in queue["queue_running"] + queue["queue_pending"]}
        under_way = [job for job in self.jobs if job.status == "queued"]
        for job in under_way:
            if job.prompt_id not in waiting:
                try:
                    self.take(job)
                except Refused as error:  # the picture is gone
                    self.finish(job, "failed", error=str(error))
        new = (job for job in self.jobs if job.waits and job.status != "queued")
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
            self.finish(job, "failed", error=str(error))

    def take(self, job: Job) -> None:
        """What became of a prompt that is no longer queued."""
        entry = json.loads(self.fetch(f"/history/{job.prompt_id}")).get(job.prompt_id)
        if entry is None:  # the server was restarted, or never got it
            # With its history a text to verify is gone too, so that the row must be made again.
            images = [] if self.args.verify else self.find_outputs(job)
            return self.keep(job, "made", images, {}) if images else self.queue(job)
        if entry["status"]["status_str"] != "success":
            return self.finish(job, "failed", error=reason(entry))
        images = [image for output in entry["outputs"].values() for image in output.get("images", [])]
        images = [image for image in images if image.get("type") == "output"]
        if not images:
            error = "the workflow saves no picture: it needs a SaveImage node"
            return self.finish(job, "failed", error=error)
        shown = {node: output["text"] for node, output in entry["outputs"].items() if "text" in output}
        if self.node and self.node not in shown:
            error = f"node {self.node} showed no text to verify; --verify needs one that does"
            return self.finish(job, "failed", error=error)
        text = as_lines(shown.get(self.node, []))
        if self.wanted in text:
            return self.keep(job, "made", images, shown)
        if job.rejected - job.rejected_before < self.args.retries:
            job.tell("rejected", text=text)
            return self.show(f"row {job.number}: try {job.tries} is not verified", "\r")
        return self.keep(job, "unverified", images, shown)

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

    def keep(self, job: Job, status: str, images: list[dict[str, str]], shown: dict[str, list]) -> None:
        files = []
        for i, image in enumerate(images):
            files.append(f"pictures/{self.names.of(job, i)}{Path(image['filename']).suffix}")
            write_whole(self.args.out / files[-1], self.fetch(view(image)))
        seeds = [as_lines(shown.get(node, [])) for node in self.seed_nodes]
        seed = {"seed": " ".join(filter(None, dict.fromkeys(seeds)))} if seeds else {}
        self.finish(job, status, files=files, text=as_lines(shown.get(self.node, [])), **seed)

    def finish(self, job: Job, status: str, **details: Any) -> None:
        """Write down how a row ended, and say so in a line."""
        job.tell(status, **details)
        self.ended += 1
        left = sum(job.waits for job in self.jobs)
        seconds = (time.monotonic() - self.since) / self.ended * left
        about = f"{seconds / 60:.0f} min" if seconds > 120 else f"{seconds:.0f} s"
        seed = job.seed(self.workflow, self.args.set)
        words = [f"row {job.number} {status}", f"try {job.tries}", f"seed {seed}" if seed else ""]
        words.append(details.get("error") or ", ".join(job.files))
        words.append(f"about {about} left" if left else "")
        self.show(f"{len(self.jobs) - left} of {len(self.jobs)}: {', '.join(filter(None, words))}")

    def show(self, line: str, end: str = "\n") -> None:
        if line != self.shown and (end == "\n" or sys.stdout.isatty()):
            clear = f"{'':40}\r" if self.end == "\r" else ""  # what was there to be written over
            print(clear + "".join(c if c.isprintable() else " " for c in line), end=end, flush=True)
            self.shown, self.end = line, end

    def fetch(self, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(
            f"{self.args.server}{path}", body, {"Content-Type": "application/json"}
        )
        try:
            with DIRECT.open(request, timeout=60) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            kind = Away if error.code >= 502 else Refused
            raise kind(f"HTTP {error.code}: {reasons(error.read())}") from None
        except (OSError, http.client.HTTPException) as error:
            raise Away(getattr(error, "reason", error)) from None


def seed_nodes(workflow: dict[str, Any], kinds: dict[str, Any]) -> Iterator[str]:
    """The nodes that show another one's output `seed`: it may have drawn seeds itself, as Ovis Text Retry."""
    for key, node in workflow.items():
        links = [value for value in node["inputs"].values() if isinstance(value, list)]
        sources = [(workflow[link[0]]["class_type"], link[1]) for link in links if link[0] in workflow]
        if kinds[node["class_type"]].get("output_node") and any(
            kinds[kind]["output_name"][i : i + 1] == ["seed"] for kind, i in sources
        ):
            yield key


def as_lines(text: list[Any]) -> str:
    return "\n".join(map(str, text))


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


# The reports: report.csv for spreadsheets, report.html to look at, with the same columns.

OWN = ("row", "status", "tries", "final_seed", "files", "text", "error")
NO_PICTURE = '<div class="none">no picture</div>'
STYLE = """
body{font:14px/1.4 system-ui,sans-serif;margin:24px;color:#1c1c1c;background:#fff}
h1{font-size:24px;margin:0}
header p{margin:4px 0;overflow-wrap:anywhere}
.total{font-size:18px;font-weight:600}
input[name=state]{position:absolute;opacity:0}
label{display:inline-block;margin:12px 8px 12px 0;padding:4px 12px;cursor:pointer}
label{border:1px solid #888;border-radius:16px}
input:checked+label{background:#1c1c1c;color:#fff}
input:focus-visible+label{outline:3px solid #4c8bf5}
main{display:grid;grid-template-columns:repeat(auto-fill,minmax(240px,1fr));gap:16px;align-items:start}
figure{margin:0;border:2px solid var(--state);border-radius:8px;overflow:hidden;break-inside:avoid}
.made{--state:#2e7d32;--tint:#e8f3e9}
.unverified{--state:#b26a00;--tint:#fdf1dd}
.failed{--state:#b3261e;--tint:#fbe4e2}
.waiting{--state:#777;--tint:#eee}
.picture{display:block;background:#f2f2f2;text-align:center}
.picture img{display:block;margin:auto;max-width:100%;max-height:320px}
.none{padding:48px 0;text-align:center;color:#777;background:#f2f2f2}
figcaption h2{font-size:14px;margin:0;padding:6px 10px;background:var(--tint);color:var(--state)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 10px;margin:8px 10px}
dt{color:#666;max-width:110px;overflow-wrap:anywhere}
dd{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
dialog{padding:0;border:0;background:#000c;width:100vw;height:100vh;max-width:none;max-height:none;cursor:zoom-out}
dialog img{width:96vw;height:96vh;margin:2vh 2vw;object-fit:contain}
@media print{
body{margin:0;font-size:10px;print-color-adjust:exact;-webkit-print-color-adjust:exact}
label,dialog,input{display:none}
main{grid-template-columns:repeat(3,1fr);gap:8px;margin-top:12px}
.picture img{max-height:200px}
@page{margin:12mm}
}
"""
SCRIPT = """
const dialog = document.querySelector("dialog"), large = dialog.firstElementChild;
const shown = () => [...document.querySelectorAll("a.picture")].filter(link => link.checkVisibility());
function enlarge(link) { large.src = link.href; if (!dialog.open) dialog.showModal(); }
document.querySelector("main").addEventListener("click", event => {
  const link = event.target.closest("a.picture");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  enlarge(link);
});
dialog.addEventListener("click", () => dialog.close());
dialog.addEventListener("keydown", event => {
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key], links = shown();
  const next = links[links.findIndex(link => link.href === large.src) + step];
  if (next) enlarge(next);
});
"""


def write_reports(args: argparse.Namespace, workflow: dict[str, Any], jobs: list[Job]) -> str:
    """Write both -> a sentence on what could not be written."""
    columns = list(dict.fromkeys(name for job in jobs for name in job.row))
    # The table may have a column of our name.
    header = [*OWN, *(f"{name} (table)" if name in OWN else name for name in columns)]
    lines = []
    for job in jobs:
        status = "waiting" if job.waits else job.status
        own = [f"{job.number}", status, f"{job.tries}", job.seed(workflow, args.set), "\n".join(job.files)]
        own += [job.details.get("text", ""), job.details.get("error", "")]
        lines.append([*own, *(job.row.get(name, "") for name in columns)])
    cards = map(card, itertools.repeat(header), lines, jobs)
    page = write_page(args, totals(jobs, args.verify), [line[1] for line in lines], "".join(cards))
    faults = []
    for name, text in {"report.csv": "\ufeff" + write_table(header, lines), "report.html": page}.items():
        try:
            write_whole(args.out / name, text.encode("utf-8", "replace"))
        except OSError as error:
            faults.append(f"{args.out / name} cannot be written ({error}); run this again.")
    return "\n".join(faults)


def write_table(header: list[str], lines: list[list[str]]) -> str:
    table = io.StringIO(newline="")
    csv.writer(table).writerows([harmless(cell) for cell in line] for line in (header, *lines))
    return table.getvalue()


def harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def write_page(args: argparse.Namespace, total: str, states: list[str], cards: str) -> str:
    title = html.escape(args.title or args.out.resolve().name)
    counts = {state: states.count(state) for state in (*FINAL, "waiting") if state in states}
    facts = [f"table {args.rows.name}", f"workflow {args.workflow.name}"]
    facts += [f"verified by {args.verify}"] if args.verify else []
    facts += [f"{dt.date.today()}"]
    choices, hide = [choice("all", len(states), "checked")], ""
    for state, count in counts.items():
        choices.append(choice(state, count))
        hide += f"#{state}:checked~main figure:not(.{state}){{display:none}}\n"
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{STYLE}{hide}</style>
<header>
<h1 dir="auto">{title}</h1>
<p class="total">{total}</p>
<p>{html.escape("; ".join(facts))}</p>
</header>
{"".join(choices)}
<main>
{cards}</main>
<dialog><img alt=""></dialog>
<script>{SCRIPT}</script>
</html>
"""


def choice(state: str, count: int, checked: str = "") -> str:
    button = f'<input type="radio" name="state" id="{state}" {checked}>'
    return f'{button}<label for="{state}">{state} {count}</label>\n'


def card(header: list[str], line: list[str], job: Job) -> str:
    """A row: its pictures, its state, and each column's name and value, the table's first."""
    links = map(urllib.parse.quote, job.files)
    alt = f"row {job.number}"
    pictures = "".join(
        f'<a class="picture" href="{link}"><img src="{link}" loading="lazy" alt="{alt}"></a>'
        for link in links
    )
    named = list(zip(header, line, strict=True))
    named = named[len(OWN) :] + [(name, value) for name, value in named[2 : len(OWN)] if value]
    values = "".join(f'<dt>{html.escape(n)}</dt><dd dir="auto">{html.escape(v)}</dd>\n' for n, v in named)
    return (
        f'<figure class="{line[1]}">{pictures or NO_PICTURE}<figcaption>\n<h2>row {line[0]}: {line[1]}</h2>\n'
        f"<dl>\n{values}</dl>\n</figcaption></figure>\n"
    )


def write_whole(path: Path, data: bytes) -> None:
    """Write the file whole or not at all: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


if __name__ == "__main__":
    main()
