"""Writes a network as a file or folder in a layout that others read."""

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from .parts import ConfigT, Part
from .rules import unconvert
from .storage import write_folder, write_json, write_tensors

MAX_SHARD_BYTES = 10 * 10**9


class Network(Protocol[ConfigT]):
    """A module with the config that it was made from."""

    config: ConfigT

    def state_dict(self) -> dict[str, Tensor]: ...


def save(
    part: Part[ConfigT, Any],
    network: Network[ConfigT],
    path: Path,
    layout: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes one file, or a folder with a config.json where the layout needs it."""
    form = part.layout(network.config, layout)
    state = unconvert(network.state_dict(), form.rules)
    tensors = {form.prefix + key: tensor for key, tensor in state.items()}
    if layout not in part.settings:
        write_tensors(tensors, path)
        return
    write_folder(tensors, path, part.file_name, max_shard_bytes)
    write_json(part.settings[layout](network.config), path / "config.json")
