"""Writes prompts from copy: fields, lettering styles and boxes; tells what a prompt will lose."""

from comfy_api.latest import io, ui
from server import PromptServer

from .adapters.words.lettering import (
    LANGUAGES,
    OTHERWISE,
    check_prompt,
    describe_style,
    keep_texts,
    style_names,
    write_copy,
    write_layout,
)

CATEGORY = "Ovis-Image/Text"
LITERAL = {"default": "", "dynamic_prompts": False}
LANGUAGE_TOOLTIP = "Of the sentences around the texts, which may be in any language themselves."
TEXTS_OUTPUTS = [
    io.String.Output(
        display_name="texts", tooltip="The texts in reading order, one per line, to verify the picture with."
    ),
    io.String.Output(
        display_name="texts_json", tooltip="The same texts as a JSON list, for texts of several lines."
    ),
]


class OvisCopy(io.ComfyNode):
    """A node that writes a prompt from a poster's texts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisCopy",
            display_name="Ovis Copy (text for posters)",
            category=CATEGORY,
            description=(
                "Writes a prompt from the texts of a poster. Each arrives exactly as typed, in the quotes "
                "that suit it; no quotes need to be typed or escaped."
            ),
            search_aliases=[
                "ovis",
                "文字",
                "poster",
                "copywriting",
                "headline",
                "slogan",
                "banner",
                "prompt builder",
            ],
            inputs=[
                io.String.Input(
                    "headline", **LITERAL, multiline=True, tooltip="The largest text; empty for none."
                ),
                io.String.Input(
                    "subtitle", **LITERAL, multiline=True, tooltip="Below the headline; empty for none."
                ),
                io.String.Input("body", **LITERAL, multiline=True, tooltip="Running text; empty for none."),
                io.String.Input(
                    "call_to_action", **LITERAL, tooltip="What to do, on a button; empty for none."
                ),
                io.String.Input(
                    "price", **LITERAL, tooltip="With its currency, as it is to be read; empty for none."
                ),
                io.String.Input("footer", **LITERAL, tooltip="Small print, address or date; empty for none."),
                io.String.Input(
                    "scene",
                    **LITERAL,
                    multiline=True,
                    tooltip="All else in the picture: things, background, light.",
                ),
                io.String.Input(
                    "style",
                    **LITERAL,
                    multiline=True,
                    tooltip="Font and colour of the letters, typed or from Ovis Lettering Style; it goes "
                    "first, where the model follows it best.",
                ),
                io.Combo.Input(
                    "language", options=list(LANGUAGES), default="English", tooltip=LANGUAGE_TOOLTIP
                ),
            ],
            outputs=[
                io.String.Output(display_name="prompt", tooltip="For Ovis-Image Text Encode."),
                *TEXTS_OUTPUTS,
            ],
        )

    @classmethod
    def execute(cls, scene: str, style: str, language: str, **texts: str) -> io.NodeOutput:
        return io.NodeOutput(*write_copy(texts, scene, style, language))


class OvisPromptCheck(io.ComfyNode):
    """A node that checks a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisPromptCheck",
            display_name="Ovis Prompt Check (tokens, lint)",
            category=CATEGORY,
            description=(
                "Counts a prompt's tokens and tells what will go wrong with its texts: what is cut off, "
                "quotes, symbols, syntax, settings. It warns and never blocks."
            ),
            search_aliases=["ovis", "文字", "prompt linter", "token counter", "check prompt", "count tokens"],
            is_output_node=True,
            inputs=[
                io.String.Input("text", **LITERAL, multiline=True, tooltip="The prompt to check."),
                io.Int.Input("steps", default=50, min=1, max=10000, tooltip="The sampler's steps."),
                io.Float.Input(
                    "cfg", default=5.0, min=0.0, max=100.0, step=0.1, tooltip="The sampler's guidance scale."
                ),
                io.Boolean.Input(
                    "fix",
                    default=False,
                    tooltip="Puts right what a machine can; not a character between quotes is changed.",
                ),
                io.Combo.Input(
                    "language", options=list(LANGUAGES), default="English", tooltip="Of the report."
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="Counts the tokens: of the Ovis-Image Loader, or type ovis.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="The prompt, fixed if that was asked for."),
                io.String.Output(display_name="report", tooltip="Every finding on a line, the worst first."),
                io.String.Output(display_name="report_json", tooltip="The same for programs."),
                io.Int.Output(
                    display_name="tokens", tooltip="Of the 284, with the template's 39; 0 without a CLIP."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, text: str, steps: int, cfg: float, fix: bool, language: str, clip=None) -> io.NodeOutput:
        line, checked = check_prompt(text, clip, steps, cfg, fix, language)
        PromptServer.instance.send_progress_text(line, cls.hidden.unique_id)
        return io.NodeOutput(*checked, ui=ui.PreviewText(checked.report))


class OvisStyle(io.ComfyNode):
    """A node that describes a lettering style."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisStyle",
            display_name="Ovis Lettering Style",
            category=CATEGORY,
            description="Describes a style of lettering, for the style of Ovis Copy. Add your own in "
            "user/default/ovis_image/lettering_styles.json.",
            search_aliases=[
                "ovis",
                "文字",
                "font",
                "typography",
                "neon",
                "calligraphy",
                "letterpress",
                "type style",
            ],
            inputs=[
                io.Combo.Input(
                    "style", options=style_names(), tooltip="How the letters are made; your own come last."
                ),
                io.String.Input(
                    "colour", **LITERAL, tooltip="Colour of the letters, in any words; empty leaves it open."
                ),
                io.Combo.Input(
                    "language", options=list(LANGUAGES), default="English", tooltip="Of the description."
                ),
            ],
            outputs=[io.String.Output(display_name="style", tooltip="The description, for Ovis Copy.")],
        )

    @classmethod
    def fingerprint_inputs(cls, style: str, colour: str, language: str) -> str:
        return describe_style(style, language, colour)  # the user's file may have changed

    @classmethod
    def execute(cls, style: str, colour: str, language: str) -> io.NodeOutput:
        return io.NodeOutput(describe_style(style, language, colour))


class OvisLayout(io.ComfyNode):
    """A node that writes a prompt from boxes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisLayout",
            display_name="Ovis Layout (boxes to prompt)",
            category=CATEGORY,
            description="Experimental: says in sentences where each text of Create Bounding Boxes stands. "
            "How closely the model follows is not measured.",
            search_aliases=["ovis", "文字", "layout", "bounding boxes", "placement", "regional text"],
            is_experimental=True,
            inputs=[
                io.Array.Input(
                    "elements", tooltip="From Create Bounding Boxes; boxes of type text hold the copy."
                ),
                io.String.Input(
                    "scene",
                    **LITERAL,
                    multiline=True,
                    tooltip="All else in the picture: things, background, light.",
                ),
                io.String.Input(
                    "style",
                    **LITERAL,
                    multiline=True,
                    tooltip="Font and colour of the letters; it goes first.",
                ),
                io.Combo.Input(
                    "language", options=list(LANGUAGES), default="English", tooltip=LANGUAGE_TOOLTIP
                ),
            ],
            outputs=[
                io.String.Output(display_name="prompt", tooltip="For Ovis-Image Text Encode."),
                *TEXTS_OUTPUTS,
            ],
        )

    @classmethod
    def execute(cls, elements: list, scene: str, style: str, language: str) -> io.NodeOutput:
        return io.NodeOutput(*write_layout(elements, scene, style, language))


class OvisQuotesKept(io.ComfyNode):
    """A node that checks a rewritten prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisQuotesKept",
            display_name="Ovis Quotes Kept (check a rewritten prompt)",
            category=CATEGORY,
            description=(
                "Passes a rewritten prompt on only where every text in quotes is the original's, character "
                "by character; none lost, none added. Put it behind Generate Text."
            ),
            search_aliases=[
                "ovis",
                "文字",
                "rewrite",
                "enhance prompt",
                "prompt upsampling",
                "llm",
                "quotes",
            ],
            inputs=[
                io.String.Input("original", **LITERAL, multiline=True, tooltip="The prompt as you wrote it."),
                io.String.Input(
                    "rewritten", **LITERAL, multiline=True, tooltip="What a text generation made of it."
                ),
                io.Combo.Input(
                    "otherwise",
                    options=list(OTHERWISE),
                    default="error",
                    tooltip="What to do where a quoted text was lost, altered or added.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="The rewritten prompt, or the original."),
                io.String.Output(display_name="report", tooltip="What became of the texts in quotes."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, original: str, rewritten: str, otherwise: str) -> io.NodeOutput:
        text, report = keep_texts(original, rewritten, otherwise)
        PromptServer.instance.send_progress_text(report, cls.hidden.unique_id)
        return io.NodeOutput(text, report)
