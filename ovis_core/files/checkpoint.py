"""Recognises a checkpoint, a file or folder, by its headers, and reads its weights strictly."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from .dequantize import dequantize
from .gguf import map_gguf, read_gguf_header
from .layouts import looks_like
from .parts import ConfigT, ModuleT, Part, Shapes, parameter_shapes
from .quantized import (
    TORCH_DTYPES,
    QuantMetadata,
    block_formats,
    check_blocks,
    check_dtypes,
    check_scales,
    check_unrotated,
    scales_of,
    split_metadata,
)
from .rules import Layout, Rule, convert
from .storage import TensorInfo, check_index, model_files, read_headers, read_json

T = TypeVar("T")

GGUF = ".gguf"


class Stamp(NamedTuple):
    """The properties of a file that show whether it was replaced."""

    size: int
    modified: int  # nanoseconds
    inode: int


@dataclass(frozen=True)
class Checkpoint(Generic[ConfigT, ModuleT]):
    """A file or folder whose headers passed the checks: right part, right tensors, right shapes."""

    part: Part[ConfigT, ModuleT]
    path: Path
    layout: Layout
    config: ConfigT
    files: tuple[Path, ...]
    stamps: tuple[Stamp, ...]  # of the files when their headers were read
    headers: Mapping[str, TensorInfo]  # {name in the file: what its header says}
    dtype: torch.dtype  # of most weights, once dequantised
    block_formats: Mapping[str, str]  # {name of ours: GGML's name of the format}

    def read(
        self,
        load: Callable[[str], Mapping[str, Tensor]] = load_file,
        keep_quantized: bool = False,
        dtype: torch.dtype = torch.bfloat16,
    ) -> dict[str, Tensor]:
        """Reads the weights under our names, in the dtypes of the file, on the CPU.

        `load` reads one safetensors file (ComfyUI has its own). Quantised weights are dequantised to `dtype`.
        With `keep_quantized` they stay: scaled ones with their quantisation metadata, under the file's
        endings, GGUF's as rows of bytes in `block_formats`. Raises ValueError when the file has changed
        since its header was checked, or holds NaN or infinity.
        """
        weights, metadata = split_metadata(_strip(self._load(load), self.layout.prefix, self.part.ignored))
        scales = scales_of(metadata)
        for key, tensor in weights.items():
            if tensor.is_floating_point():
                _check_finite(self.path, key, tensor)
        check_scales(self.path, scales)

        kept = self._under_our_names(metadata) if keep_quantized else None
        if kept is None:
            for key, scale in scales.items():
                check_unrotated(self.path, key, metadata)
                weights[key] = (weights[key].float() * scale.float()).to(dtype)
        converted = convert(weights, self.layout.rules)
        check_blocks(self.path, converted, self.block_formats)
        if kept is not None:
            return converted | kept
        for key, name in self.block_formats.items():
            converted[key] = dequantize(converted[key], name, dtype)
        return converted

    def module(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> ModuleT:
        """Builds the network with its weights in one dtype, by default the file's main one."""
        if dtype is None:
            dtype = torch.bfloat16 if self.dtype == torch.float8_e4m3fn else self.dtype
        module = self.part.module(self.config, device="meta")
        state = {key: tensor.to(device, dtype) for key, tensor in self.read(dtype=dtype).items()}
        module.load_state_dict(state, strict=True, assign=True)
        return module.to(device).eval().requires_grad_(False)

    def _load(self, load: Callable[[str], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Loads the tensors of all files. Raises ValueError when a file changed after its header was read."""
        tensors: dict[str, Tensor] = {}
        self._check_unchanged()  # before bytes are mapped by the headers
        for file in self.files:
            tensors.update(map_gguf(file, self.headers) if _is_gguf(file) else load(str(file)))
        self._check_unchanged()
        return tensors

    def _check_unchanged(self) -> None:
        if _stamps(self.files) != self.stamps:
            raise ValueError(f"{self.path.name} changed while it was being read; load it again")

    def _under_our_names(self, metadata: QuantMetadata[Tensor]) -> dict[str, Tensor] | None:
        """Renames the layers of the metadata; None when the layout joins or cuts one of them."""
        layers = {
            rule.sources[0].removesuffix(".weight"): rule.targets[0].removesuffix(".weight")
            for rule in self.layout.rules
            if not _is_fused(rule)
        }
        if not all(layer in layers for layer, _ in metadata if layer):
            return None
        return {(layers[layer] + end if layer else end): value for (layer, end), value in metadata.items()}


def open_checkpoint(path: str | Path, part: Part[ConfigT, ModuleT]) -> Checkpoint[ConfigT, ModuleT]:
    """Checks headers, and reads no weights. `path`: a file, the folder of one part, or a whole pipeline's.

    Raises ValueError in one sentence when the file is damaged or another model, or when a tensor is missing,
    unexpected or of the wrong shape.
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
    weights, metadata = split_metadata(_strip(infos, layout.prefix, part.ignored))
    scales = scales_of(metadata)
    check_dtypes(path, weights, scales)
    _check_names(path, part, layout, weights.keys())
    _check_dimensions(path, part, layout, weights)
    # The same conversion as for the weights, on tensors without data.
    hollow = {key: torch.empty(info.shape, device="meta") for key, info in weights.items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in convert(hollow, layout.rules, path.name).items()}
    config_file = path / "config.json"
    try:
        config = part.from_shapes(shapes, read_json(config_file) if config_file.is_file() else settings)
    except ValueError as error:
        raise ValueError(f"{path.name} is {part.title}, but {error}") from None
    _check_shapes(path, part, layout, shapes, parameter_shapes(part, config))

    sizes: Counter[str] = Counter()
    for info in weights.values():
        sizes[info.dtype] += math.prod(info.shape)
    formats = block_formats(path, layout, weights)
    dtype = torch.bfloat16 if scales or formats else TORCH_DTYPES[sizes.most_common(1)[0][0]]
    return Checkpoint(part, path, layout, config, files, stamps, infos, dtype, formats)


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == GGUF


def _read_headers(files: tuple[Path, ...]) -> tuple[dict[str, TensorInfo], dict]:
    """Reads all headers, and from a GGUF file the settings of its language model, like a config.json."""
    if not _is_gguf(files[0]):
        return read_headers(files), {}
    infos, metadata = read_gguf_header(files[0])
    family = metadata.get("general.architecture")
    names = {"rope_theta": "rope.freq_base", "rms_norm_eps": "attention.layer_norm_rms_epsilon"}
    settings = {ours: metadata.get(f"{family}.{theirs}") for ours, theirs in names.items()}
    return infos, {key: value for key, value in settings.items() if value is not None}


def _stamps(files: Iterable[Path]) -> tuple[Stamp, ...]:
    stats = (file.stat() for file in files)
    return tuple(Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in stats)


def _strip(tensors: Mapping[str, T], prefix: str, ignored: tuple[str, ...]) -> dict[str, T]:
    """Removes the layout's prefix and other parts' tensors; names without the prefix stay as they are."""
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


def _check_shapes(path: Path, part: Part, layout: Layout, shapes: Shapes, expected: Shapes) -> None:
    """Compares a file's shapes with those of the network that its config describes."""
    sources = {target: " + ".join(rule.sources) for rule in layout.rules for target in rule.targets}
    for key, shape in expected.items():
        if shapes.get(key) != shape:
            got = f"the shape {[*shapes[key]]}" if key in shapes else "nothing"
            raise ValueError(
                f"{path.name} is {part.title} ({layout.name} layout), but has {got} where "
                f"{sources.get(key, key)} should have the shape {[*shape]}; download the file again"
            )


def _check_finite(path: Path, key: str, weight: Tensor) -> None:
    """Raises ValueError for NaN or infinity, which would otherwise end as a black picture.

    Minimum and maximum show both at the speed of memory, so this costs only a read that loading pays anyway.
    """
    low, high = torch.aminmax(weight.float() if weight.dtype == torch.float8_e4m3fn else weight)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        count = int((~torch.isfinite(weight.float())).sum())
        raise ValueError(
            f"{key} in {path.name} holds {count} values that are NaN or infinite; download the file again"
        )
