"""The directions of imports, read from the source: nodes -> adapters -> core -> libraries."""

import ast
import sys
from pathlib import Path

import tiny_model

ROOT = tiny_model.ROOT
CORE = sorted((ROOT / "ovis_core").rglob("*.py"))
ADAPTERS = sorted((ROOT / "nodes" / "adapters").rglob("*.py"))
NODES = sorted((ROOT / "nodes").glob("*.py"))
LIBRARIES = {"torch", "transformers", "safetensors", "einops", "numpy", "PIL", "tqdm"}
OPTIONAL = {  # and the files that may ask for them
    "ovis_core/evaluation/ocr.py": {"rapidocr", "onnxruntime"},
    "nodes/adapters/network/attention.py": {"sageattention"},
    "nodes/editor.py": {"aiohttp"},  # what ComfyUI's server is made of
}
COMFYUI = {
    *("comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "nodes", "server"),
    "node_helpers",
}


def imports(path: Path) -> set[str]:
    """Absolute names of everything a module imports: ours as `/nodes/loaders`, others as `torch`."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            found.add("/" + "/".join((*base, *(node.module or "").split("."))).strip("/"))
    return {name for name in found if name not in sys.stdlib_module_names}


# What the rooms of the adapters may use besides themselves.
ROOMS = {
    "network": set(),
    "lora": {"network"},
    "sampling": {"network"},
    "weights": {"network", "lora", "sampling"},
    "loading": {"network", "lora", "sampling", "weights"},
    "words": {"sampling/checks"},
}


def is_below(name: str, folder: str) -> bool:
    return name == folder or name.startswith(folder + "/")


def violations(paths: list[Path], own: tuple[str, ...], libraries: set[str]) -> list[str]:
    """The imports that are neither below `own` nor libraries that the file may ask for."""
    found = []
    for path in paths:
        allowed = libraries | OPTIONAL.get(path.relative_to(ROOT).as_posix(), set())
        for name in imports(path):
            if name not in allowed and not any(is_below(name, folder) for folder in own):
                found.append(f"{path.relative_to(ROOT)} imports {name}")
    return found


def test_core_knows_nothing_of_comfyui():
    assert not violations(CORE, ("/ovis_core",), LIBRARIES)


def test_networks_know_nothing_of_files():
    """What files look like is the business of files/parts."""
    networks = [path for path in CORE if path.parent == ROOT / "ovis_core"]
    knowing = {
        path.stem for path in networks if any(is_below(name, "/ovis_core/files") for name in imports(path))
    }
    assert knowing == {"__init__", "__main__", "pipeline"}


def test_adapters_know_core_and_comfyui():
    libraries = LIBRARIES | COMFYUI - {"nodes", "server", "comfy_api"}
    assert not violations(ADAPTERS, ("/ovis_core", "/nodes/adapters"), libraries)


def test_rooms_use_those_before_them():
    found = []
    for path in ADAPTERS:
        room = path.relative_to(ROOT / "nodes" / "adapters").parts[0]
        names = {"compat", room} | ROOMS[room] if room in ROOMS else set()
        allowed = [f"/nodes/adapters/{name}" for name in names]
        for name in imports(path):
            if is_below(name, "/nodes/adapters") and not any(is_below(name, folder) for folder in allowed):
                found.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not found


def test_nodes_know_adapters_alone():
    index, *groups = NODES
    assert index.stem == "__init__"
    assert not violations([index], ("/nodes",), set())
    assert not violations(groups, ("/nodes/adapters",), {"comfy_api", "server", "nodes"})


def test_the_walk_sees_imports():
    loader = ROOT / "nodes" / "adapters" / "loading" / "model.py"
    assert "/ovis_core/files/checkpoint" in imports(loader)
    assert "/nodes/adapters/loading/model" in imports(ROOT / "nodes" / "loaders.py")
    assert "torch" in imports(ROOT / "ovis_core" / "layers.py")
