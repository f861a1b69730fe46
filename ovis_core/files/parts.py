"""The three parts of a pipeline as files know them, and whether three of them belong together.

A new model brings a `Part` of its own for each of its networks; reading and writing take it as it is.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Generic, TypeVar

from torch import nn

from ..autoencoder import SCALE, SHIFT, Autoencoder, AutoencoderConfig
from ..latents import PATCH_SIZE
from ..lean_blocks import lean_blocks
from ..text_encoder import TextEncoder, TextEncoderConfig
from ..transformer import OvisImageTransformer, TransformerConfig
from .layouts import (
    FLUX_MARKER,
    TEXT_ENCODER_PREFIXES,
    autoencoder_layout,
    autoencoder_rules,
    diffusers_transformer_rules,
    flux_transformer_rules,
    text_encoder_layout,
    text_encoder_rules,
    transformer_layout,
)
from .rules import Layout, num_blocks

ConfigT = TypeVar("ConfigT")
ModuleT = TypeVar("ModuleT", bound=nn.Module)
Shapes = Mapping[str, tuple[int, ...]]  # {name of ours: shape}
Settings = Mapping[str, Any]  # of a config.json, empty where a file has none


@dataclass(frozen=True, eq=False)
class Part(Generic[ConfigT, ModuleT]):
    """What reading and writing need to know of one network."""

    title: str
    subfolder: str  # in a diffusers pipeline's folder
    file_name: str  # without its ending, of the weights in such a folder
    marker: str  # a name of ours that the part cannot lack
    weight_dims: int  # of all weights but the norms': 2 for linears, 4 for convolutions
    module: Callable[..., ModuleT]  # (config, device=...) -> the network
    from_shapes: Callable[[Shapes, Settings], ConfigT]  # raises ValueError for another model's settings
    find_layout: Callable[[Collection[str]], Layout | None]  # for reading, by a file's names
    layout: Callable[[ConfigT, str], Layout]  # for writing, by its name
    # The config.json of each layout that is a folder; the others are one file.
    settings: Mapping[str, Callable[[ConfigT], dict]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()  # beginnings of names that belong to other parts of a published file


@lru_cache(maxsize=16)
def parameter_shapes(part: Part[ConfigT, ModuleT], config: ConfigT) -> Shapes:
    """Builds the network on the meta device, once for each config, and tells its parameters' shapes."""
    state = part.module(config, device="meta").state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def check_fit(
    transformer: TransformerConfig, text_encoder: TextEncoderConfig, autoencoder: AutoencoderConfig
) -> None:
    """Raises ValueError when the three parts do not belong together."""
    if transformer.context_dim != text_encoder.hidden_size:
        raise ValueError(
            f"the text encoder gives {text_encoder.hidden_size} numbers a token, the diffusion model takes "
            f"{transformer.context_dim}; choose the text encoder that belongs to this model"
        )
    if transformer.in_channels != autoencoder.latent_channels * PATCH_SIZE**2:
        raise ValueError(
            f"the VAE has {autoencoder.latent_channels} latent channels, the diffusion model takes "
            f"{transformer.in_channels // PATCH_SIZE**2}; choose the VAE that belongs to this model"
        )


