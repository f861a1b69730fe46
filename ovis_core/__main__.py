"""Makes one picture without ComfyUI: `python3 -m ovis_core --model FOLDER --prompt TEXT --out FILE.png`."""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .files.storage import replacing
from .pipeline import load_pipeline
from .sampling import SOLVERS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def main() -> None:
    """Reads the command line, makes the picture and writes it."""
    parser = argparse.ArgumentParser(
        prog="python3 -m ovis_core", description="Ovis-Image: a prompt to a PNG file."
    )
    parser.add_argument(
        "--model", required=True, type=Path, help="diffusers folder, or folder with the authors' files"
    )
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--out", required=True, type=Path, help="the PNG file to write")
    parser.add_argument(
        "--negative-prompt", default="", help="what guidance leads away from (default: the empty prompt)"
    )
    parser.add_argument("--width", type=int, default=1024, help="pixels, floored to a multiple of 16")
    parser.add_argument("--height", type=int, default=1024, help="pixels, floored to a multiple of 16")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument(
        "--cfg", type=float, default=5.0, help="guidance scale; 1 is no guidance, at half the time"
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--sampler", choices=SOLVERS, default="euler")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: as the files are stored")
    args = parser.parse_args()

    if not args.out.absolute().parent.is_dir():
        sys.exit(f"error: the folder of --out does not exist: {args.out.absolute().parent}")

    try:
        image = run(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    pixels = (image[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    with replacing(args.out) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
    tqdm.write(str(args.out))


def run(args: argparse.Namespace) -> Tensor:
    """Runs the pipeline with a progress bar -> image (1, 3, height, width) in [0, 1]."""
    pipeline = load_pipeline(args.model, args.device, DTYPES.get(args.dtype))
    with tqdm(total=args.steps, unit="step") as bar:

        def advance(step: int, denoised: Tensor) -> None:
            bar.update()

        return pipeline(
            args.prompt,
            args.negative_prompt,
            width=args.width,
            height=args.height,
            steps=args.steps,
            cfg=args.cfg,
            seed=args.seed,
            sampler=args.sampler,
            callback=advance,
        )


if __name__ == "__main__":
    main()
