"""Runs what the GPU bench compares: the same weights in diffusers, in ComfyUI's own model and in ours.

A step is one guided evaluation: the conditional and the unconditional velocity of one picture.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from unittest import mock

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, OvisImagePipeline, OvisImageTransformer2DModel
from pack import (
    comfy,
    comfy_transformer,
    core_cache,
    diffusion_model,
    formats,
    kernels,
    latents,
    lean_blocks,
    low_precision,
    modulation,
    parts,
    patchers,
    residual_cache,
    transformer,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from weights import Weights

CFG = 5.0
SIGMAS = tuple(step / 48 for step in range(1, 49))  # a schedule with the sigma of the steps, exactly
Around = Callable[["Comfy | None"], contextlib.AbstractContextManager]


@dataclass(frozen=True)
class Inputs:
    """One picture's latents (2, C, H, W), twice the same; sigma (2,); text states (2, L, context_dim)."""

    x: Tensor
    sigma: Tensor
    context: Tensor

    @classmethod
    def random(cls, config, side: int, device, dtype: torch.dtype) -> "Inputs":
        """Makes random inputs for a picture of `side` pixels."""
        generator = torch.Generator(device).manual_seed(side)
        factory = {"generator": generator, "device": device, "dtype": dtype}
        x = torch.randn(1, config.in_channels // 4, side // 8, side // 8, **factory).repeat(2, 1, 1, 1)
        context = torch.randn(2, 256, config.context_dim, **factory)
        return cls(x, torch.full((2,), 0.75, device=device), context)  # exact in bfloat16

    @property
    def side(self) -> int:
        """Counts the pixels of a side."""
        return 8 * self.x.shape[-1]


class Diffusers:
    """The pipeline of diffusers: two passes of one picture each."""

    evaluations = 1

    def __init__(self, config, weights: Weights, backend: str | None = None):
        settings = parts.transformer_to_diffusers(config)
        settings.pop("_class_name")
        with torch.device("meta"):
            self.network = OvisImageTransformer2DModel(**settings).eval()
        self.network.load_state_dict(weights.diffusers, assign=True)
        if backend:
            self.network.compile_repeated_blocks(fullgraph=True, backend=backend)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        self.pipeline = OvisImagePipeline(scheduler, None, None, None, self.network)
        self.pipeline.set_progress_bar_config(disable=True)

    def stepper(self, inputs: Inputs) -> Callable[[], Tensor]:
        """Makes a step to call again and again."""
        tokens = latents.pack_latents(inputs.x)
        like = {"device": tokens.device, "dtype": tokens.dtype}  # as the pipeline has the positions
        ids = {
            "img_ids": latents.image_ids(*inputs.x.shape[-2:]).to(**like),
            "txt_ids": latents.text_ids(inputs.context.shape[1]).to(**like),
        }

        def step() -> Tensor:
            with torch.no_grad():
                passes = [
                    self.network(
                        hidden_states=tokens[i : i + 1],
                        timestep=inputs.sigma[i : i + 1].to(tokens.dtype),
                        encoder_hidden_states=inputs.context[i : i + 1],
                        return_dict=False,
                        **ids,
                    )[0]
                    for i in range(2)
                ]
            return torch.cat(passes)

        return step

    def forget(self) -> None:
        """Does nothing, since diffusers keeps nothing from step to step."""

    def running(self) -> contextlib.AbstractContextManager:
        """Enters nothing."""
        return contextlib.nullcontext()

    def velocity(self, inputs: Inputs) -> Tensor:
        """Computes the velocities of both branches."""
        return latents.unpack_latents(self.stepper(inputs)(), *inputs.x.shape[-2:])

    def image(self, inputs: Inputs, steps: int) -> Tensor:
        """Makes packed latents in a whole run."""
        return self.pipeline(
            prompt_embeds=inputs.context[:1],
            negative_prompt=None,
            negative_prompt_embeds=inputs.context[1:],
            guidance_scale=CFG,
            height=inputs.side,
            width=inputs.side,
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images


@dataclass
class Comfy:
    """A ComfyUI MODEL: one batch of two pictures, or two passes.

    options: what its forwards find in transformer_options besides the MODEL's own. around: contexts that its
    forwards run in. is_cached: every second evaluation skips what the residual cache can skip. is_tabulated:
    modulation comes from a table of `sigmas`, if given. kept: what those
    contexts keep from step to step.
    """

    patcher: comfy.model_patcher.ModelPatcher
    options: dict = field(default_factory=dict)
    around: tuple[Around, ...] = ()
    is_split: bool = False
    is_cached: bool = False
    is_tabulated: bool = False
    sigmas: Sequence[float] = SIGMAS
    kept: dict = field(default_factory=dict, init=False)

    @property
    def network(self) -> nn.Module:
        """Gets the MODEL's network."""
        return self.patcher.model.diffusion_model

    @property
    def evaluations(self) -> int:
        """Counts the evaluations in a call of what `stepper` returns."""
        return 2 if self.is_cached else 1

    def stepper(self, inputs: Inputs) -> Callable[[], Tensor]:
        """Makes a step to call again and again."""
        shared = {**self.patcher.model_options["transformer_options"], **self.options}
        branches = ([0], [1]) if self.is_split else ([0, 1],)
        calls = []
        for branch in branches:
            rows = slice(branch[0], branch[-1] + 1)
            options = {"uuids": branch, "cond_or_uncond": branch}
            calls.append(((inputs.x[rows], inputs.sigma[rows], inputs.context[rows]), options))
        if self.is_tabulated:
            shared[modulation.SCHEDULE] = modulation.Schedule(tuple(self.sigmas), "bench", self.network)
        cache = None
        if self.is_cached:
            cache = residual_cache.RunCache(core_cache.CacheSettings(math.inf, warmup=0, max_skips=1))
            shared[residual_cache.RESIDUAL_CACHE] = cache

        def evaluate() -> Tensor:
            passes = [
                self.network(*given, transformer_options={**shared, **options}) for given, options in calls
            ]
            return torch.cat(passes) if len(passes) > 1 else passes[0]

        def step() -> Tensor:
            with torch.inference_mode(), self.running():
                if cache is None:
                    return evaluate()
                cache.evaluate(1.0, evaluate)  # begins a run
                return cache.evaluate(0.5, evaluate)

        return step

    def forget(self) -> None:
        """Drops the tables that the network keeps from step to step."""
        if isinstance(self.network, comfy_transformer.ComfyTransformer):
            self.network.modulation.forget()
            self.network._tables.clear()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Enters the contexts of its forwards."""
        with contextlib.ExitStack() as stack:
            for context in self.around:
                stack.enter_context(context(self))
            yield

    def velocity(self, inputs: Inputs) -> Tensor:
        """Computes the velocities of both branches."""
        return self.stepper(inputs)()

    def image(self, inputs: Inputs, steps: int) -> Tensor:
        """Makes latents in a whole run of ComfyUI's guider and sampler."""
        model = self.patcher.clone()
        model.model_options["transformer_options"].update(self.options)
        if not self.is_tabulated:
            model.remove_wrappers_with_key("outer_sample", modulation.SCHEDULE)
        if self.is_cached:
            model = residual_cache.cached_model(model, math.inf, 4, 1, 0, print)
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds([[inputs.context[:1], {}]], [[inputs.context[1:], {}]])
        guider.set_cfg(CFG)
        noise = torch.randn(inputs.x[:1].shape, generator=torch.Generator().manual_seed(0))
        sigmas = torch.linspace(1, 0, steps + 1)
        with torch.inference_mode(), self.running():
            sampler = comfy.samplers.sampler_object("euler")
            return guider.sample(noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=0)


def native_model(weights: Weights) -> comfy.model_patcher.ModelPatcher:
    """Makes ComfyUI's own model as its loader does, except that weights stay where they are."""
    state = dict(weights.ours)
    management = comfy.model_management
    config = comfy.model_detection.model_config_from_unet(state, "")
    device, supported = management.get_torch_device(), config.supported_inference_dtypes
    dtype = management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(state),
        supported_dtypes=supported,
        weight_dtype=comfy.utils.weight_dtype(state),
    )
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, supported), device=device)
    model = config.get_model(state, "", device="meta")
    model.load_model_weights(state, "", assign=True)
    return comfy.model_patcher.CoreModelPatcher(
        model, load_device=device, offload_device=management.unet_offload_device()
    )


