"""Ovis-Image Nano: the architecture with small numbers, trained from nothing on synthetic typography.

python3 -m ovis_core.training.nano --out FOLDER [--device cuda] [--minutes M]

Stages, each kept in FOLDER/work when it is done: the autoencoder, encoded pictures, the MMDiT with its text
encoder, the decoder once more. The same command goes on where a stopped run was. FOLDER/Ovis-Image-Nano is
the model so far, in diffusers' layout and bfloat16.
"""

import argparse
import dataclasses
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from ...autoencoder import AttentionBlock, Autoencoder, AutoencoderConfig, ResBlock
from ...blocks import call_block
from ...drawing.fonts import StyledFaces
from ...files import parts as file_parts
from ...files.export import save
from ...layers import Modulation
from ...pipeline import Pipeline
from ...prompt import PromptTokenizer
from ...text_encoder import TextEncoder, TextEncoderConfig
from ...transformer import OvisImageTransformer, TransformerConfig
from ...typography.captions import caption_characters
from ...typography.rendering import Renderer
from ...typography.settings import Typography
from ..data import LatentCache, drawn_batches, encode_pictures
from ..flow import FlowLoss, checkpointed
from ..report import Log, draw_curve, save_samples
from ..state import RunState
from ..trainer import TrainConfig, Trainer
from .autoencoder import AutoencoderTrainConfig, balance_latents, train_autoencoder
from .letters import write_letter_tokenizer

NAME = "Ovis-Image-Nano"
TRANSFORMER = TransformerConfig(
    hidden_size=192,
    num_heads=3,
    depth=1,
    depth_single_blocks=5,
    context_dim=192,
    mlp_size=768,
    axes_dim=(8, 28, 28),
)
TEXT_ENCODER = TextEncoderConfig(
    hidden_size=192, num_layers=2, num_heads=3, num_kv_heads=3, head_dim=64, intermediate_size=512
)
# Norms of few groups: those of two channels, which 32 groups make, lose what colour a flat picture has.
AUTOENCODER = AutoencoderConfig(channels=(64, 64, 64, 128), num_res_blocks=1, norm_groups=8)


@dataclass(frozen=True)
class Recipe:
    """How large the networks are, and how much of everything."""

    transformer: TransformerConfig = TRANSFORMER
    text_encoder: TextEncoderConfig = TEXT_ENCODER
    autoencoder_config: AutoencoderConfig = AUTOENCODER
    typography: Typography = Typography()
    num_pictures: int = 400_000
    autoencoder: AutoencoderTrainConfig = AutoencoderTrainConfig(steps=6000)
    autoencoder_batch: int = 32
    autoencoder_crop: int = 128  # pixels of the pictures' parts that it is shown, whole ones at the end
    decoder: AutoencoderTrainConfig | None = None  # its decoder once more, when all the rest is done
    train: TrainConfig = TrainConfig(steps=40_000, warmup_steps=500)
    batch_size: int = 512
    gradient_checkpointing: bool = False  # less memory, a third more time
    compiled: bool = False  # the blocks by torch.compile, which needs a C++ compiler: a third faster on a CPU
    save_every: int = 2000
    samples: int = 16  # pictures of a sample sheet
    sample_steps: int = 20
    sample_cfg: float = 4.0


# What two CPU cores do in two hours: words of two to six capital letters and of two or three Chinese
# characters, one font each, on a grid of the size of the MMDiT's image tokens.
CPU_RECIPE = Recipe(
    transformer=dataclasses.replace(TRANSFORMER, depth_single_blocks=4, mlp_size=512),
    autoencoder_config=AutoencoderConfig(channels=(16, 32, 64, 128), num_res_blocks=1, norm_groups=2),
    typography=Typography(
        languages={"en": 0.6, "zh": 0.4},
        kinds={"character": 0.05, "letters": 0.5, "word": 0.45},
        lengths=(2, 6),
        chinese_lengths=(2, 3),
        num_characters=64,
        cases={"upper": 1.0},
        digits=0.0,
        punctuation=0.0,
        num_colours=8,
        backgrounds={"plain": 1.0},
        positions={"left": 1.0},
        grid_sizes={"en": 27, "zh": 32},  # letters then advance by 16 pixels
        styles={"mono": 1.0},
        chinese_styles={"bold": 1.0},
        max_faces=1,
        short_captions=1.0,
        short_forms=1,  # in which the text comes first: a letter's place in both is the same
        crossed_captions=0.0,
    ),
    num_pictures=30_000,
    autoencoder=AutoencoderTrainConfig(steps=1200),
    autoencoder_batch=16,
    autoencoder_crop=64,
    decoder=AutoencoderTrainConfig(steps=3000, seed=1, warmup_steps=20),
    train=TrainConfig(
        steps=4_500,
        warmup_steps=200,
        decay="linear end",
        restarts=(2_500,),
        bf16=False,
        context_tokens=46,
    ),
    batch_size=64,
    compiled=True,
    save_every=250,
    samples=8,
)


