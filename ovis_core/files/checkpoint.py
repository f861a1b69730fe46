"""State dicts of the three parts: recognise a file or folder by its headers, and read it strictly."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..autoencoder import Autoencoder, AutoencoderConfig
from ..latents import PATCH_SIZE
from ..text_encoder import TextEncoder, TextEncoderConfig
from ..transformer import OvisImageTransformer, TransformerConfig
from .dequantize import dequantize
from .gguf import read_gguf, read_gguf_header
from .layouts import (
    FLUX_MARKER,
    Layout,
    Rule,
    autoencoder_layout,
    convert,
    looks_like,
    text_encoder_layout,
    transformer_layout,
)
from .quantized import (
    TORCH_DTYPES,
    block_formats,
    check_blocks,
    check_dtypes,
    check_scales,
    check_unrotated,
    scales_of,
    split_notes,
)
from .storage import TensorInfo, check_index, model_files, read_headers, read_json

T = TypeVar("T")
Config = TransformerConfig | TextEncoderConfig | AutoencoderConfig

GGUF = ".gguf"


@dataclass(frozen=True)
class Part:
    """One of the three networks, as files know it."""

    title: str
    subfolder: str  # in a diffusers pipeline's folder
    marker: str  # a name of ours that the part cannot lack
    find_layout: Callable[[Iterable[str]], Layout | None]
    config: type[Config]
    module: type[nn.Module]
    weight_dims: int  # of a weight that is no norm's: 2 for linears, 4 for convolutions
    ignored: tuple[str, ...] = ()  # beginnings of names that belong to other parts of a published file


TRANSFORMER = Part(
    "an Ovis-Image diffusion model",
    "transformer",
    FLUX_MARKER,
    transformer_layout,
    TransformerConfig,
    OvisImageTransformer,
    2,
    ("first_stage_model.", "cond_stage_model.", "vae.", "text_encoders."),
)
TEXT_ENCODER = Part(
    "an Ovis2.5-2B text encoder",
    "text_encoder",
    "model.layers.0.self_attn.q_norm.weight",
    text_encoder_layout,
    TextEncoderConfig,
    TextEncoder,
    2,
    ("lm_head.", "llm.lm_head.", "visual_tokenizer.", "vte.", "output.weight"),
)
AUTOENCODER = Part(
    "a FLUX VAE",
    "vae",
    "decoder.up.0.block.0.conv1.weight",
    autoencoder_layout,
    AutoencoderConfig,
    Autoencoder,
    4,
)


@dataclass(frozen=True)
class Checkpoint:
    """A file or folder whose headers have been checked: right part, right tensors, right shapes."""

    part: Part
    path: Path
    layout: Layout
    config: Config
    files: tuple[Path, ...]
    stamps: tuple  # what the files' sizes and times were when their headers were read
    dtype: torch.dtype  # that most of the weights have once read (quantised ones are multiplied out)
    block_formats: Mapping[str, str]  # {name of ours: GGML's name for how its rows are quantised}

    def read(
        self,
        load: Callable[[str], Mapping[str, Tensor]] = load_file,
        keep_quantized: bool = False,
        dtype: torch.dtype = torch.bfloat16,
    ) -> dict[str, Tensor]:
        """The weights under our names, in the dtypes of the file, on the CPU.

        `load` reads one safetensors file (ComfyUI has its own). Quantised weights are multiplied out to
        `dtype`; with `keep_quantized` they stay: scaled ones with all that the file says of their layers,
        under the file's endings, GGUF's as rows of bytes in `block_formats`. Raises ValueError when the file
        changed since its header was checked, or holds NaN or infinity.
        """
        tensors: dict[str, Tensor] = {}
        for file in self.files:
            tensors.update(read_gguf(file) if _is_gguf(file) else load(str(file)))
        if _stamps(self.files) != self.stamps:
            raise ValueError(f"{self.path.name} changed while it was being read; load it again")
        weights, notes = split_notes(_strip(tensors, self.layout.prefix, self.part.ignored))
        scales = scales_of(notes)
        for key, tensor in weights.items():
            if tensor.is_floating_point():
                _check_finite(self.path, key, tensor)
        check_scales(self.path, scales)

        layers = {
            rule.sources[0].removesuffix(".weight"): rule.targets[0].removesuffix(".weight")
            for rule in self.layout.rules
            if not _is_fused(rule)
        }
        is_kept = keep_quantized and all(layer in layers for layer, _ in notes if layer)
        if not is_kept:
            for key, scale in scales.items():
                check_unrotated(self.path, key, notes)
                weights[key] = (weights[key].float() * scale.float()).to(dtype)
        converted = convert(weights, self.layout.rules)
        check_blocks(self.path, converted, self.block_formats)
        if is_kept:
            kept = {(layers[layer] + end if layer else end): note for (layer, end), note in notes.items()}
            return converted | kept
        for key, name in self.block_formats.items():
            converted[key] = dequantize(converted[key], name, dtype)
        return converted

    def module(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
        """The network with its weights, in one dtype: the file's main one unless told otherwise."""
        if dtype is None:
            dtype = torch.bfloat16 if self.dtype == torch.float8_e4m3fn else self.dtype
        module = self.part.module(self.config, device="meta")
        state = {key: tensor.to(device, dtype) for key, tensor in self.read(dtype=dtype).items()}
        module.load_state_dict(state, strict=True, assign=True)
        return module.to(device).eval().requires_grad_(False)


