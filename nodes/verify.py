"""Verifies an IMAGE's texts -> score, verdict, the best picture, or another try."""

from comfy_api.latest import io, ui
from server import PromptServer

from .adapters.sampling.sampler import SAMPLER_NAMES
from .adapters.words.verify import MAX_SEED, Found, best_of, retry, verify_images

CATEGORY = "Ovis-Image/Text"
REPORT = io.String.Output(
    display_name="report",
    tooltip="The verdict, and a line for each text that is wrong, hard to read or not asked for.",
)
JSON = io.String.Output(
    display_name="json",
    tooltip="All of it as JSON: texts, legibility, regions with boxes, extra text, scores of benchmarks.",
)


def judging_inputs() -> list:
    """Makes the inputs that say what counts as right."""
    return [
        io.String.Input(
            "texts",
            multiline=True,
            dynamic_prompts=False,
            tooltip="The texts that should be read, one a line, or a JSON list of texts. Their order and "
            "spaces do not matter. Empty: no text at all.",
        ),
        io.Float.Input(
            "threshold",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="The score from which a picture passes; 1 is every character right.",
        ),
        io.Boolean.Input("case_sensitive", default=False, tooltip="Whether a and A differ."),
        io.Boolean.Input(
            "width_sensitive",
            default=False,
            tooltip="Whether full-width and half-width forms differ, and curly and straight quotes.",
        ),
        io.Boolean.Input(
            "count_extra",
            default=True,
            tooltip="Whether text that nobody asked for lowers the score, a character at a time.",
        ),
    ]


def legibility_input() -> io.Float.Input:
    """Makes the input that asks for legible strokes; it came later and stands last."""
    return io.Float.Input(
        "min_legibility",
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.01,
        optional=True,
        tooltip="The legibility that the weakest character needs for a picture to pass: how much its strokes "
        "are those of a plain font. 0 asks for none; 0.5 is a start.",
    )


class OvisTextVerify(io.ComfyNode):
    """A node that verifies the texts in pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisTextVerify",
            display_name="Ovis Text Verify (OCR score)",
            category=CATEGORY,
            description="Reads a picture (OCR, English and Chinese) and says how well it shows the expected "
            "texts. Needs the packages rapidocr and onnxruntime.",
            search_aliases=[
                "ovis",
                "文字",
                "ocr",
                "read text",
                "spell check",
                "character error rate",
                "cer",
                "ned",
            ],
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="The picture, or several of one size."),
                *judging_inputs(),
                legibility_input(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="annotated",
                    tooltip="The picture with numbered frames: green right, red wrong or hard to read, "
                    "orange extra.",
                ),
                io.Float.Output(
                    display_name="score",
                    tooltip="1 minus the character error rate of all texts; of several pictures the lowest.",
                ),
                io.Boolean.Output(
                    display_name="passed",
                    tooltip="Whether every picture has the score and the legibility asked for.",
                ),
                REPORT,
                JSON,
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, image, texts: str, **how) -> io.NodeOutput:
        verified = verify_images(image, texts, **how)
        PromptServer.instance.send_progress_text(verified.report.split("\n")[0], cls.hidden.unique_id)
        return io.NodeOutput(*verified, ui=ui.PreviewText(verified.report))


class OvisTextBestOf(io.ComfyNode):
    """A node that ranks pictures by their texts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisTextBestOf",
            display_name="Ovis Text Best Of (rank by OCR)",
            category=CATEGORY,
            description="Of several pictures the one that shows the expected texts best, all of them ranked, "
            "and a contact sheet. Needs the packages rapidocr and onnxruntime.",
            search_aliases=["ovis", "文字", "ocr", "best of n", "rank images", "pick best", "contact sheet"],
            is_output_node=True,
            is_input_list=True,
            inputs=[
                io.Image.Input("images", tooltip="A batch or a list of pictures, of any sizes."),
                *judging_inputs(),
                legibility_input(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="best", tooltip="The best picture: by score, then by legibility."
                ),
                io.Int.Output(display_name="number", tooltip="Which it was, counted from 1."),
                io.Image.Output(
                    display_name="ranked", is_output_list=True, tooltip="All, from the best to the worst."
                ),
                io.Float.Output(
                    display_name="scores", is_output_list=True, tooltip="Their scores, in the same order."
                ),
                io.Image.Output(
                    display_name="sheet", tooltip="All on one sheet, with rank, number, score and legibility."
                ),
                REPORT,
                JSON,
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images: list, texts: list, **how) -> io.NodeOutput:
        found = best_of(images, texts, **{name: values[0] for name, values in how.items()})
        line = f"picture {found.number} is the best of {len(found.ranked)}, score {found.scores[0]:.3f}"
        PromptServer.instance.send_progress_text(line, cls.hidden.unique_id[0])
        return io.NodeOutput(*found, ui=ui.PreviewText(f"{line}\n{found.report}"))


