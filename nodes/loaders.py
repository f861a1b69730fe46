"""Loads files by name -> MODEL, CLIP, VAE."""

from comfy_api.latest import io

from .adapters.loading.files import model_names, text_encoder_names, vae_names
from .adapters.loading.model import load_model
from .adapters.weights.formats import WEIGHT_DTYPES


class OvisImageLoader(io.ComfyNode):
    """A node that loads a model's three parts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisImageLoader",
            display_name="Ovis-Image Loader",
            category="Ovis-Image",
            description=(
                "Loads Ovis-Image: the diffusion model, its text encoder and FLUX's VAE, from the authors' "
                "files, a diffusers folder or ComfyUI's repackaged files. Each file is checked before it "
                "is loaded."
            ),
            search_aliases=["ovis", "load ovis image", "checkpoint", "unet", "diffusers"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=model_names(),
                    tooltip=(
                        "The diffusion model: a file or folder (with a slash) in models/diffusion_models, "
                        "or a whole pipeline in models/diffusers."
                    ),
                ),
                io.Combo.Input(
                    "text_encoder_name",
                    options=text_encoder_names(),
                    tooltip=(
                        "The text encoder: a file or folder in models/text_encoders (Ovis2.5-2B or "
                        "ovis_2.5), or a whole pipeline in models/diffusers."
                    ),
                ),
                io.Combo.Input(
                    "vae_name",
                    options=vae_names(),
                    tooltip="FLUX.1's VAE: ae.safetensors in models/vae, or a whole pipeline in "
                    "models/diffusers.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip=(
                        "What the diffusion model's weights are kept in. default: what suits the file and "
                        "the device. fp8_scaled and int8 halve the blocks' memory, with scales, and keep the "
                        "sensitive layers; fp8_e4m3fn halves everything, without scales. All three change "
                        "the picture."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The diffusion model; LoRA and ModelSampling nodes fit in here."),
                io.Clip.Output(tooltip="The text encoder, for Ovis-Image Text Encode or CLIP Text Encode."),
                io.Vae.Output(tooltip="The VAE, for decoding and encoding pictures."),
            ],
        )

    @classmethod
    def execute(
        cls, model_name: str, text_encoder_name: str, vae_name: str, weight_dtype: str
    ) -> io.NodeOutput:
        return io.NodeOutput(*load_model(model_name, text_encoder_name, vae_name, weight_dtype))
