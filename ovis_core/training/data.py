"""Turns pictures and captions into normalized latents and token ids, kept by size.

B batch, C channels, H and W latent pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..autoencoder import Autoencoder, normalize
from ..files.storage import write_tensors
from ..prompt import PromptTokenizer
from .trainer import Batch, BatchOf

Draw = Callable[[int], tuple[Image.Image, str]]  # index -> RGB picture, caption


@dataclass(frozen=True)
class Bucket:
    """Pictures of one size. latents: (N, C, H, W), float16. ids: token ids (N, L), -1 behind each caption."""

    latents: Tensor
    ids: Tensor

    def batch(self, indices: Tensor) -> Batch:
        prompts = [[token for token in row if token >= 0] for row in self.ids[indices].tolist()]
        return Batch(self.latents[indices].float(), prompts)


class LatentCache:
    """Aspect-ratio buckets of encoded pictures."""

    def __init__(self, buckets: Sequence[Bucket]):
        self.buckets = tuple(buckets)

    def batches(self, batch_size: int, seed: int) -> BatchOf:
        """Makes batches of one size each, drawn by the step alone; each picture comes as often as any."""
        counts = torch.tensor([float(len(bucket.latents)) for bucket in self.buckets])

        def batch_of(step: int) -> Batch:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            bucket = self.buckets[int(torch.multinomial(counts, 1, generator=generator))]
            return bucket.batch(torch.randint(len(bucket.latents), (batch_size,), generator=generator))

        return batch_of

    def save(self, path: Path) -> None:
        tensors = {}
        for number, bucket in enumerate(self.buckets):
            tensors |= {f"{number}.latents": bucket.latents, f"{number}.ids": bucket.ids}
        write_tensors(tensors, path)

    @classmethod
    def load(cls, path: Path) -> "LatentCache":
        tensors = load_file(path)
        numbers = range(len(tensors) // 2)
        return cls([Bucket(tensors[f"{n}.latents"], tensors[f"{n}.ids"]) for n in numbers])


def encode_pictures(
    draw: Draw,
    indices_by_size: Sequence[Sequence[int]],
    autoencoder: Autoencoder,
    tokenizer: PromptTokenizer,
    num_workers: int = 0,
    progress: Callable[[int], object] = lambda count: None,
) -> LatentCache:
    """Draws and encodes pictures; each sequence of indices has pictures of one size.

    num_workers: processes that draw beside this one. `progress` gets how many pictures were added.
    """
    weight = next(autoencoder.parameters())
    buckets = []
    for indices in indices_by_size:
        latents, ids = [], []
        for pictures, captions in drawn_batches(draw, indices, num_workers):
            with torch.no_grad():
                encoded = normalize(autoencoder.encode(pictures.to(weight.device, weight.dtype)))
            latents.append(encoded.half().cpu())
            ids += [torch.tensor(tokenizer(caption).ids, dtype=torch.int32) for caption in captions]
            progress(len(captions))
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)
        buckets.append(Bucket(torch.cat(latents), padded))
    return LatentCache(buckets)


def drawn_batches(
    draw: Draw, indices: Sequence[int], num_workers: int, batch_size: int = 64
) -> Iterator[tuple[Tensor, list[str]]]:
    """Draws pictures (B, 3, 8H, 8W) in [-1, 1] and their captions, in the order of the indices."""
    loader = DataLoader(_Drawn(draw, indices), batch_size, num_workers=num_workers)
    for pictures, captions in loader:
        yield pictures.float() / 127.5 - 1, list(captions)


class _Drawn(Dataset):
    def __init__(self, draw: Draw, indices: Sequence[int]):
        self.draw, self.indices = draw, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, str]:
        image, caption = self.draw(self.indices[position])
        return torch.from_numpy(np.array(image)).movedim(2, 0), caption