class OvisTextRetry(io.ComfyNode):
    """A node that draws until the text is right."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisTextRetry",
            display_name="Ovis Text Retry (sample until the text is right)",
            category=CATEGORY,
            description="Draws a picture from one seed after the other until it shows the expected texts, or "
            "max_tries is reached; gives the best. Needs the packages rapidocr and onnxruntime.",
            search_aliases=["ovis", "文字", "ocr", "retry", "loop", "until", "seed search", "best of n"],
            enable_expand=True,
            accept_all_inputs=True,  # a try passes these to the next one; users do not set them
            inputs=[
                io.Model.Input("model", raw_link=True, tooltip="The model."),
                io.Conditioning.Input("positive", raw_link=True, tooltip="What to draw."),
                io.Conditioning.Input(
                    "negative",
                    raw_link=True,
                    optional=True,
                    tooltip="What guidance leads away from; empty for the reference. Not needed at cfg 1.",
                ),
                io.Latent.Input(
                    "latent_image",
                    raw_link=True,
                    tooltip="An empty latent; of a batch the best picture counts.",
                ),
                io.Vae.Input("vae", raw_link=True, tooltip="The VAE that decodes each try."),
                *judging_inputs(),
                io.Int.Input(
                    "max_tries",
                    default=4,
                    min=1,
                    max=64,
                    tooltip="How many pictures are drawn at most; the last is followed by no other.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=MAX_SEED,
                    control_after_generate=True,
                    tooltip="The first try's noise; each further try takes the next number.",
                ),
                io.Int.Input(
                    "steps", default=50, min=1, max=10000, tooltip="Steps a try; the reference takes 50."
                ),
                io.Float.Input(
                    "cfg",
                    default=5.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale. 5 is the reference; 1 is none.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=SAMPLER_NAMES,
                    default="euler",
                    tooltip="The solver; euler is the reference.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="1 makes new pictures; less keeps more of the connected latent.",
                ),
                io.Combo.Input(
                    "noise",
                    options=["comfyui", "reference"],
                    default="comfyui",
                    tooltip="Whose noise a seed stands for, as for the Ovis-Image Sampler.",
                ),
                legibility_input(),
            ],
            outputs=[
                io.Image.Output(tooltip="The first picture that passed, else the best one."),
                io.Int.Output(display_name="seed", tooltip="The seed of that picture."),
                io.Int.Output(display_name="tries", tooltip="How many pictures were drawn."),
                io.Boolean.Output(display_name="passed", tooltip="Whether that picture passed."),
                REPORT,
                JSON,
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, state=None, image=None, best=None, **inputs) -> io.NodeOutput:
        tell = PromptServer.instance.send_progress_text
        step = retry(cls.hidden.unique_id, inputs, tell, state, image, best)
        if isinstance(step, Found):
            return io.NodeOutput(*step, ui=ui.PreviewText(step.report))
        return io.NodeOutput(*step.outputs, expand=step.graph)
