"""The core's transformer with the arguments that ComfyUI gives a diffusion model, and its patches."""

from collections.abc import Callable
from functools import partial
from operator import itemgetter

import comfy.patcher_extension
import torch
from comfy.ldm.flux.math import attention
from torch import Tensor, nn

from ....ovis_core.residual_cache import CachedForward
from ....ovis_core.transformer import OvisImageTransformer, TransformerConfig
from .attention import with_attention
from .casting import hold
from .kernels import join_operations
from .modulation import ModulationTable
from .prefetch import Prefetch
from .sampling_run import SAMPLING_RUN

# What a run's transformer_options may hold: the residual cache, and what blocks are run with (`compilation`).
RESIDUAL_CACHE = "ovis_residual_cache"
BLOCK_RUNNER = "ovis_block_runner"

NO_CONTROLNETS = "Ovis-Image has no ControlNets: remove the Apply ControlNet node from its conditioning"


class PatchedAttention:
    """The attention seam: ComfyUI's kernel, with the patches that nodes have put before and behind it."""

    def __init__(self, options: dict | None, mask: Tensor | None = None, num_text: int | None = None):
        self.options = options or {}
        self.mask = mask
        self.num_text = num_text  # of a double block, whose patches are told where the image begins

    @property
    def is_watched(self) -> bool:
        """Whether another node's code sees q, k and v, and may keep them."""
        watchers = "attn1_patch", "attn1_output_patch"
        return "optimized_attention_override" in self.options or any(
            self.options.get("patches", {}).get(name) for name in watchers
        )

    @property
    def takes_rotated(self) -> bool:
        """Other nodes expect q and k that are not rotated yet."""
        return not self.is_watched

    def inside(self, block_type: str, index: int, total: int) -> dict:
        """The options as a block's patches see them."""
        return {**self.options, "block_type": block_type, "block_index": index, "total_blocks": total}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, pe: Tensor | None) -> Tensor:
        """(B, H, L, D/H) three times, the rotary table unless they are rotated -> (B, L, D)."""
        patches = self.options.get("patches", {})
        told = dict(self.options)
        if self.num_text is not None:
            told["img_slice"] = [self.num_text, q.shape[2]]
        new = {"q": q, "k": k, "v": v, "pe": pe, "attn_mask": self.mask}
        for patch in patches.get("attn1_patch", ()):
            new |= patch(
                new["q"], new["k"], new["v"], pe=new["pe"], attn_mask=new["attn_mask"], extra_options=told
            )
        options = with_attention(self.options)
        out = attention(
            new["q"], new["k"], new["v"], new["pe"], new["attn_mask"], transformer_options=options
        )
        for patch in patches.get("attn1_output_patch", ()):
            out = patch(out, told)
        return out


class ComfyTransformer(OvisImageTransformer):
    """The transformer with the arguments that ComfyUI gives a diffusion model."""

    def __init__(self, config: TransformerConfig, operations, dtype=None, device=None):
        super().__init__(config, operations, dtype=dtype, device=device)
        self.dtype = dtype
        self.modulation = ModulationTable(self)
        join_operations(self)
        for block in self.single_blocks:
            block.hold = hold

    def forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, control=None, transformer_options=None, **kwargs
    ) -> Tensor:
        """x (B, C, H, W), timestep is sigma (B,), context (B, L, context_dim) -> velocity (B, C, H, W)."""
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
        cache = options[RESIDUAL_CACHE].forward(options["uuids"]) if RESIDUAL_CACHE in options else None
        run = options.get(SAMPLING_RUN)
        if run and run.network not in (None, self):
            run = None  # of another network that a guider joins with this one, or runs on another device
        with self.modulation.rows_of(run, timestep, x.dtype):
            return super().forward(x, timestep, context, PatchedAttention(options), cache)

    def run_blocks(
        self,
        img: Tensor,
        txt: Tensor,
        vec: Tensor,
        pe: Tensor,
        attention: PatchedAttention,
        cache: CachedForward | None = None,
    ) -> Tensor:
        """The blocks, or what other nodes put in their place or around their attention, as on FLUX."""
        run = {"vec": vec, "pe": pe, "attn_mask": None}
        # With a cache, the first block tells whether the others are wanted at all.
        blocks = [*self.double_blocks, *self.single_blocks][bool(cache) :]
        weights = Prefetch(blocks, self.modulation.answered, img.device, attention.options)
        for i, block in enumerate(self.double_blocks):
            before = img if cache and i == 0 else None
            if before is None:
                weights.next()
            options = attention.inside("double", i, len(self.double_blocks))
            args = {"img": img, "txt": txt, **run, "transformer_options": options}
            img, txt = itemgetter("img", "txt")(_run_block(_run_double, block, args))
            del args  # and with it tokens that nobody needs
            if before is not None and (reused := cache.reuse(before, img)) is not None:
                return reused

        num_text = txt.shape[1]
        img = torch.cat((txt, img), dim=1)
        for i, block in enumerate(self.single_blocks):
            options = attention.inside("single", i, len(self.single_blocks))
            options["img_slice"] = [num_text, img.shape[1]]
            weights.next()
            img = _run_block(_run_single, block, {"img": img, **run, "transformer_options": options})["img"]
        weights.next()
        img = img[:, num_text:]
        if cache:
            cache.keep(img)
        return img


def _run_block(run: Callable, block: nn.Module, args: dict) -> dict:
    """Runs a block, or what a node has put in its place (`patches_replace`)."""
    options = args["transformer_options"]
    name = (f"{options['block_type']}_block", options["block_index"])
    replacement = options.get("patches_replace", {}).get("dit", {}).get(name)
    if replacement is None:
        return run(block, args)
    return replacement(args, {"original_block": partial(run, block)})


def _run_double(block: nn.Module, args: dict) -> dict:
    attention = PatchedAttention(args["transformer_options"], args.get("attn_mask"), args["txt"].shape[1])
    run = args["transformer_options"].get(BLOCK_RUNNER, nn.Module.__call__)
    img, txt = run(block, args["img"], args["txt"], args["vec"], args["pe"], attention=attention)
    return {"img": img, "txt": txt}


def _run_single(block: nn.Module, args: dict) -> dict:
    attention = PatchedAttention(args["transformer_options"], args.get("attn_mask"))
    run = args["transformer_options"].get(BLOCK_RUNNER, nn.Module.__call__)
    return {"img": run(block, args["img"], args["vec"], args["pe"], attention=attention)}
