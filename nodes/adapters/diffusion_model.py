"""The core's transformer as a ComfyUI diffusion model: MODEL."""

import json
from functools import partial
from pathlib import Path

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...ovis_core.checkpoint import TRANSFORMER, open_checkpoint
from ...ovis_core.sampling import MAX_MU
from ...ovis_core.transformer import OvisImageTransformer, TransformerConfig

WEIGHT_DTYPES = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}

# How ComfyUI's mixed-precision layers are told what a weight is.
FP8_SCALED = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)


class ComfyTransformer(OvisImageTransformer):
    """The transformer with the arguments that ComfyUI gives a diffusion model."""

    def __init__(self, config: TransformerConfig, operations, dtype=None, device=None):
        super().__init__(config, operations, dtype=dtype, device=device)
        self.dtype = dtype

    def forward(
        self, x: Tensor, timestep: Tensor, context: Tensor, control=None, transformer_options=None, **kwargs
    ) -> Tensor:
        """x (B, C, H, W), timestep is sigma (B,), context (B, L, context_dim) -> velocity (B, C, H, W)."""
        if control is not None:
            raise ValueError(
                "Ovis-Image has no ControlNets: remove the Apply ControlNet node from its conditioning"
            )
        if context.shape[-1] != self.config.context_dim:
            raise ValueError(
                f"the conditioning has {context.shape[-1]} numbers a token, this model takes "
                f"{self.config.context_dim}; encode the prompt with the CLIP that the Ovis-Image loader "
                "gives"
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
        return super().forward(x, timestep, context, partial(_attention, transformer_options))


def _attention(transformer_options: dict, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """ComfyUI's choice of attention kernel: (B, H, L, D/H) three times -> (B, L, D)."""
    return optimized_attention(
        q, k, v, q.shape[1], skip_reshape=True, transformer_options=transformer_options
    )


class OvisImageModelConfig(comfy.supported_models_base.BASE):
    """What ComfyUI wants to know of a model before it is built."""

    latent_format = comfy.latent_formats.Flux
    unet_extra_config = {}
    # ModelSamplingFlux's shift is mu: the reference's at 1024x1024. Our scheduler takes it from the latent's
    # size instead.
    sampling_settings = {"shift": MAX_MU}
    memory_usage_factor = 3.1  # ComfyUI's own estimate for FLUX, whose activations are as large
    supported_inference_dtypes = [torch.bfloat16, torch.float16, torch.float32]


class OvisImageModel(comfy.model_base.BaseModel):
    def __init__(self, model_config: OvisImageModelConfig, device=None):
        super().__init__(
            model_config, comfy.model_base.ModelType.FLUX, device=device, unet_model=ComfyTransformer
        )


def load_diffusion_model(path: Path, weight_dtype: torch.dtype | None = None, disable_dynamic: bool = False):
    """A ModelPatcher around the transformer of a file or folder; dtypes and devices by ComfyUI's rules.

    `weight_dtype` is what the weights are kept in, None for what suits the file and the device.
    Raises ValueError as `ovis_core.checkpoint.open_checkpoint` does.
    """
    checkpoint = open_checkpoint(path, TRANSFORMER)
    keep_scales = weight_dtype in (None, torch.float8_e4m3fn)
    state = checkpoint.read(comfy.utils.load_torch_file, keep_scales)
    state, _ = comfy.utils.convert_old_quants(state, metadata={})
    model_config = OvisImageModelConfig({"config": checkpoint.config})
    _choose_dtypes(model_config, state, weight_dtype)
    model = OvisImageModel(model_config)

    patcher_class = (
        comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    )
    patcher = patcher_class(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    model.load_model_weights(state, assign=patcher.is_dynamic())
    patcher.cached_patcher_init = (load_diffusion_model, (path, weight_dtype))
    return patcher


def _choose_dtypes(
    model_config: OvisImageModelConfig, state: dict[str, Tensor], weight_dtype: torch.dtype | None
) -> None:
    """Storage and compute dtype by ComfyUI's rules; scaled fp8 goes to its mixed-precision layers."""
    device = comfy.model_management.get_torch_device()
    supported = model_config.supported_inference_dtypes
    scaled = [key.removesuffix(".weight_scale") for key in state if key.endswith(".weight_scale")]
    if scaled:
        for layer in scaled:  # the newest files name the format in their metadata alone
            state.setdefault(f"{layer}.comfy_quant", FP8_SCALED)
        model_config.quant_config = {"mixed_ops": True}
        storage = comfy.model_management.unet_dtype(supported_dtypes=supported)
        compute = comfy.model_management.unet_manual_cast(None, device, supported)
    else:
        storage = weight_dtype or comfy.model_management.unet_dtype(
            model_params=comfy.utils.calculate_parameters(state),
            supported_dtypes=supported,
            weight_dtype=comfy.utils.weight_dtype(state),
        )
        compute = comfy.model_management.unet_manual_cast(storage, device, supported)
    model_config.set_inference_dtype(storage, compute, device=device)
