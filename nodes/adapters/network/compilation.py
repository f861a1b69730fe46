"""The blocks of a MODEL compiled by torch: one code for all double blocks and one for all single blocks.

What is compiled is a core block whose layers, norms of q and k, and attention are opaque operators: at run
time they call those of the very block that is running, as ComfyUI left them. So casting, offloading, dynamic
VRAM, LoRAs, bypass mode and quantised layers stay ComfyUI's, weights are no part of the compiled code, and
attention patches see what they see without compilation. What torch fuses is everything between: layer norms,
modulation, gates, activations, residual sums. (ComfyUI's `set_torch_compile_wrapper` traces ComfyUI's layers
instead, so that its node needs a clone without dynamic VRAM.)

Sizes are symbols in the compiled code, so that there is one code of each kind (of torch before 2.8, another
for a batch of 1).
"""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import lru_cache
from operator import attrgetter
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch.fx.experimental import _config as shapes

from ....ovis_core.layers import Attention, QKNorm
from ....ovis_core.transformer import TransformerConfig
from .transformer import BLOCK_RUNNER, ComfyTransformer

# Sizes that happen to be equal, such as 3072 tokens and 3072 channels, stay two sizes, and 1 is one like any.
SIZES = {"use_duck_shape": False, "backed_size_oblivious": True}
# Codes of a kind of block in a process: every size of model and every dtype has its own.
LIMITS = {"recompile_limit": 64}


class RunningBlock(NamedTuple):
    """What the opaque operators call: the block that runs now in this thread."""

    layers: tuple[nn.Module, ...]
    norms: tuple[QKNorm, ...]
    attention: Attention
    pe: Tensor

    @property
    def rotates(self) -> bool:
        """Whether the norms do, and not the attention."""
        return self.norms[0].rotates(self.attention)


_running: ContextVar[RunningBlock] = ContextVar("ovis_image_running_block")


@torch.library.custom_op("ovis_image::layer", mutates_args=())
def _layer(x: Tensor, index: int, size: int) -> Tensor:
    """(..., any) -> (..., size) by the running block's layer of that index."""
    return _running.get().layers[index](x).contiguous()


@_layer.register_fake
def _(x: Tensor, index: int, size: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], size))


@torch.library.custom_op("ovis_image::qk_norm", mutates_args=())
def _qk_norm(q: Tensor, k: Tensor, pe: Tensor, index: int) -> tuple[Tensor, Tensor]:
    """(B, H, L, D/H) twice and their rotary table -> the same by the running block's norm of that index."""
    running = _running.get()
    q, k = running.norms[index](q, k, pe if running.rotates else None)
    return q.contiguous(), k.contiguous()


@_qk_norm.register_fake
def _(q: Tensor, k: Tensor, pe: Tensor, index: int) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


@torch.library.custom_op("ovis_image::attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, H, L, D/H) three times -> (B, L, D) by the running block's attention."""
    running = _running.get()
    if running.attention.is_watched:  # compiled code uses the memory of q, k and v again
        q, k, v = q.clone(), k.clone(), v.clone()
    return running.attention(q, k, v, None if running.rotates else running.pe).contiguous()


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, length, head_dim = q.shape
    return q.new_empty((batch, length, heads * head_dim))


class OpaqueAttention:
    """The attention seam for a block to be compiled: who rotates q and k is seen when it runs."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pe: None) -> Tensor:
        return torch.ops.ovis_image.attention(q, k, v)


class OpaqueQKNorm(nn.Module):
    """In the place of a block's `QKNorm`: asks the running block's."""

    def __init__(self, index: int):
        super().__init__()
        self.index = index

    def rotates(self, attention: OpaqueAttention) -> bool:
        return True

    def forward(self, q: Tensor, k: Tensor, pe: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.ovis_image.qk_norm(q, k, pe, self.index)


class OpaqueLayer(nn.Module):
    """A layer without weights that asks the running block's."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.index = 0

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.ovis_image.layer(x, self.index, self.size)


class OpaqueOps:
    """The `ops` seam for a block to be compiled."""

    @staticmethod
    def Linear(in_features: int, out_features: int, **_) -> OpaqueLayer:
        return OpaqueLayer(out_features)

    @staticmethod
    def RMSNorm(size: int, **_) -> OpaqueLayer:
        return OpaqueLayer(size)


class CompiledBlock:
    """One kind of block, compiled; runs any block of that kind."""

    def __init__(self, kind: type[nn.Module], config: TransformerConfig, backend: str):
        block = kind(config.hidden_size, config.num_heads, config.mlp_size, OpaqueOps)
        norms = [name for name, module in block.named_modules() if isinstance(module, QKNorm)]
        for index, name in enumerate(norms):
            parent, _, last = name.rpartition(".")
            setattr(block.get_submodule(parent), last, OpaqueQKNorm(index))
        layers = {name: layer for name, layer in block.named_modules() if isinstance(layer, OpaqueLayer)}
        for index, layer in enumerate(layers.values()):
            layer.index = index
        self._layers_of, self._norms_of = _modules(*layers), _modules(*norms)
        self._compiled = torch.compile(block, backend=backend, fullgraph=True, dynamic=True)

    def __call__(self, block: nn.Module, *tensors: Tensor, attention: Attention):
        running = RunningBlock(self._layers_of(block), self._norms_of(block), attention, tensors[-1])
        token = _running.set(running)
        try:
            with _known(shapes, SIZES), _known(dynamo, LIMITS):
                return self._compiled(*tensors, OpaqueAttention())
        finally:
            _running.reset(token)


def _modules(*names: str) -> Callable[[nn.Module], tuple[nn.Module, ...]]:
    get = attrgetter(*names)
    return get if len(names) > 1 else lambda block: (get(block),)


def _known(config: ModuleType, settings: dict) -> AbstractContextManager:
    """torch's settings for a while, of which older versions do not have all."""
    return config.patch({name: value for name, value in settings.items() if hasattr(config, name)})


@lru_cache(maxsize=8)
def compiled_block(kind: type[nn.Module], config: TransformerConfig, backend: str) -> CompiledBlock:
    """The same for all MODELs of a size: it holds no weights."""
    return CompiledBlock(kind, config, backend)


class BlockRunner:
    """Runs the blocks of a network compiled, in the place of `ComfyTransformer`'s plain call."""

    def __init__(self, config: TransformerConfig, backend: str):
        self.config = config
        self.backend = backend

    def __call__(self, block: nn.Module, *tensors: Tensor, attention: Attention):
        return compiled_block(type(block), self.config, self.backend)(block, *tensors, attention=attention)


def compiled_model(model, backend: str = "inductor"):
    """A clone of the MODEL whose blocks run compiled; compilation itself comes with the first step.

    Raises ValueError when the model is not Ovis-Image, or when this computer cannot compile.
    """
    network = model.get_model_object("diffusion_model")
    if not isinstance(network, ComfyTransformer):
        raise ValueError(
            "this node compiles the blocks of our loader's MODEL, and this is another model; connect the "
            "Ovis-Image Loader, or use ComfyUI's TorchCompileModel"
        )
    if backend == "inductor" and (missing := missing_compiler(model.load_device.type)):
        raise ValueError(f"this computer cannot compile: {missing}, or remove this node")
    clone = model.clone()
    clone.model_options["transformer_options"][BLOCK_RUNNER] = BlockRunner(network.config, backend)
    return clone


def missing_compiler(device: str) -> str | None:
    """What torch.compile lacks for a type of device, and what to do, or None."""
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
