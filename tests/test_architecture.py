"""The directions of imports, read from the source: nodes -> adapters -> core -> libraries."""

import ast
import sys
from pathlib import Path

import pytest
import tiny_model

ROOT = tiny_model.ROOT
CORE = sorted((ROOT / "ovis_core").rglob("*.py"))
ADAPTERS = sorted((ROOT / "nodes" / "adapters").rglob("*.py"))
NODES = sorted((ROOT / "nodes").glob("*.py"))
LIBRARIES = {"torch", "transformers", "safetensors", "einops", "numpy", "PIL", "tqdm"}
OPTIONAL = {  # and the files that may ask for them
    "ovis_core/evaluation/ocr.py": {"rapidocr", "onnxruntime"},
    "nodes/adapters/network/attention.py": {"sageattention"},
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


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_core_knows_nothing_of_comfyui(path):
    allowed = LIBRARIES | OPTIONAL.get(path.relative_to(ROOT).as_posix(), set())
    assert all(is_below(name, "/ovis_core") or name in allowed for name in imports(path)), imports(path)


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_adapters_know_core_and_comfyui(path):
    allowed = LIBRARIES | COMFYUI - {"nodes", "server", "comfy_api"}
    allowed |= OPTIONAL.get(path.relative_to(ROOT).as_posix(), set())
    for name in imports(path):
        assert is_below(name, "/ovis_core") or is_below(name, "/nodes/adapters") or name in allowed, name


def test_rooms_use_those_before_them():
    violations = []
    for path in ADAPTERS:
        room = path.relative_to(ROOT / "nodes" / "adapters").parts[0]
        names = {"compat", room} | ROOMS[room] if room in ROOMS else set()
        allowed = [f"/nodes/adapters/{name}" for name in names]
        for name in imports(path):
            if is_below(name, "/nodes/adapters") and not any(is_below(name, folder) for folder in allowed):
                violations.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not violations


@pytest.mark.parametrize("path", NODES, ids=lambda path: path.stem)
def test_nodes_know_adapters_alone(path):
    allowed = {"comfy_api", "server", "nodes"} if path.stem != "__init__" else set()
    for name in imports(path):
        own = is_below(name, "/nodes/adapters") or (path.stem == "__init__" and is_below(name, "/nodes"))
        assert own or name in allowed, name


def test_the_walk_sees_imports():
    loader = ROOT / "nodes" / "adapters" / "loading" / "model.py"
    assert "/ovis_core/files/checkpoint" in imports(loader)
    assert "/nodes/adapters/loading/model" in imports(ROOT / "nodes" / "loaders.py")
    assert "torch" in imports(ROOT / "ovis_core" / "layers.py")
