"""The three parts -> files in the layouts that others read: the authors', diffusers' and ComfyUI's."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..autoencoder import Autoencoder
from ..text_encoder import TextEncoder
from ..transformer import OvisImageTransformer
from .layouts import (
    TEXT_ENCODER_PREFIXES,
    Rule,
    autoencoder_rules,
    diffusers_transformer_rules,
    flux_transformer_rules,
    text_encoder_rules,
)
from .storage import write_folder, write_json, write_tensors

MAX_SHARD_BYTES = 10 * 10**9


def save_transformer(
    model: OvisImageTransformer, path: Path, layout: str, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes one file (`layout` authors or comfyui) or diffusers' folder with config.json."""
    config, state = model.config, model.state_dict()
    if layout == "diffusers":
        single_rows = (config.hidden_size,) * 3 + (2 * config.mlp_size,)
        rules = diffusers_transformer_rules(config.depth, config.depth_single_blocks, single_rows)
        write_folder(unconvert(state, rules), path, "diffusion_pytorch_model", max_shard_bytes)
        write_json(config.to_diffusers(), path / "config.json")
        return
    text = {"authors": "semantic_txt", "comfyui": "txt"}[layout]
    write_tensors(
        unconvert(state, flux_transformer_rules(config.depth, config.depth_single_blocks, text)), path
    )


def save_text_encoder(
    model: TextEncoder, path: Path, layout: str, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes a folder with config.json (`layout` authors or diffusers) or one file (comfyui)."""
    rules = text_encoder_rules(model.config.num_layers)
    prefix = TEXT_ENCODER_PREFIXES[layout]
    tensors = {prefix + key: tensor for key, tensor in unconvert(model.state_dict(), rules).items()}
    if layout == "comfyui":
        write_tensors(tensors, path)
        return
    write_folder(tensors, path, "model", max_shard_bytes)
    config = model.config.to_transformers().to_dict() | {"architectures": ["Qwen3Model"]}
    write_json({"llm_config": config} if layout == "authors" else config, path / "config.json")


def save_autoencoder(model: Autoencoder, path: Path, layout: str) -> None:
    """Writes one file (`layout` flux: the authors' and ComfyUI's) or diffusers' folder with config.json."""
    config = model.config
    rules = autoencoder_rules(len(config.channels), config.num_res_blocks, diffusers=layout == "diffusers")
    tensors = unconvert(model.state_dict(), rules)
    if layout == "diffusers":
        write_folder(tensors, path, "diffusion_pytorch_model", MAX_SHARD_BYTES)
        write_json(config.to_diffusers(), path / "config.json")
        return
    write_tensors(tensors, path)


def unconvert(tensors: Mapping[str, Tensor], rules: Iterable[Rule]) -> dict[str, Tensor]:
    """Our tensors -> a file's; the inverse of `convert`."""
    converted = {}
    for rule in rules:
        if rule.optional and rule.targets[0] not in tensors:
            continue
        rows = torch.cat([tensors[target] for target in rule.targets])
        if rule.swapped:
            rows = torch.cat(rows.chunk(2)[::-1])
        if rule.linear:
            rows = rows[..., 0, 0]
        shares = rows.split(rule.source_rows) if rule.source_rows else rows.chunk(len(rule.sources))
        converted.update(zip(rule.sources, shares, strict=True))
    return converted
