"""Keeps what a run carries from step to step: weights, their average and the optimizer.

Nothing random is kept: what a run draws comes from a generator seeded by (seed, step), so that a run that was
stopped and resumed equals, on one device, the run that was not, bit for bit.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..files.storage import write_tensors

MAX_BAD_STEPS = 3  # in a row with a loss or gradient that is not finite, before training stops


class RunState:
    """AdamW on the parameters that want gradients, and their exponential average.

    modules: names and modules. settings: the numbers that a checkpoint must have been made with.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        settings: Mapping,
        betas: tuple[float, float],
        weight_decay: float,
        ema_decay: float,
        max_grad_norm: float,
    ):
        self.parameters = {
            f"{name}.{key}": parameter
            for name, module in modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.ema = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        sizes = {name: [*parameter.shape] for name, parameter in self.parameters.items()}
        self.fingerprint = json.dumps({**settings, "parameters": sum(map(math.prod, sizes.values()))})
        self.ema_decay, self.max_grad_norm = ema_decay, max_grad_norm
        matrices = [p for p in self.parameters.values() if p.ndim > 1]
        vectors = [p for p in self.parameters.values() if p.ndim <= 1]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=betas, weight_decay=weight_decay, fused=True)
        self.step = 0
        self.num_bad = 0

    def generator(self, seed: int) -> torch.Generator:
        """Seeds this step's generator, on the device of the parameters."""
        device = next(iter(self.parameters.values())).device
        return torch.Generator(device).manual_seed(seed * 1_000_003 + self.step)

    def update(self, loss: Tensor, lr: float) -> dict[str, float]:
        """Takes one step down the loss's gradient -> what to log of it. One that is not finite changes
        nothing.

        Raises ValueError when too many of them come in a row.
        """
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm)
        log = {"step": self.step, "loss": loss.item(), "grad_norm": norm.item(), "lr": lr}
        self.step += 1
        if not math.isfinite(log["loss"] + log["grad_norm"]):
            self.num_bad += 1
            if self.num_bad > MAX_BAD_STEPS:
                raise ValueError(
                    f"the loss or its gradient was not finite in {self.num_bad} steps in a row, up to step "
                    f"{self.step - 1}; go on from the last checkpoint with a smaller learning rate"
                )
            return log
        self.num_bad = 0
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        decay = min(self.ema_decay, self.step / (self.step + 10))  # a young average follows faster
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                self.ema[name].lerp_(parameter, 1 - decay)
        return log

    def save(self, path: Path) -> None:
        """Writes all that `load` needs to go on."""
        tensors = {"step": torch.tensor(self.step), "num_bad": torch.tensor(self.num_bad)}
        for name, parameter in self.parameters.items():
            tensors[f"weights.{name}"] = parameter.data
            tensors[f"ema.{name}"] = self.ema[name]
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        write_tensors(tensors, path, {"settings": self.fingerprint})

    def load(self, path: Path) -> None:
        """Goes on where `save` was called. Raises ValueError for a run with other settings."""
        with safe_open(path, "pt") as file:
            settings = (file.metadata() or {}).get("settings")
            if settings != self.fingerprint:
                raise ValueError(
                    f"{path.name} belongs to a run with other settings: {settings} there, "
                    f"{self.fingerprint} here; use the same settings or start anew"
                )
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, a file of tensors
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"weights.{name}"])
                self.ema[name].copy_(tensors[f"ema.{name}"])
                prefix = f"optimizer.{name}."
                self.optimizer.state[parameter] = {
                    key.removeprefix(prefix): _laid_out_as(parameter, value)
                    for key, value in tensors.items()
                    if key.startswith(prefix)
                }
        self.step, self.num_bad = int(tensors["step"]), int(tensors["num_bad"])

    def averaged(self, name: str) -> dict[str, Tensor]:
        """Gives the average weights of a module, which are what is sampled and shipped."""
        prefix = name + "."
        return {key.removeprefix(prefix): value for key, value in self.ema.items() if key.startswith(prefix)}


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """Lays an average out in memory as its parameter is, since the fused optimizer walks through both."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)  # a count of steps
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
