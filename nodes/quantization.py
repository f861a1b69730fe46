"""Compares a quantised MODEL with a reference -> the error of each layer."""

from comfy_api.latest import io, ui

from .adapters.weights.quant_check import check_layers


class OvisImageQuantCheck(io.ComfyNode):
    """A node that measures the error of quantised layers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisImageQuantCheck",
            display_name="Ovis-Image Quantisation Check",
            category="Ovis-Image/advanced",
            description=(
                "Compares a quantised Ovis-Image with a reference, layer by layer, on random inputs: which "
                "layers lose most. It needs no prompt and no pictures."
            ),
            search_aliases=["ovis", "gguf", "fp8", "int8", "quantization error", "compare models"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The quantised MODEL: GGUF, fp8 or int8, with LoRAs or not."),
                io.Model.Input("reference", tooltip="The same model as it was before, mostly in bf16."),
                io.Int.Input(
                    "layers",
                    default=20,
                    min=0,
                    max=10000,
                    tooltip="How many layers the table shows, the worst first; 0 shows all.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="report",
                    tooltip="A Markdown table: relative error of the output, layer, format and MiB.",
                )
            ],
        )

    @classmethod
    def execute(cls, model, reference, layers: int) -> io.NodeOutput:
        report = check_layers(model, reference, layers)
        return io.NodeOutput(report, ui=ui.PreviewText(report))
