"""A model of one's own: reading and writing take any `Part`, and edit nothing for it."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from ovis_core.files import export
from ovis_core.files.checkpoint import open_checkpoint
from ovis_core.files.parts import Part, parameter_shapes
from ovis_core.files.rules import Layout, Rule


@dataclass(frozen=True)
class Config:
    size: int = 8


class Network(nn.Module):
    def __init__(self, config, device=None):
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.size, 3 * config.size, bias=False, device=device)


LAYOUT = Layout("other", "net.", (Rule(("q.weight", "k.weight", "v.weight"), ("linear.weight",)),))
PART = Part(
    title="a model of another kind",
    subfolder="other",
    file_name="model",
    marker="linear.weight",
    weight_dims=2,
    module=Network,
    from_shapes=lambda shapes, settings: Config(shapes["linear.weight"][1]),
    find_layout=lambda keys: LAYOUT if "net.q.weight" in keys else None,
    layout=lambda config, name: LAYOUT,
    settings={"folder": lambda config: {"size": config.size}},
)


@pytest.mark.parametrize("layout", ["file", "folder"])
def test_another_models_part_is_written_and_read(tmp_path, layout):
    network = Network(Config())
    path = tmp_path / ("other.safetensors" if layout == "file" else "other")
    export.save(PART, network, path, layout)
    checkpoint = open_checkpoint(path, PART)
    assert checkpoint.config == Config()
    assert torch.equal(checkpoint.module().linear.weight, network.linear.weight)
    odd = Network(Config(6))
    odd.linear.weight = nn.Parameter(torch.ones(24, 6))
    export.save(PART, odd, path, layout)
    with pytest.raises(ValueError, match="but has the shape"):
        open_checkpoint(path, PART)


def test_shapes_are_those_of_one_network_a_config():
    assert parameter_shapes(PART, Config(4)) == {"linear.weight": (12, 4)}
    assert parameter_shapes(PART, Config(4)) is parameter_shapes(PART, Config(4))