def transformer_from_shapes(shapes: Shapes, settings: Settings) -> TransformerConfig:
    """Reads the sizes off the shapes; `settings` are those of diffusers' config.json."""
    hidden_size, in_channels = shapes["img_in.weight"]
    (head_dim,) = shapes["double_blocks.0.img_attn.norm.query_norm.weight"]
    axes_dim = settings.get("axes_dims_rope", (head_dim // 8, head_dim * 7 // 16, head_dim * 7 // 16))
    return TransformerConfig(
        in_channels=in_channels,
        hidden_size=hidden_size,
        num_heads=hidden_size // head_dim,
        depth=num_blocks(shapes, "double_blocks"),
        depth_single_blocks=num_blocks(shapes, "single_blocks"),
        context_dim=shapes["txt_in.weight"][1],
        mlp_size=shapes["double_blocks.0.img_mlp.up_proj.weight"][0],
        axes_dim=tuple(axes_dim if isinstance(axes_dim, list | tuple) else [axes_dim]),
    )


def transformer_to_diffusers(config: TransformerConfig) -> dict:
    """Writes the config.json of diffusers' OvisImageTransformer2DModel."""
    return {
        "_class_name": "OvisImageTransformer2DModel",
        "patch_size": 1,  # latents arrive packed there
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "num_layers": config.depth,
        "num_single_layers": config.depth_single_blocks,
        "attention_head_dim": config.hidden_size // config.num_heads,
        "num_attention_heads": config.num_heads,
        "joint_attention_dim": config.context_dim,
        "axes_dims_rope": list(config.axes_dim),
    }


def transformer_layout_of(config: TransformerConfig, name: str) -> Layout:
    """Makes the layout authors, comfyui or diffusers."""
    sizes = config.depth, config.depth_single_blocks
    if name == "diffusers":
        single_rows = (config.hidden_size,) * 3 + (2 * config.mlp_size,)
        return Layout(name, "", tuple(diffusers_transformer_rules(*sizes, single_rows)))
    text = {"authors": "semantic_txt", "comfyui": "txt"}[name]
    return Layout(name, "", tuple(flux_transformer_rules(*sizes, text)))


def text_encoder_from_shapes(shapes: Shapes, settings: Settings) -> TextEncoderConfig:
    """Reads the sizes off the shapes; `settings` are those of Qwen3's or Ovis2.5's config.json."""
    settings = settings.get("llm_config", settings)
    rope = settings.get("rope_parameters", settings) if isinstance(settings, Mapping) else None
    if not isinstance(rope, Mapping):
        raise ValueError("the config has no Qwen3 section that can be read; download config.json again")
    vocab_size, hidden_size = shapes["model.embed_tokens.weight"]
    layer = "model.layers.0.self_attn"
    (head_dim,) = shapes[f"{layer}.q_norm.weight"]
    return TextEncoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_blocks(shapes, "model.layers"),
        num_heads=shapes[f"{layer}.q_proj.weight"][0] // head_dim,
        num_kv_heads=shapes[f"{layer}.k_proj.weight"][0] // head_dim,
        head_dim=head_dim,
        intermediate_size=shapes["model.layers.0.mlp.gate_proj.weight"][0],
        rope_theta=_positive_number(rope, "rope_theta", TextEncoderConfig.rope_theta),
        norm_eps=_positive_number(settings, "rms_norm_eps", TextEncoderConfig.norm_eps),
    )


def text_encoder_to_qwen3(config: TextEncoderConfig) -> dict:
    """Writes the config.json of transformers' Qwen3Model."""
    return config.to_transformers().to_dict() | {"architectures": ["Qwen3Model"]}


def text_encoder_layout_of(config: TextEncoderConfig, name: str) -> Layout:
    """Makes the layout authors, comfyui or diffusers."""
    return Layout(name, TEXT_ENCODER_PREFIXES[name], tuple(text_encoder_rules(config.num_layers)))


def autoencoder_from_shapes(shapes: Shapes, settings: Settings) -> AutoencoderConfig:
    """Reads the sizes off the shapes; `settings` are those of diffusers' config.json.

    Raises ValueError when the settings scale latents unlike FLUX's: another model's autoencoder can have the
    same architecture, and its images would come out in wrong colours.
    """
    for name, expected in (("scaling_factor", SCALE), ("shift_factor", SHIFT)):
        got = settings.get(name, expected)
        if got != expected:
            raise ValueError(
                f"this VAE's config has {name} {got}, Ovis-Image's has {expected}; use FLUX.1's VAE"
            )
    return AutoencoderConfig(
        channels=tuple(
            shapes[f"decoder.up.{level}.block.0.conv1.weight"][0]
            for level in range(num_blocks(shapes, "decoder.up"))
        ),
        num_res_blocks=num_blocks(shapes, "encoder.down.0.block"),
        latent_channels=shapes["decoder.conv_in.weight"][1],
        norm_groups=settings.get("norm_num_groups", AutoencoderConfig.norm_groups),
    )


def autoencoder_to_diffusers(config: AutoencoderConfig) -> dict:
    """Writes the config.json of diffusers' AutoencoderKL."""
    num_levels = len(config.channels)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * num_levels,
        "up_block_types": ["UpDecoderBlock2D"] * num_levels,
        "block_out_channels": list(config.channels),
        "layers_per_block": config.num_res_blocks,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": SCALE,
        "shift_factor": SHIFT,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": True,
        "force_upcast": True,
        "act_fn": "silu",
    }


def autoencoder_layout_of(config: AutoencoderConfig, name: str) -> Layout:
    """Makes the layout flux or diffusers."""
    rules = autoencoder_rules(len(config.channels), config.num_res_blocks, diffusers=name == "diffusers")
    return Layout(name, "", tuple(rules))


def _positive_number(settings: Settings, key: str, default: float) -> float:
    value = settings.get(key, default)
    if type(value) not in (int, float) or not 0 < value < 1e12:
        raise ValueError(
            f"the config's {key} is {value!a}, a positive number is needed; download the config again"
        )
    return float(value)


TRANSFORMER = Part(
    title="an Ovis-Image diffusion model",
    subfolder="transformer",
    file_name="diffusion_pytorch_model",
    marker=FLUX_MARKER,
    weight_dims=2,
    module=partial(OvisImageTransformer, blocks=lean_blocks()),  # with gradients the textbook's
    from_shapes=transformer_from_shapes,
    find_layout=transformer_layout,
    layout=transformer_layout_of,
    settings={"diffusers": transformer_to_diffusers},
    ignored=("first_stage_model.", "cond_stage_model.", "vae.", "text_encoders."),
)
TEXT_ENCODER = Part(
    title="an Ovis2.5-2B text encoder",
    subfolder="text_encoder",
    file_name="model",
    marker="model.layers.0.self_attn.q_norm.weight",
    weight_dims=2,
    module=TextEncoder,
    from_shapes=text_encoder_from_shapes,
    find_layout=text_encoder_layout,
    layout=text_encoder_layout_of,
    settings={
        "authors": lambda config: {"llm_config": text_encoder_to_qwen3(config)},
        "diffusers": text_encoder_to_qwen3,
    },
    ignored=("lm_head.", "llm.lm_head.", "visual_tokenizer.", "vte.", "output.weight"),
)
AUTOENCODER = Part(
    title="a FLUX VAE",
    subfolder="vae",
    file_name="diffusion_pytorch_model",
    marker="decoder.up.0.block.0.conv1.weight",
    weight_dims=4,
    module=Autoencoder,
    from_shapes=autoencoder_from_shapes,
    find_layout=autoencoder_layout,
    layout=autoencoder_layout_of,
    settings={"diffusers": autoencoder_to_diffusers},
)
