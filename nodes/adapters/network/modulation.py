"""The modulation of all blocks from a table, computed once for all sigmas of a run.

It depends on sigma alone, and a fifth of the model's parameters (1.46 of 7.37 B) do nothing else. So they
are run once for a schedule, as one product a layer, and stay off the device while sampling: the patcher does
not load them, and ComfyUI's layers bring each over when it is called. The table has 476,160 values a sigma,
45 MiB for 50 steps in bfloat16, and is kept for the next run with the same schedule and the same LoRAs.

N sigmas of a schedule, B batch, V values of a row.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn
from torch.nn import functional

from ....ovis_core.layers import timestep_embedding
from ....ovis_core.lean_blocks import is_inference
from ....ovis_core.transformer import TIME_DIM

SCHEDULE = "ovis_schedule"  # in a run's transformer_options
MAX_SIGMAS = 256  # of a table; their modulation takes 233 MiB in bfloat16


@dataclass(frozen=True)
class Schedule:
    """What is known of a sampling run before it begins.

    sigmas: what the network gets, each once. weights: equal where its layers give the same. network: the one
    whose run it is.
    """

    sigmas: tuple[float, ...]
    weights: Hashable
    network: nn.Module


def follow_runs(patcher) -> None:
    """Tells the network of a MODEL, and of its clones, the schedule of every sampling run."""
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, SCHEDULE, _sample)


def _sample(
    executor, noise: Tensor, latent_image: Tensor, sampler, sigmas: Tensor, *args, **kwargs
) -> Tensor:
    """Runs a guider, whose options are this run's own copy, with its schedule in them."""
    guider = executor.class_obj
    patcher, options = guider.model_patcher, guider.model_options["transformer_options"]
    steps = patcher.get_model_object("model_sampling").timestep(sigmas).tolist()
    # Hooks and weight wrappers change weights within a run; what replaces a layer is another node's.
    is_changing = patcher.hook_patches or patcher.weight_wrapper_patches
    if len(steps) > MAX_SIGMAS or is_changing or any(map(replaces_layers, patcher.object_patches)):
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    injections = (injection for group in patcher.injections.values() for injection in group)
    options[SCHEDULE] = Schedule(
        tuple(sorted({sigma for sigma in steps if sigma > 0})),
        (patcher.patches_uuid, *injections),  # ComfyUI's bypass mode injects LoRAs, and patches nothing
        patcher.model.diffusion_model,
    )
    try:
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    finally:
        del options[SCHEDULE]


def replaces_layers(name: str) -> bool:
    """Tells whether an object patch of that name may replace a layer of the network."""
    return name.split(".")[0] == "diffusion_model"


class ModulationTable:
    """The rows of a network's modulation layers, for the sigmas of the last schedule."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.layers = modulation_layers(network)
        self._places: dict[nn.Module, slice] = {}  # of a block's values in a row
        self._key: Hashable = None
        self._rows: dict[float, Tensor] = {}  # (1, V) each
        begin = 0
        for name, layer in self.layers.items():
            block = network.get_submodule(name.rsplit(".", 2)[0])
            first = self._places[block].start if block in self._places else begin
            begin += layer.out_features
            self._places[block] = slice(first, begin)

    def forget(self) -> None:
        """Gives the table's memory back."""
        self._key, self._rows = None, {}

    def rows(self, schedule: Schedule | None, sigma: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The rows (B, V) of sigma (B,), which is read from the device; None where the layers are to run.

        A sigma that the schedule lacks gets a row of its own while there is room.
        """
        if not is_inference() or schedule is None or schedule.network is not self.network:
            return None
        if not schedule.sigmas:
            return None
        key = schedule, dtype, sigma.device
        if key != self._key:
            self.forget()
            self._add(schedule.sigmas, dtype, sigma.device)
            self._key = key
        wanted = sigma.tolist()
        missing = sorted({value for value in wanted if value not in self._rows})
        if len(self._rows) + len(missing) > MAX_SIGMAS:
            return None
        if missing:
            self._add(missing, dtype, sigma.device)
        return torch.cat([self._rows[value] for value in wanted])

    def part(self, rows: Tensor, block: nn.Module) -> Tensor:
        """The values of one block: (B, V) -> (B, its values)."""
        return rows[:, self._places[block]]

    def _add(self, sigmas: Sequence[float], dtype: torch.dtype, device: torch.device) -> None:
        """Makes the rows of sigmas, one layer's weights after the other."""
        times = timestep_embedding(torch.tensor(sigmas, device=device), TIME_DIM)
        x = functional.silu(self.network.time_in(times.to(dtype)))
        table = torch.cat([layer(x) for layer in self.layers.values()], dim=1)  # (N, V)
        self._rows |= dict(zip(sigmas, table.split(1), strict=True))


def modulation_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The linears that take the time vector alone, by their names and in the order of the blocks."""
    layers = {}
    for i, block in enumerate(network.double_blocks):
        layers[f"double_blocks.{i}.img_mod.lin"] = block.img_mod.lin
        layers[f"double_blocks.{i}.txt_mod.lin"] = block.txt_mod.lin
    for i, block in enumerate(network.single_blocks):
        layers[f"single_blocks.{i}.modulation.lin"] = block.modulation.lin
    layers["final_layer.adaLN_modulation.1"] = network.final_layer.adaLN_modulation[1]
    return layers
