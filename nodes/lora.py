"""Loads LoRA files on a MODEL, and converts one dialect to another."""

from comfy_api.latest import io, ui

from .adapters.lora.lora import DIALECTS, convert_lora, load_lora, lora_names


class OvisImageLoraLoader(io.ComfyNode):
    """A node that loads a LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisImageLoraLoader",
            display_name="Ovis-Image LoRA Loader",
            category="Ovis-Image",
            description="Puts a LoRA of any dialect on Ovis-Image, all of it, and tells what was matched.",
            search_aliases=["ovis", "lora", "load lora", "lycoris", "dora", "lokr", "loha", "peft"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The MODEL of the Ovis-Image Loader, or of another LoRA loader."
                ),
                io.Combo.Input(
                    "lora_name",
                    options=lora_names(),
                    tooltip=(
                        "A safetensors file in models/loras, in the names of ComfyUI, kohya, "
                        "diffusers, PEFT, OneTrainer, "
                        "LyCORIS or the authors."
                    ),
                ),
                io.Float.Input(
                    "strength_model",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="How strongly it changes the model; 0 is not at all, below 0 the other way.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the LoRA."),
                io.String.Output(
                    display_name="report", tooltip="How many modules were matched, and what was not."
                ),
            ],
        )

    @classmethod
    def execute(cls, model, lora_name: str, strength_model: float) -> io.NodeOutput:
        return io.NodeOutput(*load_lora(model, lora_name, strength_model))


class OvisImageLoraConvert(io.ComfyNode):
    """A node that writes a LoRA in another dialect."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisImageLoraConvert",
            display_name="Ovis-Image LoRA Convert",
            category="Ovis-Image/advanced",
            description="Writes a LoRA in the names that another tool reads, with the same effect, into "
            "the output folder.",
            search_aliases=["ovis", "lora", "convert lora", "save lora", "diffusers", "kohya"],
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model", tooltip="The MODEL of the Ovis-Image Loader; only its sizes matter here."
                ),
                io.Combo.Input(
                    "lora_name",
                    options=lora_names(),
                    tooltip="A safetensors file in models/loras, in any dialect.",
                ),
                io.Combo.Input(
                    "dialect",
                    options=list(DIALECTS),
                    default="comfyui",
                    tooltip="Whose names the file will have. ComfyUI's LoRA loaders read comfyui and kohya "
                    "on any Ovis-Image MODEL; the others are for the tools of that name.",
                ),
                io.String.Input(
                    "filename_prefix",
                    default="loras/ovis_image",
                    tooltip="Where in the output folder, and how the name begins.",
                ),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The file, below the output folder.")],
        )

    @classmethod
    def execute(cls, model, lora_name: str, dialect: str, filename_prefix: str) -> io.NodeOutput:
        path = convert_lora(model, lora_name, dialect, filename_prefix)
        return io.NodeOutput(path, ui=ui.PreviewText(path))