def our_model(config, weights: Weights, weight_format: str | None = None):
    """Makes our model as our loader does, except that weights stay where they are."""
    state = dict(weights.ours)
    if weight_format:
        state = low_precision.quantize_state(state, weight_format)
    kept = formats.format_of(state, None, comfy.utils.weight_dtype(state))
    model_config = diffusion_model.model_config_of(config, kept)
    # Quantised layers take no memory before their weights come, and load them on the device of creation.
    device = comfy.model_management.get_torch_device() if weight_format else "meta"
    model = diffusion_model.OvisImageModel(model_config, device=device)
    model.load_model_weights(kept.state, assign=True)
    ours = patchers.patch_model(model)
    modulation.follow_runs(ours)
    diffusion_model.make_room(ours)
    return ours


def loaded(model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """Loads a model on its device for good, as ComfyUI counts it."""
    comfy.model_management.load_models_gpu([model])
    return model


def cudnn_override(function, q, k, v, heads, mask=None, **kwargs) -> Tensor:
    """Overrides ComfyUI's attention (`optimized_attention_override`) for q, k, v (B, H, L, D/H)."""
    assert kwargs.get("skip_reshape")
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = nn.functional.scaled_dot_product_attention(q, k, v, mask)
    return out.transpose(1, 2).flatten(2)


def in_parts(_: Comfy) -> contextlib.AbstractContextManager:
    """Makes single blocks work in parts, as on a card that is short of memory."""

    def num_parts(network, x: Tensor, context: Tensor, options: dict) -> int:
        return lean_blocks.most_parts(
            x.shape[0] * (context.shape[1] + latents.num_image_tokens(*x.shape[-2:]))
        )

    return mock.patch.object(comfy_transformer.ComfyTransformer, "num_parts", num_parts)


def textbook_blocks(_: Comfy) -> contextlib.AbstractContextManager:
    """Runs textbook blocks, without the table of modulation."""
    return mock.patch.object(lean_blocks, "is_inference", return_value=False)


def comfyuis_kernels(_: Comfy) -> contextlib.AbstractContextManager:
    """Runs norms, their modulation and the rotation as separate kernels on every GPU."""
    return mock.patch.object(kernels, "has_new_kernels", return_value=False)


def scaled_behind(_: Comfy) -> contextlib.AbstractContextManager:
    """Scales fp8 products row by row after the kernel."""

    def fp8_product(device: torch.device) -> Callable[..., Tensor]:
        return low_precision.scaled_behind

    return mock.patch.object(low_precision, "fp8_product", fp8_product)


@contextlib.contextmanager
def modulation_on_device(implementation: Comfy) -> Iterator[None]:
    """Keeps the modulation layers on the device, like all others, so that steps do not copy them."""
    device, kept = implementation.patcher.load_device, implementation.kept
    before = {}
    for name, layer in implementation.network.modulation.layers.items():
        before[layer] = layer.weight, layer.bias, layer.comfy_cast_weights
        if name not in kept:
            copies = (nn.Parameter(x.detach().to(device), requires_grad=False) for x in before[layer][:2])
            kept[name] = tuple(copies)
        layer.weight, layer.bias = kept[name]
        layer.comfy_cast_weights = False
    try:
        yield
    finally:
        for layer, values in before.items():
            layer.weight, layer.bias, layer.comfy_cast_weights = values


def no_rotary_table(_: Comfy | None) -> contextlib.AbstractContextManager:
    """Makes the rotary table for every forward."""

    def rotary_table(network, num_text: int, height: int, width: int, device: torch.device) -> Tensor:
        ids = torch.cat((latents.text_ids(num_text), latents.image_ids(height, width)))
        return network.pe_embedder(ids, device)

    return mock.patch.object(transformer.OvisImageTransformer, "rotary_table", rotary_table)
