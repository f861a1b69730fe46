"""Encodes a prompt -> CONDITIONING."""

from comfy_api.latest import io
from server import PromptServer


class OvisImageTextEncode(io.ComfyNode):
    """A node that encodes a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisImageTextEncode",
            display_name="Ovis-Image Text Encode",
            category="Ovis-Image",
            description=(
                "Encodes a prompt. Every character reaches the model as typed: no // comments, no "
                "{a|b} choices, no "
                "(word:1.2) weights. Put words to be drawn in quotes. Some 245 tokens are read."
            ),
            search_aliases=["ovis", "文字", "prompt", "text", "clip text encode", "poster text"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder from the Ovis-Image Loader."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=False,
                    tooltip="The prompt, English or Chinese. Empty for the negative gives the reference's "
                    "unconditional.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(tooltip="The encoded prompt, for the sampler's positive or negative.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, clip, text: str) -> io.NodeOutput:
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(text))
        if hasattr(clip.tokenizer, "report"):  # ComfyUI's own CLIP fits here, too, but lacks it
            PromptServer.instance.send_progress_text(clip.tokenizer.report(text), cls.hidden.unique_id)
        return io.NodeOutput(conditioning)
