"""The core's transformer as a ComfyUI diffusion model: MODEL."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.ops
import comfy.supported_models_base
import comfy.utils
import torch
from torch import Tensor

from ....ovis_core.files.checkpoint import Checkpoint, open_checkpoint
from ....ovis_core.files.parts import TRANSFORMER, parameter_shapes
from ....ovis_core.sampling import MAX_MU
from ..network.modulation import follow_runs
from ..network.transformer import NO_CONTROLNETS, ComfyTransformer
from ..sampling.memory import Asking, bytes_to_ask_for, has_fused_attention, make_room
from ..weights.gguf import GGUFOps, GGUFPatcher, quantized_weights
from ..weights.low_precision import FP8, INT8, low_precision_ops, note, quantize_state
from ..weights.patchers import OvisImagePatcher, name_layers, patch_model

WEIGHT_DTYPES = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_scaled": FP8,
    "int8": INT8,
}
WeightDtype = torch.dtype | str | None  # text for a format of ComfyUI's mixed-precision layers


class OvisImageModelConfig(comfy.supported_models_base.BASE):
    """What ComfyUI wants to know of a model before it is built."""

    latent_format = comfy.latent_formats.Flux
    unet_extra_config = {}
    # Where CheckpointSave puts it and CheckpointLoaderSimple looks for it, as for FLUX.
    vae_key_prefix = ["vae."]
    # ModelSamplingFlux's shift is mu: the reference's at 1024x1024. Our scheduler takes it from the latent's
    # size instead.
    sampling_settings = {"shift": MAX_MU}
    memory_usage_factor = 3.1  # for kernels that write out attention; see `memory` for the others
    supported_inference_dtypes = [torch.bfloat16, torch.float16, torch.float32]


class OvisImageModel(comfy.model_base.GenmoMochi):
    """The transformer as ComfyUI samples it, with the names of its layers in every LoRA dialect.

    ComfyUI makes LoRA names of a model's weights by the model's class, and names without a prefix for a few
    classes only. GenmoMochi is one of them and is treated specially nowhere else; nothing of it is used here.
    """

    def __init__(self, model_config: OvisImageModelConfig, device=None):
        comfy.model_base.BaseModel.__init__(
            self, model_config, comfy.model_base.ModelType.FLUX, device=device, unet_model=ComfyTransformer
        )
        self.asking: Asking | None = None
        self.exchanged_weights = {}  # by hooks, of all patchers of this model
        self.shapes = parameter_shapes(TRANSFORMER, self.diffusion_model.config)
        self.aliases = name_layers(self.diffusion_model)
        parameters = (f"{alias}.weight" for alias in self.aliases)
        self.alias_keys = dict.fromkeys(
            (f"diffusion_model.{name}" for name in parameters if name not in self.shapes), torch.empty(0)
        )

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        """The parameters, and an empty tensor for each alias: ComfyUI takes LoRA names from the keys."""
        state = super().state_dict(*args, **kwargs)
        state.update(self.alias_keys)
        return state

    def memory_required(self, input_shape: Sequence[int], cond_shapes: Mapping | None = None) -> float:
        """Bytes of activations that a forward of latents (B, C, H, W) takes at its peak."""
        if not has_fused_attention():
            return super().memory_required(input_shape, cond_shapes or {})
        return bytes_to_ask_for(self, input_shape)

    def extra_conds(self, **kwargs) -> dict:
        """Text states where and as the network takes them.

        Each prompt keeps its own length: ComfyUI repeats a shorter one until it is as long as the longest.
        Raises ValueError for a ControlNet before it runs: FLUX's do not fit the text states.
        """
        if kwargs.get("control") is not None:
            raise ValueError(NO_CONTROLNETS)
        conds = comfy.model_base.BaseModel.extra_conds(self, **kwargs)
        if "c_crossattn" in conds:
            context = conds["c_crossattn"].cond
            conds["c_crossattn"] = comfy.conds.CONDRegular(
                context.to(kwargs["device"], self.get_dtype_inference())
            )
        return conds


def load_diffusion_model(path: Path, weight_dtype: WeightDtype = None, disable_dynamic: bool = False):
    """A ModelPatcher around the transformer of a file or folder; dtypes and devices by ComfyUI's rules.

    `weight_dtype` is what the weights are kept in, None for what suits the file and the device.
    Raises ValueError as `ovis_core.files.checkpoint.open_checkpoint` does.
    """
    checkpoint = open_checkpoint(path, TRANSFORMER)
    state, is_gguf = _read(checkpoint, weight_dtype)
    model_config = OvisImageModelConfig({"config": checkpoint.config})
    if is_gguf:
        state = _keep_gguf(model_config, state, checkpoint.block_formats)
    else:
        _choose_dtypes(model_config, state, weight_dtype)
    model = OvisImageModel(model_config)
    # ComfyUI's dynamic VRAM would quantise patched weights again, which GGUF's formats are too slow for.
    patcher = patch_model(model, disable_dynamic or is_gguf, GGUFPatcher if is_gguf else OvisImagePatcher)
    model.load_model_weights(state, assign=is_gguf or patcher.is_dynamic())
    patcher.cached_patcher_init = (load_diffusion_model, (path, weight_dtype))
    follow_runs(patcher)
    make_room(patcher)
    return patcher


def _read(checkpoint: Checkpoint, weight_dtype: WeightDtype) -> tuple[dict[str, Tensor], bool]:
    """The weights, quantised where the file or `weight_dtype` has them so; whether they are GGUF's bytes."""
    is_gguf = bool(checkpoint.block_formats)
    is_format = isinstance(weight_dtype, str)
    keep = weight_dtype is None or (weight_dtype in (torch.float8_e4m3fn, FP8) and not is_gguf)
    dtype = torch.bfloat16 if weight_dtype is None or is_format else weight_dtype
    state = checkpoint.read(comfy.utils.load_torch_file, keep, dtype)
    state, _ = comfy.utils.convert_old_quants(state, metadata={})
    if is_format and not any(key.endswith(".weight_scale") for key in state):
        state = quantize_state(state, weight_dtype)
    return state, is_gguf and weight_dtype is None


