"""The modulation of all blocks from a table, computed once for all sigmas of a run.

It depends on sigma alone, and a fifth of the model's parameters (1.46 of 7.37 B) do nothing else. So they
are run once for a schedule, as one product a layer, and stay off the device while sampling: the patcher does
not load them, and ComfyUI's layers bring each over when it is called. The table has 476,160 values a sigma,
45 MiB for 50 steps in bfloat16, and is kept for the next run with the same schedule and the same LoRAs.

On a GPU sigma is not read (`sampling_run`): a row is looked up on the device. Where it is, rows are added as
they come.

N sigmas of a schedule, B batch, V values of a row.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from ....ovis_core.layers import Modulation, is_inference, timestep_embedding
from ....ovis_core.transformer import TIME_DIM
from .sampling_run import MAX_SIGMAS, SamplingRun


class ModulationTable:
    """Stands before the modulation layers of a network, and answers for them inside `rows_of`."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.layers = modulation_layers(network)
        self.plain = [layer.forward for layer in self.layers.values()]
        self._row: Tensor | None = None  # (B, V), of the forward that runs
        self._key: Hashable = None
        self._table = torch.empty(0)  # (N, V)
        self._added: dict[float, Tensor] = {}  # rows (1, V) of sigmas that no schedule has
        start = 0
        for layer, plain in zip(self.layers.values(), self.plain, strict=True):
            values = slice(start, start := start + layer.out_features)
            layer.forward = partial(self._answer, plain, values)

    @property
    def answered(self) -> set[nn.Module]:
        """The layers that do not run in this forward."""
        return set() if self._row is None else {*self.layers.values()}

    def forget(self) -> None:
        """Gives the table's memory back."""
        self._key, self._table, self._added = None, torch.empty(0), {}

    def _answer(self, plain: Callable[[Tensor], Tensor], values: slice, x: Tensor) -> Tensor:
        return plain(x) if self._row is None else self._row[:, values]

    @contextmanager
    def rows_of(self, run: SamplingRun | None, sigma: Tensor, dtype: torch.dtype) -> Iterator[None]:
        """sigma (B,). Without a run, with gradients and inside compiled code the layers run as always."""
        is_used = run and run.sigmas and is_inference()
        self._row = self._look_up(run, sigma, dtype) if is_used else None
        try:
            yield
        finally:
            self._row = None

    def _look_up(self, run: SamplingRun, sigma: Tensor, dtype: torch.dtype) -> Tensor | None:
        key = run.sigmas, run.weights, dtype, sigma.device
        if key != self._key:
            self.forget()
            self._table = self._compute(run.sigmas, dtype, sigma.device)
            self._sigmas = torch.tensor(run.sigmas, dtype=sigma.dtype, device=sigma.device)
            self._key = key
        if not run.is_read:
            distance = (self._sigmas - sigma[:, None]).abs()  # (B, N)
            run.watch(distance.amin(1).any())
            return self._table.index_select(0, distance.argmin(1))
        rows = [self._read_row(value, dtype, sigma.device) for value in sigma.tolist()]
        return None if any(row is None for row in rows) else torch.cat(rows)

    def _read_row(self, sigma: float, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """(1, V), or None where the table is full."""
        if sigma in self._key[0]:
            return self._table[self._key[0].index(sigma)][None]
        if sigma not in self._added and len(self._table) + len(self._added) < MAX_SIGMAS:
            self._added[sigma] = self._compute((sigma,), dtype, device)
        return self._added.get(sigma)

    def _compute(self, sigmas: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
        """-> (N, V), one layer's weights after the other."""
        times = timestep_embedding(torch.tensor(sigmas, device=device), TIME_DIM)
        x = functional.silu(self.network.time_in(times.to(dtype)))
        return torch.cat([plain(x) for plain in self.plain], dim=1)


def modulation_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The linears that take the time vector alone, by their names."""
    layers = {
        f"{name}.lin": module.lin
        for name, module in network.named_modules()
        if isinstance(module, Modulation)
    }
    return layers | {"final_layer.adaLN_modulation.1": network.final_layer.adaLN_modulation[1]}