def open_checkpoint(path: str | Path, part: Part) -> Checkpoint:
    """Checks headers only. `path`: a file, the folder of one part, or a whole pipeline's.

    Raises ValueError in one sentence when the file is damaged, is another model, or lacks, exceeds or
    misshapes a tensor.
    """
    path = Path(path)
    if (path / part.subfolder).is_dir():
        path = path / part.subfolder
    files = tuple(model_files(path))
    stamps = _stamps(files)
    infos, settings = _read_headers(files)
    check_index(path, infos)
    layout = part.find_layout(infos.keys())
    if layout is None:
        raise ValueError(
            f"{path.name} looks like {looks_like(infos.keys())}, not like {part.title}: it has no "
            f"{part.marker}; choose another file here, or choose this one in the field it belongs to"
        )
    weights, notes = split_notes(_strip(infos, layout.prefix, part.ignored))
    scales = scales_of(notes)
    check_dtypes(path, weights, scales)
    _check_names(path, part, layout, weights.keys())
    _check_dimensions(path, part, layout, weights)
    # The same conversion as for the weights, on tensors that have a shape and nothing else.
    hollow = {key: torch.empty(info.shape, device="meta") for key, info in weights.items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in convert(hollow, layout.rules, path.name).items()}
    config_file = path / "config.json"
    try:
        config = part.config.from_shapes(
            shapes, read_json(config_file) if config_file.is_file() else settings
        )
    except ValueError as error:
        raise ValueError(f"{path.name} is {part.title}, but {error}") from None
    _check_shapes(path, part, layout, shapes, config)

    sizes: Counter[str] = Counter()
    for info in weights.values():
        sizes[info.dtype] += math.prod(info.shape)
    formats = block_formats(path, layout, weights)
    dtype = torch.bfloat16 if scales or formats else TORCH_DTYPES[sizes.most_common(1)[0][0]]
    return Checkpoint(part, path, layout, config, files, stamps, dtype, formats)


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


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == GGUF


def _read_headers(files: tuple[Path, ...]) -> tuple[dict[str, TensorInfo], dict]:
    """All tensors, and what a GGUF file says of its language model, under the names of a config.json."""
    if not _is_gguf(files[0]):
        return read_headers(files), {}
    infos, metadata = read_gguf_header(files[0])
    family = metadata.get("general.architecture")
    names = {"rope_theta": "rope.freq_base", "rms_norm_eps": "attention.layer_norm_rms_epsilon"}
    settings = {ours: metadata.get(f"{family}.{theirs}") for ours, theirs in names.items()}
    return infos, {key: value for key, value in settings.items() if value is not None}


def _stamps(files: Iterable[Path]) -> tuple:
    return tuple((stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in (file.stat() for file in files))


def _strip(tensors: Mapping[str, T], prefix: str, ignored: tuple[str, ...]) -> dict[str, T]:
    """Without the layout's prefix and other parts' tensors; what lies outside the prefix keeps its name."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if not key.startswith(ignored)}


def _is_fused(rule: Rule) -> bool:
    return len(rule.sources) > 1 or len(rule.targets) > 1 or rule.swapped


def _check_dimensions(path: Path, part: Part, layout: Layout, weights: Mapping[str, TensorInfo]) -> None:
    for rule in layout.rules:
        of_vector = rule.targets[0].endswith(".bias") or "norm" in rule.targets[0].split(".")[-2]
        expected = 1 if of_vector else 2 if rule.linear else part.weight_dims
        for source in rule.sources:
            if source in weights and len(weights[source].shape) != expected:
                raise ValueError(
                    f"{path.name} is {part.title} ({layout.name} layout), but {source} has the shape "
                    f"{[*weights[source].shape]} where {expected} dimensions are expected; download the "
                    "file again"
                )


def _check_names(path: Path, part: Part, layout: Layout, keys: Iterable[str]) -> None:
    wanted = {source for rule in layout.rules for source in rule.sources if not rule.optional}
    allowed = {source for rule in layout.rules for source in rule.sources}
    missing, unexpected = sorted(wanted - set(keys)), sorted(set(keys) - allowed)
    if missing or unexpected:
        raise ValueError(
            f"{path.name} is {part.title} ({layout.name} layout), but "
            + " and ".join(
                f"{len(names)} tensors are {fault}, first {', '.join(names[:3])}"
                for names, fault in ((missing, "missing"), (unexpected, "unexpected"))
                if names
            )
            + "; download the file again"
        )


def _check_shapes(
    path: Path, part: Part, layout: Layout, shapes: Mapping[str, tuple[int, ...]], config: Config
) -> None:
    """Against the network that the config builds, on the meta device."""
    sources = {target: " + ".join(rule.sources) for rule in layout.rules for target in rule.targets}
    expected = {
        key: tuple(tensor.shape) for key, tensor in part.module(config, device="meta").state_dict().items()
    }
    for key, shape in expected.items():
        if shapes.get(key) != shape:
            got = f"the shape {[*shapes[key]]}" if key in shapes else "nothing"
            raise ValueError(
                f"{path.name} is {part.title} ({layout.name} layout), but has {got} where "
                f"{sources.get(key, key)} should have the shape {[*shape]}; download the file again"
            )


def _check_finite(path: Path, key: str, weight: Tensor) -> None:
    """A NaN among the weights would otherwise end as a black picture.

    The extremes show NaN and infinity at the speed of memory, so this costs a read that loading pays anyway.
    """
    low, high = torch.aminmax(weight.float() if weight.dtype == torch.float8_e4m3fn else weight)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        count = int((~torch.isfinite(weight.float())).sum())
        raise ValueError(
            f"{key} in {path.name} holds {count} values that are NaN or infinite; download the file again"
        )
