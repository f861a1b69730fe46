"""Generate one image on a running ComfyUI server from a prompt. Needs `pip install websocket-client`.

python text_to_image.py --server 127.0.0.1:8188 --prompt 'A poster that says "OPEN"' --out poster.png
"""

from __future__ import annotations

import argparse
import json
import os
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", default="127.0.0.1:8188", metavar="HOST:PORT")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--out", type=Path, default=Path("ovis_image.png"))
    parser.add_argument("--workflow", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--seed", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--aspect-ratio")
    parser.add_argument("--width", type=int, help="pixels")
    parser.add_argument("--height", type=int, help="pixels")
    parser.add_argument("--model", metavar="NAME", help="file in models/diffusion_models")
    parser.add_argument("--text-encoder", metavar="NAME", help="file or folder in models/text_encoders")
    parser.add_argument("--vae", metavar="NAME", help="file in models/vae")
    args = parser.parse_args()
    if not args.out.absolute().parent.is_dir():
        sys.exit(f"The folder for --out does not exist: {args.out.absolute().parent}")

    workflow = json.loads(args.workflow.read_text(encoding="utf-8"))
    fill_in(workflow, args)
    try:
        image = generate(args.server, workflow)
    except (OSError, websocket.WebSocketException) as error:
        sys.exit(f"No answer from ComfyUI at {args.server}: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped; the server goes on with what it was given.")
    write_whole(args.out, image)
    print(args.out)


def fill_in(workflow: dict[str, Any], args: argparse.Namespace) -> None:
    """Set the given values on the workflow's nodes, found by class; values not given stay as they are."""
    sampler = find_node(workflow, "OvisImageSampler")
    positive = sampler["inputs"]["positive"][0]  # a link is [node id, output index]
    names = {"model_name": args.model, "text_encoder_name": args.text_encoder, "vae_name": args.vae}
    size = {"aspect_ratio": args.aspect_ratio, "width": args.width, "height": args.height}
    if args.width or args.height:
        size["aspect_ratio"] = "custom"
    values = [
        (workflow[positive], {"text": args.prompt}),
        (sampler, {"seed": args.seed, "steps": args.steps}),
        (find_node(workflow, "OvisImageEmptyLatent"), size),
        (find_node(workflow, "OvisImageLoader"), names),
    ]
    for node, inputs in values:
        node["inputs"].update({name: value for name, value in inputs.items() if value is not None})


def find_node(workflow: dict[str, Any], class_type: str) -> dict[str, Any]:
    for node in workflow.values():
        if node["class_type"] == class_type:
            return node
    sys.exit(f"The workflow has no {class_type} node.")


def generate(server: str, workflow: dict[str, Any]) -> bytes:
    """Run the workflow on the server and return the bytes of its first image."""
    client_id = uuid.uuid4().hex
    # The socket comes first: messages sent before it is open are lost.
    socket = websocket.create_connection(f"ws://{server}/ws?clientId={client_id}", http_no_proxy=["*"])
    try:
        body = json.dumps({"prompt": workflow, "client_id": client_id}).encode()
        prompt_id = json.loads(fetch(server, "/prompt", body))["prompt_id"]
        follow(socket, prompt_id, workflow)
    finally:
        socket.close()

    outputs = json.loads(fetch(server, f"/history/{prompt_id}"))[prompt_id]["outputs"]
    images = [image for output in outputs.values() for image in output.get("images", [])]
    if not images:
        sys.exit("The workflow ran but made no image: it needs a SaveImage node.")
    return fetch(server, f"/view?{urllib.parse.urlencode(images[0])}")


def fetch(server: str, path: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(f"http://{server}{path}", body, {"Content-Type": "application/json"})
    try:
        with DIRECT.open(request, timeout=60) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        sys.exit(f"ComfyUI refuses the request (HTTP {error.code}): {reasons(error.read())}")


def reasons(answer: bytes) -> str:
    """What ComfyUI finds wrong with a workflow, then with each of its nodes."""
    try:
        answer = json.loads(answer)
    except ValueError:
        return answer.decode(errors="replace")
    lines = [f"{answer['error']['message']} {answer['error']['details']}".strip()]
    for node_id, node in answer["node_errors"].items():
        problems = "; ".join(f"{error['message']}: {error['details']}" for error in node["errors"])
        lines.append(f"  {node['class_type']} (node {node_id}): {problems}")
    return "\n".join(lines)


def follow(socket: websocket.WebSocket, prompt_id: str, workflow: dict[str, Any]) -> None:
    """Show the prompt's progress until it has ended; exit with ComfyUI's message if it failed."""
    step, since = 0, time.monotonic()
    while frame := socket.recv():
        message = json.loads(frame) if isinstance(frame, str) else {"data": {}}  # bytes are preview images
        kind, data = message.get("type"), message["data"]
        if data.get("prompt_id") != prompt_id:
            continue

        if kind == "executing":
            if data["node"] is None:
                return
            step, since = 0, time.monotonic()
        elif kind == "progress" and data["value"] > step:  # quick steps are reported several at a time
            seconds = (time.monotonic() - since) / (data["value"] - step)
            step, since = data["value"], time.monotonic()
            name = workflow.get(data["node"], {}).get("class_type", data["node"])
            line = f"{name}: step {step} of {data['max']}, {seconds:.2f} s per step"
            print(line, end="  \r" if sys.stdout.isatty() else "\n", flush=True)
        elif kind == "execution_error":
            sys.exit(
                f"{data['node_type']} (node {data['node_id']}) failed: {data['exception_message'].strip()}"
            )
        elif kind == "execution_interrupted":
            sys.exit("The run was interrupted on the server.")
    raise websocket.WebSocketConnectionClosedException("it closed the connection before the run had ended")


def write_whole(path: Path, data: bytes) -> None:
    """Write the file whole or not at all: a reader never sees half an image."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