def _keep_gguf(
    model_config: OvisImageModelConfig, state: dict[str, Tensor], formats: dict[str, str]
) -> dict[str, Tensor]:
    """Layers and a state dict for weights that stay quantised; computes in what suits the device."""
    device = comfy.model_management.get_torch_device()
    supported = model_config.supported_inference_dtypes
    compute = comfy.model_management.unet_manual_cast(None, device, supported)
    model_config.custom_operations = GGUFOps
    model_config.set_inference_dtype(compute, compute, device=device)
    return quantized_weights(state, formats, compute)


def _choose_dtypes(
    model_config: OvisImageModelConfig, state: dict[str, Tensor], weight_dtype: WeightDtype
) -> None:
    """Storage and compute dtype by ComfyUI's rules; scaled weights go to its mixed-precision layers."""
    device = comfy.model_management.get_torch_device()
    supported = model_config.supported_inference_dtypes
    scaled = [key.removesuffix(".weight_scale") for key in state if key.endswith(".weight_scale")]
    if scaled:
        for layer in scaled:  # the newest files name the format in their metadata alone
            is_int8 = state[f"{layer}.weight"].dtype == torch.int8
            state.setdefault(f"{layer}.comfy_quant", note(INT8 if is_int8 else FP8))
        model_config.quant_config = {"mixed_ops": True}
        storage = comfy.model_management.unet_dtype(supported_dtypes=supported)
        compute = comfy.model_management.unet_manual_cast(None, device, supported)
        model_config.custom_operations = low_precision_ops(model_config, compute, device)
    else:
        storage = weight_dtype or comfy.model_management.unet_dtype(
            model_params=comfy.utils.calculate_parameters(state),
            supported_dtypes=supported,
            weight_dtype=comfy.utils.weight_dtype(state),
        )
        compute = comfy.model_management.unet_manual_cast(storage, device, supported)
    model_config.set_inference_dtype(storage, compute, device=device)
