"""Writes the {key: shape} manifests of the full-size files beside this script: `python
tests/data/make_manifests.py`.

They come from the peers' own classes on the meta device, not from ours. Needs COMFYUI_PATH.
"""

import json
import os
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, OvisImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

sys.path.insert(0, os.environ["COMFYUI_PATH"])
import comfy.cli_args

comfy.cli_args.args.cpu = True
import comfy.ldm.flux.model  # noqa: E402
import comfy.ldm.models.autoencoder  # noqa: E402
import comfy.ops  # noqa: E402

QWEN3 = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 6144,
}
FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": None,
    "context_in_dim": 2048,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 6,
    "depth_single_blocks": 27,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
    "txt_ids_dims": [1, 2],
    "yak_mlp": True,
    "txt_norm": True,
}
VAE = {
    **{"double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128},
    **{"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0},
}


def main() -> None:
    with torch.device("meta"):
        flux = comfy.ldm.flux.model.Flux(**FLUX, operations=comfy.ops.disable_weight_init)
        comfyui = {key: list(value.shape) for key, value in flux.state_dict().items()}
        ae = comfy.ldm.models.autoencoder.AutoencodingEngine(
            regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
            encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": VAE},
            decoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Decoder", "params": VAE},
        )
        levels = 4
        diffusers_vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        transformer = OvisImageTransformer2DModel()
        qwen3 = Qwen3Model(Qwen3Config(**QWEN3))
    language = shapes(qwen3)
    save("transformer_comfyui", comfyui)
    renamed = (("txt_in.", "semantic_txt_in."), ("txt_norm.", "semantic_txt_norm."))
    save("transformer_authors", {rename(key, renamed): shape for key, shape in comfyui.items()})
    save("transformer_diffusers", shapes(transformer))
    save("text_encoder_diffusers", language)
    save("text_encoder_comfyui", {f"model.{key}": shape for key, shape in language.items()})
    vision = {
        "llm.lm_head.weight": [151936, 2048],
        "visual_tokenizer.vit.vision_model.x.weight": [1152, 1152],
    }
    save("text_encoder_authors", {f"llm.model.{key}": shape for key, shape in language.items()} | vision)
    save("vae_flux", shapes(ae))
    save("vae_diffusers", shapes(diffusers_vae))


def shapes(module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in module.state_dict().items()}


def rename(key: str, renamed: tuple[tuple[str, str], ...]) -> str:
    for old, new in renamed:
        if key.startswith(old):
            return new + key[len(old) :]
    return key


def save(name: str, manifest: dict[str, list[int]]) -> None:
    lines = (f"{json.dumps(key)}: {json.dumps(shape)}" for key, shape in sorted(manifest.items()))
    Path(__file__).with_name(f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
