"""The real ComfyUI: in this process for its classes, and as a server for graphs."""

import asyncio
import importlib
import io
import json
import os
import sys
from pathlib import Path

import pytest
import tiny_model
from PIL import Image
from safetensors.torch import load_file

COMFYUI = Path(os.environ["COMFYUI_PATH"])
WORKFLOW = tiny_model.ROOT / "workflows" / "api" / "text_to_image.json"


@pytest.fixture(scope="session")
def comfyui():
    """ComfyUI's modules importable in this process, on the CPU whatever the machine has."""
    sys.path.append(str(COMFYUI))  # last, so that nothing of it hides a library
    from comfy.cli_args import args

    args.cpu = True
    import nodes

    return nodes


@pytest.fixture(scope="session")
def pack(comfyui):
    """Imports a module of the pack as ComfyUI's loader loads it: `pack("nodes.adapters.words.verify")`."""
    assert asyncio.run(comfyui.load_custom_node(str(tiny_model.ROOT))), "ComfyUI cannot load the pack"
    name = str(tiny_model.ROOT).replace(".", "_x_")
    assert name in sys.modules
    return lambda module: importlib.import_module(f"{name}.{module}")


@pytest.fixture(autouse=True)
def no_function_on_all_weights():
    """Fails a test that leaves a function on the weights of all layers, where it changes the next tests.

    Layers that ComfyUI has not loaded yet share the two lists of their class. An entry there runs on every
    weight of every such model in the process, and turns quantised multiplication off.
    """
    yield
    if "comfy.ops" in sys.modules:
        shared = sys.modules["comfy.ops"].CastWeightBiasOp
        left = [*shared.weight_function, *shared.bias_function]
        shared.weight_function.clear()
        shared.bias_function.clear()
        assert not left, f"{left} left in the lists of CastWeightBiasOp; give the one layer a list of its own"


@pytest.fixture(scope="module")  # each file its own, since loading and patching leave their marks on a model
def model(pack, tmp_path_factory):
    """The small model as our MODEL, in this process."""
    folder = tmp_path_factory.mktemp("models")
    path = folder / "diffusion_models" / tiny_model.write("comfyui", folder)["model_name"]
    return pack("nodes.adapters.loading.diffusion_model").load_diffusion_model(path)


class Server:
    """A running ComfyUI with the small model in all layouts, and short ways to run graphs on it."""

    def __init__(self, process, base: Path, names: dict[str, dict[str, str]]):
        self.process, self.base, self.names = process, base, names
        self.get, self.post = process.get, process.post

    def graph(self, layout: str = "authors", **sampler) -> dict:
        """The shipped API workflow on the small model, 128x192 pixels in 2 steps unless told otherwise."""
        workflow = json.loads(WORKFLOW.read_text())
        workflow["1"]["inputs"].update(self.names[layout])
        workflow["4"]["inputs"].update(aspect_ratio="custom", width=128, height=192)
        workflow["5"]["inputs"].update({"steps": 2, **sampler})
        return workflow

    def run(self, workflow: dict) -> dict:
        """Queues a graph and waits -> its outputs. Fails when the graph does."""
        entry = self.process.wait(self.process.queue(workflow))
        assert entry["status"]["status_str"] == "success", self.error(entry)
        return entry["outputs"]

    def fail(self, workflow: dict) -> dict:
        """Queues a graph that must fail -> ComfyUI's error: node_type, exception_type, exception_message."""
        entry = self.process.wait(self.process.queue(workflow))
        assert entry["status"]["status_str"] == "error", "the graph ran"
        return self.error(entry)

    @staticmethod
    def error(entry: dict) -> dict:
        return next(message for kind, message in entry["status"]["messages"] if kind == "execution_error")

    def image(self, outputs: dict, node: str = "7") -> Image.Image:
        return Image.open(io.BytesIO(self.process.view(outputs[node]["images"][0]))).convert("RGB")

    def latent(self, workflow: dict, source: str):
        """Runs the graph with a SaveLatent behind node `source` instead of its pictures -> the latent."""
        used = {key: value for key, value in workflow.items() if value["class_type"] != "SaveImage"}
        used["save"] = {
            "class_type": "SaveLatent",
            "inputs": {"samples": [source, 0], "filename_prefix": "test"},
        }
        saved = self.run(used)["save"]["latents"][0]
        return load_file(self.base / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"]


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    names = {layout: tiny_model.write(layout, base / "models") for layout in tiny_model.LAYOUTS}
    dev = tiny_model.import_by_path("dev", tiny_model.ROOT / "dev.py")
    with dev.ComfyServer(
        Path(sys.executable), COMFYUI, base, ["--disable-api-nodes"], base / "log.txt"
    ) as process:
        yield Server(process, base, names)
        assert process.alive(), process.log_tail()