class OutOfTime(Exception):
    """The minutes that were given are over; what was reached is saved."""


class NanoRun:
    """The stages of a run in a folder."""

    def __init__(
        self,
        out: Path,
        recipe: Recipe,
        device: str,
        deadline: float,
        num_workers: int,
        faces: StyledFaces | None = None,
    ):
        self.recipe, self.device, self.deadline, self.num_workers = recipe, device, deadline, num_workers
        self.model, self.work = out / NAME, out / "work"
        (self.work / "samples").mkdir(parents=True, exist_ok=True)
        # Not a method: other processes get it, and must not get the networks with it.
        self.draw = partial(draw, Renderer(recipe.typography, faces), recipe.train.seed)
        self.held_out = Renderer(recipe.typography, faces, held_out=True)
        self.num_sizes = len(recipe.typography.sizes)
        # Of those for the autoencoder, behind the ones that the MMDiT sees.
        self.first_picture = max(recipe.num_pictures, 400_000)
        size = write_letter_tokenizer(self.model / "tokenizer", caption_characters())
        self.tokenizer = PromptTokenizer.from_folder(self.model / "tokenizer", size)

        torch.manual_seed(recipe.train.seed)
        self.autoencoder = Autoencoder(recipe.autoencoder_config).to(device)
        self.autoencoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.transformer = OvisImageTransformer(recipe.transformer).to(device)
        self.text_encoder = TextEncoder(dataclasses.replace(recipe.text_encoder, vocab_size=size)).to(device)
        init_autoencoder(self.autoencoder)
        init_weights(self.transformer, self.text_encoder)

    def run(self) -> None:
        self.make_autoencoder()
        self.train(self.make_cache())
        self.improve_decoder()

    def make_autoencoder(self) -> None:
        recipe, done = self.recipe.autoencoder, self.work / "autoencoder.safetensors"
        pictures_of = partial(self.pictures_of, {}, self.first_picture, int(0.8 * recipe.steps))
        state, steps = train_autoencoder(self.autoencoder, pictures_of, recipe)
        if done.is_file():
            state.load(done)
        self.follow(state, steps, recipe.steps, done, "autoencoder")
        if state.step == recipe.steps:
            use_average(self.autoencoder, state, "autoencoder")
            indices = range(self.first_picture - 256 * self.num_sizes, self.first_picture, self.num_sizes)
            batches = drawn_batches(self.draw, indices, self.num_workers)
            balance_latents(self.autoencoder, torch.cat([b for b, _ in batches]).to(self.device))
            self.save_autoencoder()

    def improve_decoder(self) -> None:
        """Trains the decoder alone, for the latents as they now are."""
        recipe, done = self.recipe.decoder, self.work / "decoder.safetensors"
        if recipe is None:
            return
        self.autoencoder.decoder.requires_grad_(True)
        first = self.first_picture + self.recipe.autoencoder.steps * self.recipe.autoencoder_batch
        state, steps = train_autoencoder(self.autoencoder, partial(self.pictures_of, {}, first, 0), recipe)
        if done.is_file():
            state.load(done)
        self.follow(state, steps, recipe.steps, done, "decoder")
        use_average(self.autoencoder, state, "autoencoder")
        self.save_autoencoder()

    def pictures_of(
        self, drawn: dict[int, torch.Tensor], first: int, cropped: int, step: int
    ) -> torch.Tensor:
        """Gives a step's pictures for the autoencoder, parts of them in the first `cropped` steps.

        drawn: those of some steps, kept here, so that processes draw ahead. first: number of the first one.
        """
        count, sizes = self.recipe.autoencoder_batch, self.num_sizes
        if step not in drawn:
            start = first + step * count * sizes
            indices = range(start, start + 50 * count * sizes, sizes)
            batches = drawn_batches(self.draw, indices, self.num_workers, count)
            drawn.clear()
            drawn.update((step + i, pictures) for i, (pictures, _) in enumerate(batches))
        if step < cropped:
            return crop(drawn[step], self.recipe.autoencoder_crop, step)
        # Whole pictures, fewer of them: statistics of norms and attention as they will be.
        share = self.recipe.autoencoder_crop**2 / drawn[step][0, 0].numel()
        return drawn[step][: math.ceil(count * min(1.0, share))]

    def save_autoencoder(self) -> None:
        save(file_parts.AUTOENCODER, self.autoencoder.bfloat16(), self.model / "vae", "diffusers")
        self.autoencoder.float().requires_grad_(False)

    def make_cache(self) -> LatentCache:
        path = self.work / "pictures.safetensors"
        if path.is_file():
            return LatentCache.load(path)
        indices = [range(first, self.recipe.num_pictures, self.num_sizes) for first in range(self.num_sizes)]
        with tqdm(total=self.recipe.num_pictures, desc="pictures", unit="picture") as bar:
            cache = encode_pictures(
                self.draw, indices, self.autoencoder, self.tokenizer, self.num_workers, bar.update
            )
        cache.save(path)
        return cache

    def train(self, cache: LatentCache) -> None:
        recipe = self.recipe
        batches = cache.batches(recipe.batch_size, recipe.train.seed)
        empty = self.tokenizer("").ids
        run = checkpointed if recipe.gradient_checkpointing else call_block
        run = torch.compile(run) if recipe.compiled else run
        loss = FlowLoss(self.transformer, self.text_encoder, empty, recipe.train, run)
        modules = {"transformer": self.transformer, "text_encoder": self.text_encoder}
        trainer = Trainer(modules, loss, batches, recipe.train)
        path = self.work / "state.safetensors"
        if path.is_file():
            trainer.state.load(path)
        self.follow(trainer.state, trainer.train(), recipe.train.steps, path, "transformer")

    def follow(self, state: RunState, steps: Iterator[dict], total: int, path: Path, stage: str) -> None:
        """Runs steps with a bar and a log, and saves now and then and at the end of the time."""
        log = Log(self.work / f"{stage}.jsonl")
        log.cut(state.step)
        with tqdm(total=total, initial=state.step, desc=stage, unit="step") as bar:
            for entry in steps:
                log.write(entry)
                bar.set_postfix(loss=f"{entry['loss']:.4f}", refresh=False)
                bar.update()
                is_over = time.monotonic() > self.deadline
                if is_over or state.step % self.recipe.save_every == 0 or state.step == total:
                    state.save(path)
                    draw_curve(log, self.work / f"{stage}.png")
                    if stage == "transformer":
                        self.export(state)
                if is_over and state.step < total:
                    raise OutOfTime

    def export(self, state: RunState) -> None:
        """Writes the average so far as a model, and a sheet of its pictures of words that are held out."""
        parts = OvisImageTransformer(self.recipe.transformer), TextEncoder(self.text_encoder.config)
        for part, name in zip(parts, ("transformer", "text_encoder"), strict=True):
            use_average(part, state, name)
            part.to(self.device)
        pipeline = Pipeline(self.tokenizer, parts[1], parts[0], self.autoencoder)
        captions = [self.held_out(0, index).caption for index in range(self.recipe.samples)]
        width, height = self.recipe.typography.sizes[0]
        images = [
            pipeline(
                caption,
                width=width,
                height=height,
                steps=self.recipe.sample_steps,
                cfg=self.recipe.sample_cfg,
                seed=seed,
            )
            for seed, caption in enumerate(captions)
        ]
        save_samples(torch.cat(images), captions, self.work / "samples" / f"{state.step:07}.png")
        save(file_parts.TRANSFORMER, parts[0].bfloat16(), self.model / "transformer", "diffusers")
        save(file_parts.TEXT_ENCODER, parts[1].bfloat16(), self.model / "text_encoder", "diffusers")


