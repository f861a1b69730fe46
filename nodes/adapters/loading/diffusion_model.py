"""Wraps the core's transformer into a ComfyUI diffusion model: MODEL."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.supported_models_base
from comfy.model_patcher import ModelPatcher

from ....ovis_core.files.checkpoint import Checkpoint, open_checkpoint
from ....ovis_core.files.parts import TRANSFORMER
from ....ovis_core.sampling import MAX_MU
from ....ovis_core.transformer import OvisImageTransformer, TransformerConfig
from ..lora.aliases import AliasedModel
from ..network.modulation import follow_runs
from ..network.transformer import NO_CONTROLNETS, ComfyTransformer
from ..sampling.memory import Asking, bytes_to_ask_for, has_fused_attention, make_room
from ..weights.formats import MODEL_DTYPES, WeightDtype, WeightFormat, choose
from ..weights.patchers import patch_model


class OvisImageModelConfig(comfy.supported_models_base.BASE):
    """ComfyUI's configuration of a model before it is built."""

    latent_format = comfy.latent_formats.Flux
    unet_extra_config = {}
    # Where CheckpointSave puts it and CheckpointLoaderSimple looks for it, as for FLUX.
    vae_key_prefix = ["vae."]
    # ModelSamplingFlux's shift is mu: the reference's at 1024x1024. Our scheduler takes it from the latent's
    # size instead.
    sampling_settings = {"shift": MAX_MU}
    memory_usage_factor = 3.1  # for kernels that write out attention; see `memory` for the others
    supported_inference_dtypes = MODEL_DTYPES


class OvisImageModel(AliasedModel):
    """The transformer as ComfyUI samples it."""

    def __init__(self, model_config: OvisImageModelConfig, device=None):
        super().__init__(model_config, comfy.model_base.ModelType.FLUX, device, ComfyTransformer)
        self.asking: Asking | None = None
        self.exchanged_weights = {}  # by hooks of all patchers of this model

    def memory_required(self, input_shape: Sequence[int], cond_shapes: Mapping | None = None) -> float:
        """Estimates the peak bytes of activations in a forward of latents (B, C, H, W)."""
        if not has_fused_attention():
            return super().memory_required(input_shape, cond_shapes or {})
        return bytes_to_ask_for(self, input_shape)

    def extra_conds(self, **kwargs) -> dict:
        """Moves the text states to the device and dtype of the network.

        Each prompt keeps its own length: ComfyUI repeats a shorter one until it is as long as the longest.
        Raises ValueError for a ControlNet before it runs: FLUX's do not fit the text states.
        """
        if kwargs.get("control") is not None:
            raise ValueError(NO_CONTROLNETS)
        conds = super().extra_conds(**kwargs)
        if "c_crossattn" in conds:
            context = conds["c_crossattn"].cond
            conds["c_crossattn"] = comfy.conds.CONDRegular(
                context.to(kwargs["device"], self.get_dtype_inference())
            )
        return conds


def load_diffusion_model(path: Path, weight_dtype: WeightDtype = None, disable_dynamic: bool = False):
    """Loads the transformer of a file or folder as a MODEL; see `diffusion_model_of`.

    Raises ValueError as `ovis_core.files.checkpoint.open_checkpoint` does.
    """
    return diffusion_model_of(open_checkpoint(path, TRANSFORMER), weight_dtype, disable_dynamic)


def diffusion_model_of(
    checkpoint: Checkpoint[TransformerConfig, OvisImageTransformer],
    weight_dtype: WeightDtype = None,
    disable_dynamic: bool = False,
) -> ModelPatcher:
    """Puts a checked transformer into a MODEL; dtypes and devices by ComfyUI's rules.

    `weight_dtype` is what the weights are kept in, None for what suits the file and the device.
    """
    weights = choose(checkpoint, weight_dtype)
    model = OvisImageModel(model_config_of(checkpoint.config, weights))
    patcher = patch_model(model, disable_dynamic or not weights.takes_dynamic_vram, weights.patcher)
    model.load_model_weights(weights.state, assign=not weights.takes_dynamic_vram or patcher.is_dynamic())
    patcher.cached_patcher_init = (load_diffusion_model, (checkpoint.path, weight_dtype))
    follow_runs(patcher)
    make_room(patcher)
    return patcher


def model_config_of(config: TransformerConfig, weights: WeightFormat) -> OvisImageModelConfig:
    """Tells ComfyUI the sizes, layers and dtypes of a model."""
    model_config = OvisImageModelConfig({"config": config})
    model_config.custom_operations = weights.operations
    device = comfy.model_management.get_torch_device()
    model_config.set_inference_dtype(weights.storage, weights.compute, device=device)
    return model_config
