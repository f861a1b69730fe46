"""Compiles the blocks of a MODEL: one graph for all double blocks and one for all single blocks.

Torch compiles the core's textbook block, with layers and attention as opaque operators. At run time these
call the layers and attention of the running block as ComfyUI left them. So casting, offloading, dynamic VRAM,
LoRAs, bypass mode and quantised layers stay ComfyUI's, the compiled graph holds no weights, and patches
of attention see what they see without compilation. Torch fuses everything between: layer norms,
modulation, gates, activations, residual sums. (ComfyUI's `set_torch_compile_wrapper` traces ComfyUI's layers
instead, so that its node needs a clone without dynamic VRAM.)

Sizes are symbols in the compiled graph, so that one graph of each kind is enough (torch before 2.8 makes
another one for a batch of 1).
"""

import importlib.util
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import lru_cache
from operator import attrgetter
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch.fx.experimental import _config as shapes

from ....ovis_core.blocks import DoubleStreamBlock, SingleStreamBlock
from ....ovis_core.transformer import TransformerConfig
from .attention import PatchedAttention, is_watched
from .transformer import BLOCK_RUNNER, network_of

# Equal sizes, such as 3072 tokens and 3072 channels, must stay two symbols, and 1 a symbol like any other.
SIZES = {"use_duck_shape": False, "backed_size_oblivious": True}
# Compiled graphs of a kind of block in a process: every model size and every dtype needs its own.
LIMITS = {"recompile_limit": 64}
TEXTBOOKS = {"double": DoubleStreamBlock, "single": SingleStreamBlock}
MODULATION = ("mod.lin", "modulation.lin")  # ends of the names of layers that the table stands for


class RunningBlock(NamedTuple):
    """The block that runs now in this thread, which the opaque operators call."""

    layers: Sequence[Callable[[Tensor], Tensor]]
    attention: PatchedAttention


_running: ContextVar[RunningBlock] = ContextVar("ovis_image_running_block")


@torch.library.custom_op("ovis_image::layer", mutates_args=())
def _layer(x: Tensor, index: int, size: int) -> Tensor:
    """Calls the running block's layer of that index: (..., any) -> (..., size)."""
    return _running.get().layers[index](x).contiguous()


@_layer.register_fake
def _(x: Tensor, index: int, size: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], size))


@torch.library.custom_op("ovis_image::attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Calls the running block's attention: q, k, v (B, H, L, D/H) -> (B, L, D)."""
    attention = _running.get().attention
    if is_watched(attention.options):  # the compiled graph reuses the memory of q, k and v
        q, k, v = q.clone(), k.clone(), v.clone()
    return attention(q, k, v, attention.pe).contiguous()


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, length, head_dim = q.shape
    return q.new_empty((batch, length, heads * head_dim))


def opaque_attention(q: Tensor, k: Tensor, v: Tensor, pe: None) -> Tensor:
    """Stands for attention in a block to be compiled; the rotary table is the running block's."""
    return torch.ops.ovis_image.attention(q, k, v)


class OpaqueLayer(nn.Module):
    """A layer without weights that calls the running block's layer."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.index = 0

    def forward(self, x: Tensor) -> Tensor:
        """Calls the running block's layer: (..., any) -> (..., size)."""
        return torch.ops.ovis_image.layer(x, self.index, self.size)


class OpaqueOps:
    """The `ops` seam for a block to be compiled."""

    @staticmethod
    def Linear(in_features: int, out_features: int, **_) -> OpaqueLayer:
        """Makes an opaque linear layer."""
        return OpaqueLayer(out_features)

    @staticmethod
    def RMSNorm(size: int, **_) -> OpaqueLayer:
        """Makes an opaque norm."""
        return OpaqueLayer(size)


class CompiledBlock:
    """One kind of block, compiled; runs any block of that kind."""

    def __init__(self, kind: type[nn.Module], config: TransformerConfig, backend: str):
        block = kind(config.hidden_size, config.num_heads, config.mlp_size, OpaqueOps)
        layers = {name: layer for name, layer in block.named_modules() if isinstance(layer, OpaqueLayer)}
        for index, layer in enumerate(layers.values()):
            layer.index = index
        self._layers_of = attrgetter(*layers)
        self._modulation = [layer.index for name, layer in layers.items() if name.endswith(MODULATION)]
        self._compiled = torch.compile(block, backend=backend, fullgraph=True, dynamic=True)

    def __call__(self, block: nn.Module, *inputs: Any, modulation: Tensor | None):
        *tensors, _, attention = inputs
        layers = [*self._layers_of(block)]
        if modulation is not None:  # rows of the table replace the layers' outputs
            parts = modulation.chunk(len(self._modulation), dim=-1)
            for index, part in zip(self._modulation, parts, strict=True):
                layers[index] = lambda vec, part=part: part.clone()  # compiled code uses its memory again
        token = _running.set(RunningBlock(layers, attention))
        try:
            with _known(shapes, SIZES), _known(dynamo, LIMITS):
                return self._compiled(*tensors, None, opaque_attention)
        finally:
            _running.reset(token)


def _known(config: ModuleType, settings: dict) -> AbstractContextManager:
    """Sets torch's options for a while, as far as this version of torch has them."""
    return config.patch({name: value for name, value in settings.items() if hasattr(config, name)})


@lru_cache(maxsize=8)
def compiled_block(kind: type[nn.Module], config: TransformerConfig, backend: str) -> CompiledBlock:
    """Makes the compiled block that all MODELs of a size share, since it holds no weights."""
    return CompiledBlock(kind, config, backend)


class BlockRunner:
    """A value of the `run` seam: the blocks of a network compiled; they never work in parts."""

    def __init__(self, config: TransformerConfig, backend: str):
        self.config = config
        self.backend = backend

    def __call__(
        self,
        kind: str,
        index: int,
        block: nn.Module,
        *inputs: Any,
        modulation: Tensor | None = None,
        num_parts: int = 1,
    ) -> Any:
        compiled = compiled_block(TEXTBOOKS[kind], self.config, self.backend)
        return compiled(block, *inputs, modulation=modulation)


def compiled_model(model, backend: str = "inductor"):
    """Clones the MODEL with compiled blocks; torch compiles in the first step.

    Raises ValueError when the model is not Ovis-Image, or when this computer cannot compile.
    """
    network = network_of(model, "this node compiles the blocks", "use ComfyUI's TorchCompileModel")
    if backend == "inductor" and (missing := missing_compiler(model.load_device.type)):
        raise ValueError(f"this computer cannot compile: {missing}, or remove this node")
    clone = model.clone()
    clone.model_options["transformer_options"][BLOCK_RUNNER] = BlockRunner(network.config, backend)
    return clone


def missing_compiler(device: str) -> str | None:
    """Tells what torch.compile lacks for a type of device, and what to do; or None."""
    if device == "cpu":
        if not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
            return (
                "torch.compile needs a C++ compiler for the CPU and none is in the PATH; install g++ or "
                "clang, on Windows MSVC"
            )
    elif device in ("cuda", "xpu"):
        if importlib.util.find_spec("triton") is None:
            return (
                "torch.compile needs Triton for this GPU and it is not installed; pip install triton, on "
                "Windows triton-windows"
            )
        if sys.platform != "win32" and not any(map(shutil.which, ("cc", "gcc", "clang"))):
            return "Triton needs a C compiler and none is in the PATH; install gcc or clang"
    return None
