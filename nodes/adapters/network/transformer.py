"""Adapts the core's transformer to ComfyUI's diffusion models: their arguments and their patches."""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import comfy.patcher_extension
import torch
from torch import Tensor, nn

from ....ovis_core.blocks import Run, call_block
from ....ovis_core.latents import num_image_tokens
from ....ovis_core.lean_blocks import fewest_parts, lean_blocks
from ....ovis_core.transformer import OvisImageTransformer, TransformerConfig
from ..compat import PREFETCHING, has
from .attention import ATTENTION, PatchedAttention, missing_kernel
from .kernels import TOOLS
from .modulation import SCHEDULE, ModulationTable

# What a run's transformer_options may hold: the residual cache, the runner of blocks (`compilation`), and
# the bytes that were free for activations when the run began (`sampling.memory`).
RESIDUAL_CACHE = "ovis_residual_cache"
BLOCK_RUNNER = "ovis_block_runner"
ROOM = "ovis_room"

NO_CONTROLNETS = "Ovis-Image has no ControlNets: remove the Apply ControlNet node from its conditioning"


class ComfyTransformer(OvisImageTransformer):
    """The transformer with the arguments that ComfyUI gives a diffusion model."""

    def __init__(self, config: TransformerConfig, operations, dtype=None, device=None):
        super().__init__(config, operations, lean_blocks(TOOLS), dtype=dtype, device=device)
        self.dtype = dtype
        self.modulation = ModulationTable(self)

    def forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, control=None, transformer_options=None, **kwargs
    ) -> Tensor:
        """Predicts: x (B, C, H, W), sigma (B,), context (B, L, context_dim) -> velocity (B, C, H, W)."""
        if control is not None:
            raise ValueError(NO_CONTROLNETS)
        if context.shape[-1] != self.config.context_dim:
            raise ValueError(
                f"the conditioning has {context.shape[-1]} numbers a token, this model takes "
                f"{self.config.context_dim}; encode the prompt with the CLIP of the Ovis-Image Loader"
            )
        options = transformer_options or {}
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options
        )
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        # Positions as in ComfyUI's FLUX (y, guidance and reference latents do not exist here), which
        # wrappers rely on.
        return executor.execute(x, timestep, context, None, None, None, control, options, **kwargs)

    def _forward(
        self,
        x,
        timestep,
        context,
        y=None,
        guidance=None,
        ref_latents=None,
        control=None,
        transformer_options=None,
        **_,
    ) -> Tensor:
        options = transformer_options or {}
        rows = self.modulation.rows(options.get(SCHEDULE), timestep, x.dtype)
        run: Run = BlockRun(self, options, rows, context.shape[1], self.num_parts(x, context, options))
        if RESIDUAL_CACHE in options:
            run = options[RESIDUAL_CACHE].forward(options["uuids"], run)
        return super().forward(x, timestep, context, run=run)

    def num_parts(self, x: Tensor, context: Tensor, options: dict) -> int:
        """Counts the parts that single blocks work in, so that a run keeps to the memory that was free."""
        if torch.compiler.is_compiling() or ROOM not in options:
            return 1
        num_tokens = x.shape[0] * (context.shape[1] + num_image_tokens(*x.shape[-2:]))
        return fewest_parts(num_tokens, self.config.hidden_size * x.element_size(), options[ROOM])


