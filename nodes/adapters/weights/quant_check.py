"""Measures the error of a quantised MODEL's layers against a reference, on random inputs."""

import comfy.model_management
import torch
from torch import Tensor, nn

from ..network.transformer import network_of

NUM_ROWS = 64  # the number of random inputs to each layer
SEED = 0


def check_layers(model, reference, num_shown: int) -> str:
    """Tables the relative error of each linear layer's output, worst first; 0 shows all layers.

    Each layer computes as it does while sampling, LoRAs included, on the same normal random numbers. Raises
    ValueError when a MODEL is not Ovis-Image, or the two differ in size.
    """
    network, other_network = (network_of(m, "this node compares the layers") for m in (model, reference))
    if network.config != other_network.config:
        raise ValueError(
            f"the model is {network.config}, the reference {other_network.config}; connect the same model in "
            "two formats"
        )
    comfy.model_management.load_models_gpu([model, reference])
    rows = []
    others = _linears(other_network)
    for name, layer in _linears(network).items():
        error = _error(_output(model, layer), _output(reference, others[name]))
        rows.append((error, name, kind_of(layer.weight), layer.weight.nbytes / 2**20))
    rows.sort(key=lambda row: (-row[0], row[1]))
    errors = [row[0] for row in rows]
    shown = rows[: num_shown or len(rows)]
    lines = [
        f"{len(rows)} layers: largest error {errors[0]:.2e}, mean {sum(errors) / len(errors):.2e}, "
        f"{sum(error == 0 for error in errors)} exact",
        "",
        "| error | layer | weight | MiB |",
        "|---|---|---|---|",
        *(f"| {error:.2e} | {name} | {kind} | {size:.2f} |" for error, name, kind, size in shown),
    ]
    return "\n".join(lines)


def kind_of(weight: Tensor) -> str:
    """Names the dtype of a weight, or the format of a quantised one."""
    if not hasattr(weight, "_params"):
        return str(weight.dtype).removeprefix("torch.")
    return getattr(weight._params, "block_format", None) or str(weight._qdata.dtype).removeprefix("torch.")


def _linears(network: nn.Module) -> dict[str, nn.Module]:
    return {
        name: layer
        for name, layer in network.named_modules()
        if hasattr(layer, "in_features") and hasattr(layer, "weight")
    }


def _output(model, layer: nn.Module) -> Tensor:
    """Computes (rows, columns) without the bias, which would hide the error of a small product."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(NUM_ROWS, layer.in_features, generator=generator)
    x = x.to(model.load_device, model.model.get_dtype_inference())
    out = layer(x).float()
    return out if layer.bias is None else out - layer(torch.zeros_like(x[:1])).float()


def _error(got: Tensor, expected: Tensor) -> float:
    return ((got - expected.to(got.device)).norm() / expected.norm().clamp(min=1e-30)).item()
