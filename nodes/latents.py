"""Makes a LATENT from sizes and aspect presets."""

from comfy_api.latest import io

from nodes import MAX_RESOLUTION

from .adapters.loading.autoencoder import empty_latent

# About one megapixel each, sides in multiples of 16: the training sizes (aspect ratios 1:4 to
# 4:1).
PORTRAITS = {
    "1:4": (512, 2048),
    "1:3": (592, 1776),
    "9:21": (672, 1568),
    "1:2": (720, 1440),
    "9:16": (784, 1392),
    "2:3": (832, 1248),
    "3:4": (864, 1152),
    "4:5": (896, 1120),
}
LANDSCAPES = {":".join(reversed(ratio.split(":"))): size[::-1] for ratio, size in reversed(PORTRAITS.items())}
SIZES = PORTRAITS | {"1:1": (1024, 1024)} | LANDSCAPES
PRESETS = {f"{ratio} ({width}x{height})": (width, height) for ratio, (width, height) in SIZES.items()}
CUSTOM = "custom"


class OvisImageEmptyLatent(io.ComfyNode):
    """A node that makes an empty latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        side = {"default": 1024, "min": 16, "max": MAX_RESOLUTION, "step": 16}
        return io.Schema(
            node_id="OvisImageEmptyLatent",
            display_name="Ovis-Image Empty Latent",
            category="Ovis-Image",
            description="The size of the picture to make, from 1:4 to 4:1 at about one megapixel, or any "
            "other.",
            search_aliases=["ovis", "size", "resolution", "aspect ratio", "empty latent image", "banner"],
            inputs=[
                io.Combo.Input(
                    "aspect_ratio",
                    options=[*PRESETS, CUSTOM],
                    default="1:1 (1024x1024)",
                    tooltip="Width to height, with the size in pixels; custom takes width and height below.",
                ),
                io.Int.Input(
                    "width", **side, tooltip="Width in pixels, floored to a multiple of 16; for custom only."
                ),
                io.Int.Input(
                    "height",
                    **side,
                    tooltip="Height in pixels, floored to a multiple of 16; for custom only.",
                ),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=4096, tooltip="How many pictures to make at once."
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="An empty latent of that size, for the sampler."),
                io.Int.Output(display_name="width", tooltip="Width in pixels."),
                io.Int.Output(display_name="height", tooltip="Height in pixels."),
            ],
        )

    @classmethod
    def execute(cls, aspect_ratio: str, width: int, height: int, batch_size: int) -> io.NodeOutput:
        width, height = PRESETS.get(aspect_ratio, (width // 16 * 16, height // 16 * 16))
        return io.NodeOutput(empty_latent(width, height, batch_size), width, height)