def draw(renderer: Renderer, seed: int, index: int) -> tuple[Image.Image, str]:
    """Draws a picture and its caption."""
    example = renderer(seed, index)
    return example.image, example.caption


def init_weights(transformer: OvisImageTransformer, text_encoder: TextEncoder) -> None:
    """Blocks start as the identity and the velocity as 0 (adaLN-Zero, arXiv 2212.09748)."""
    for module in (*transformer.modules(), *text_encoder.modules()):
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    blocks = [*transformer.double_blocks, *transformer.single_blocks]
    modulations = [m.lin for block in blocks for m in block.modules() if isinstance(m, Modulation)]
    last = transformer.final_layer
    for linear in (*modulations, last.adaLN_modulation[1], last.linear):
        nn.init.zeros_(linear.get_parameter("weight"))


def init_autoencoder(autoencoder: Autoencoder) -> None:
    """Residual blocks start as the identity."""
    for module in autoencoder.modules():
        if isinstance(module, ResBlock | AttentionBlock):
            last = "conv2" if isinstance(module, ResBlock) else "proj_out"
            nn.init.zeros_(module.get_parameter(f"{last}.weight"))
            nn.init.zeros_(module.get_parameter(f"{last}.bias"))


def crop(pictures: torch.Tensor, side: int, seed: int) -> torch.Tensor:
    """Cuts a part out of (B, 3, H, W), at most `side` pixels each way, somewhere."""
    generator = torch.Generator().manual_seed(seed)
    for axis in (2, 3):
        extent = min(side, pictures.shape[axis])
        start = int(torch.randint(pictures.shape[axis] - extent + 1, (), generator=generator))
        pictures = pictures.narrow(axis, start, extent)
    return pictures


def use_average(module: nn.Module, state: RunState, name: str) -> None:
    module.load_state_dict(module.state_dict() | state.averaged(name))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python3 -m ovis_core.training.nano",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="save and stop after these")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that draw pictures")
    args = parser.parse_args()
    recipe = CPU_RECIPE if args.device == "cpu" else Recipe()
    deadline = time.monotonic() + 60 * args.minutes
    try:
        NanoRun(args.out, recipe, args.device, deadline, args.workers).run()
    except OutOfTime:
        parser.exit(message="The time is over; the same command goes on.\n")
