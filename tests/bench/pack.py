"""Imports ComfyUI's `comfy` and the pack's adapters without a ComfyUI server.

Needs only `comfy/` and node_helpers.py of the folder COMFYUI_PATH.
"""

import os
import sys
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parents[2]

sys.path.append(os.environ["COMFYUI_PATH"])
sys.path.append(str(ROOT / "tests"))
from comfy.cli_args import args  # noqa: E402

args.cpu = not torch.cuda.is_available()
args.use_pytorch_cross_attention = True

# The pack without its entry points, which need all of ComfyUI.
for _name, _folder in (("ovis_image_pack", ROOT), ("ovis_image_pack.nodes", ROOT / "nodes")):
    _package = ModuleType(_name)
    _package.__path__ = [str(_folder)]
    sys.modules[_name] = _package

import comfy.model_detection  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.utils  # noqa: E402
from ovis_image_pack.nodes.adapters.loading import diffusion_model  # noqa: E402
from ovis_image_pack.nodes.adapters.network import (  # noqa: E402
    compilation,
    kernels,
    modulation,
)
from ovis_image_pack.nodes.adapters.network import transformer as comfy_transformer  # noqa: E402
from ovis_image_pack.nodes.adapters.sampling import checks, guidance, residual_cache  # noqa: E402
from ovis_image_pack.nodes.adapters.weights import formats, low_precision, patchers  # noqa: E402
from ovis_image_pack.ovis_core import latents, layers, lean_blocks, sampling, transformer  # noqa: E402
from ovis_image_pack.ovis_core import residual_cache as core_cache  # noqa: E402
from ovis_image_pack.ovis_core.files import layouts, parts  # noqa: E402

__all__ = [
    "checks",
    "comfy",
    "comfy_transformer",
    "compilation",
    "core_cache",
    "diffusion_model",
    "formats",
    "kernels",
    "guidance",
    "latents",
    "layers",
    "lean_blocks",
    "layouts",
    "low_precision",
    "modulation",
    "parts",
    "patchers",
    "residual_cache",
    "sampling",
    "transformer",
]
