"""ComfyUI's prefetching for its dynamic VRAM: the weights of a block come over together, on their own stream.

Without dynamic VRAM there is nothing to do: ComfyUI's layers then take turns on streams of their own.
"""

from collections.abc import Collection, Iterator, Sequence

import comfy.model_prefetch
import torch
from torch import nn


class Prefetch:
    """Asked for the next block's weights before each block of a forward, and once behind the last."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        without: Collection[nn.Module],
        device: torch.device,
        options: dict,
    ):
        """without: layers that will not run. options: the forward's transformer_options."""
        weights = [_Weights(block, without) for block in blocks]
        self.device = device
        self.queue = comfy.model_prefetch.make_prefetch_queue(weights, device, options)

    def next(self) -> None:
        comfy.model_prefetch.prefetch_queue_pop(self.queue, self.device, None)


class _Weights:
    """A block as ComfyUI's queue sees it."""

    def __init__(self, block: nn.Module, without: Collection[nn.Module]):
        self.block, self.without = block, without

    def modules(self) -> Iterator[nn.Module]:
        return (module for module in self.block.modules() if module not in self.without)
