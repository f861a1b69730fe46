"""Measures low-precision weights' cost in legibility on the Nano: words, distance from exact pictures.

    python3 dev.py bench nano-quant [--model FOLDER] [--prompts 24] [--steps 20 3] [--cfg 4]

Makes the same pictures with the diffusion model's weights in float32 and in each format, by ComfyUI's
layers; with fp8_scaled and int8 activations are rounded too, as on a GPU that multiplies them so. With few
steps words are lost even in float32: those tell more than words that every format keeps. The GGUF files are
written by the `gguf` package. Needs ComfyUI, rapidocr, onnxruntime and the renderer's fonts. Not a test: it
measures, prints, and writes results/nano_quant.json and .md.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path
from types import SimpleNamespace

import gguf
import torch
from nano_text import ROOT, held_out_examples, judged, write_rows
from pack import diffusion_model, formats
from torch import Tensor, nn

from ovis_core.evaluation.ocr import RapidReader
from ovis_core.pipeline import Pipeline, load_pipeline
from ovis_core.training.report import to_image
from ovis_core.typography.rendering import Example

RESULTS = Path(__file__).parent / "results" / "nano_quant.json"
LOADED = ("fp32", "fp8_e4m3fn", "fp8_scaled", "int8")
GGUF = ("Q8_0", "Q5_0", "Q4_0")


class Quantised:
    """A network of ComfyUI's layers that replaces the pipeline's."""

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        self.network = network
        self.config = network.config
        self.img_in = SimpleNamespace(weight=torch.empty(0, dtype=dtype))
        for layer in network.modules():
            if hasattr(layer, "_full_precision_mm"):
                layer._full_precision_mm = False  # set where rounding does not speed up a device

    def __call__(self, x: Tensor, sigma: Tensor, context: Tensor, cache=None) -> Tensor:
        return self.network(x, sigma, context, transformer_options={})


def quantised(folder: Path, name: str, scratch: Path) -> Quantised:
    """Loads the Nano's diffusion model in a format, as a user's file is loaded."""
    path = folder
    if name in GGUF:
        path = scratch / f"{name}.gguf"
        exact = diffusion_model.load_diffusion_model(folder, torch.float32).model.diffusion_model
        write_gguf(path, dict(exact.named_parameters()), gguf.GGMLQuantizationType[name])
    weight_dtype = None if name in GGUF else formats.WEIGHT_DTYPES[name]
    model = diffusion_model.load_diffusion_model(path, weight_dtype).model
    return Quantised(model.diffusion_model, model.get_dtype_inference())


def write_gguf(path: Path, state: dict[str, Tensor], kind: gguf.GGMLQuantizationType) -> None:
    """Writes matrices in that type where their columns fill its blocks, the rest in float32."""
    writer = gguf.GGUFWriter(path, "flux")
    for key, tensor in state.items():
        fits = tensor.ndim == 2 and tensor.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
        raw_type = kind if fits else gguf.GGMLQuantizationType.F32
        writer.add_tensor(key, gguf.quantize(tensor.detach().float().numpy(), raw_type), raw_dtype=raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pictures(pipeline: Pipeline, examples: list[Example], steps: int, cfg: float) -> Tensor:
    """Makes a picture of each example."""
    width, height = examples[0].image.size
    return torch.cat(
        [
            pipeline(example.caption, width=width, height=height, steps=steps, cfg=cfg, seed=number)
            for number, example in enumerate(examples)
        ]
    )


def main() -> None:
    """Measures, prints and writes the results."""
    parser = argparse.ArgumentParser(description="Measures what low-precision weights cost in legibility.")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "Ovis-Image-Nano")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 3])
    parser.add_argument("--cfg", type=float, default=4.0)
    args = parser.parse_args()

    pipeline, read = load_pipeline(args.model, dtype=torch.float32), RapidReader()
    examples = held_out_examples(args.prompts, seed=2)
    rows, exact = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in (*LOADED, *GGUF):
            changed = dataclasses.replace(pipeline, transformer=quantised(args.model, name, Path(scratch)))
            for steps in args.steps:
                made = pictures(changed, examples, steps, args.cfg)
                error = (made - exact.setdefault(steps, made)).square().mean((1, 2, 3))
                figures, _ = judged(examples, [to_image(image) for image in made], read)
                rows.append(
                    {
                        "weights": name,
                        "steps": steps,
                        "word_accuracy_en": round(figures["word_accuracy_en"], 3),
                        "word_accuracy_zh": round(figures["word_accuracy_zh"], 3),
                        "colour_accuracy": round(figures["colour_accuracy"], 3),
                        "psnr_db": None
                        if made is exact[steps]
                        else round(float(-10 * error.clamp(min=1e-10).log10().mean()), 1),
                    }
                )
                print(rows[-1], flush=True)
    steps = " ".join(map(str, args.steps))
    command = f"python3 dev.py bench nano-quant --prompts {args.prompts} --steps {steps} --cfg {args.cfg}"
    columns = {
        "weights": lambda row: row["weights"],
        "steps": lambda row: f"{row['steps']}",
        "words right, English": lambda row: f"{row['word_accuracy_en']:.0%}",
        "Chinese": lambda row: f"{row['word_accuracy_zh']:.0%}",
        "colours right": lambda row: f"{row['colour_accuracy']:.0%}",
        "PSNR, dB": lambda row: f"{row['psnr_db'] or '-'}",
    }
    write_rows(RESULTS, rows, command, columns)


if __name__ == "__main__":
    main()