class BlockRun:
    """Calls a block as ComfyUI does (the `run` seam): a node's replacement, the compiled graph, or the block.

    Other nodes' patches of blocks and of attention see what they see on FLUX. `rows` come from the modulation
    table.
    """

    def __init__(
        self, network: ComfyTransformer, options: dict, rows: Tensor | None, num_text: int, num_parts: int
    ):
        self.options = options
        self.table, self.rows = network.modulation, rows
        self.num_text, self.num_parts = num_text, num_parts
        self.totals = {"double": len(network.double_blocks), "single": len(network.single_blocks)}
        # With a cache, the first block decides whether the others run.
        blocks = [*network.double_blocks, *network.single_blocks][RESIDUAL_CACHE in options :]
        self.prefetch = Prefetch(blocks, network.modulation.layers.values() if rows is not None else ())

    def __call__(self, kind: str, index: int, block: nn.Module, *inputs: Any, **_: Any) -> Any:
        self.prefetch.before(block, inputs[0].device, self.options)
        if kind == "last":
            return block(*inputs, modulation=self._modulation(block))
        options = {
            **self.options,
            "block_type": kind,
            "block_index": index,
            "total_blocks": self.totals[kind],
        }
        *tokens, vec, pe, _ = inputs
        args = {"img": tokens[0], "vec": vec, "pe": pe, "attn_mask": None, "transformer_options": options}
        if kind == "double":
            args["txt"] = tokens[1]
        else:
            options["img_slice"] = [self.num_text, tokens[0].shape[1]]
        call = partial(self._call, kind, index, block, vec)
        replacement = options.get("patches_replace", {}).get("dit", {}).get((f"{kind}_block", index))
        out = replacement(args, {"original_block": call}) if replacement else call(args)
        return (out["img"], out["txt"]) if kind == "double" else out["img"]

    def _call(self, kind: str, index: int, block: nn.Module, vec: Tensor, args: dict) -> dict:
        """Calls a block with what a replacement gives; the table holds for this forward's `vec` alone."""
        options, pe = args["transformer_options"], args["pe"]
        names = ("img", "txt") if kind == "double" else ("img",)
        num_text = args["txt"].shape[1] if kind == "double" else None
        # Patches take q and k before their rotation, which is then the attention's.
        is_patched = bool(options.get("patches", {}).get("attn1_patch"))
        attention = PatchedAttention(options, args.get("attn_mask"), num_text, pe)
        inputs = *(args[name] for name in names), args["vec"], None if is_patched else pe, attention
        lean: dict = {"modulation": self._modulation(block) if args["vec"] is vec else None}
        if kind == "single":
            lean["num_parts"] = self.num_parts
        run: Run = options.get(BLOCK_RUNNER, call_block)
        out = run(kind, index, block, *inputs, **lean)
        return dict(zip(names, out if kind == "double" else (out,), strict=True))

    def _modulation(self, block: nn.Module) -> Tensor | None:
        return None if self.rows is None else self.table.part(self.rows, block)


class Prefetch:
    """Prefetches with ComfyUI's dynamic VRAM: a block's weights come together, on their own stream.

    Does nothing without dynamic VRAM: ComfyUI's layers then take turns on streams of their own.
    """

    def __init__(self, blocks: Sequence[nn.Module], without: Collection[nn.Module]):
        """Takes the blocks in their order; `without` lists the layers that will not run."""
        self.blocks = [*blocks]
        self.without = {*without}
        self.pop: Callable[[], None] | None = None  # once the first of them has come

    def before(self, block: nn.Module, device: torch.device, options: dict) -> None:
        """Asks for the weights of the block after this one; after the last block, frees what is left."""
        if torch.compiler.is_compiling():
            return
        if block in self.blocks[:1] and has(PREFETCHING):
            from comfy import model_prefetch

            weights = [_Weights(known, self.without) for known in self.blocks]
            queue = model_prefetch.make_prefetch_queue(weights, device, options)
            self.pop = partial(model_prefetch.prefetch_queue_pop, queue, device, None)
        if self.pop:
            self.pop()


class _Weights:
    """A block as ComfyUI's queue sees it."""

    def __init__(self, block: nn.Module, without: Collection[nn.Module]):
        self.block, self.without = block, without

    def modules(self) -> Iterator[nn.Module]:
        """Lists the block's modules that will run."""
        return (module for module in self.block.modules() if module not in self.without)


def network_of(model, does: str, instead: str = "") -> ComfyTransformer:
    """Gets the network of a MODEL of ours. Raises ValueError for another model.

    The message begins with what the node `does`, and ends with what to use `instead` on other models
    where there is something.
    """
    network = model.get_model_object("diffusion_model")
    if not isinstance(network, ComfyTransformer):
        raise ValueError(
            f"{does} of our loader's MODEL, and this is another model; connect the Ovis-Image Loader"
            + (f", or {instead}" if instead else "")
        )
    return network


def model_with_attention(model, kernel: str):
    """Clones the MODEL with attention computed by one of `attention.KERNELS`.

    Raises ValueError when the model is not Ovis-Image, or when this computer does not have the kernel.
    """
    network = network_of(
        model,
        "this node chooses the attention kernel",
        "use ComfyUI's --use-sage-attention or --use-flash-attention",
    )
    head_dim = network.config.hidden_size // network.config.num_heads
    missing = missing_kernel(kernel, model.load_device, model.model.get_dtype_inference(), head_dim)
    if missing:
        raise ValueError(missing)
    clone = model.clone()
    clone.model_options["transformer_options"][ATTENTION] = kernel
    return clone
