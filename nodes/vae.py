"""Converts LATENT <-> IMAGE."""

from comfy_api.latest import io

from .adapters.loading.autoencoder import decode, encode

TILE_SIZE = {"default": 0, "min": 0, "max": 4096, "step": 64, "advanced": True}
TILE_TOOLTIP = (
    "0 works on the whole picture; otherwise in tiles of this many pixels a side, for little memory (512 "
    "is usual)."
)


class OvisImageVAEDecode(io.ComfyNode):
    """A node that decodes latents to images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisImageVAEDecode",
            display_name="Ovis-Image VAE Decode",
            category="Ovis-Image",
            description="Turns a finished latent into a picture.",
            search_aliases=["ovis", "decode", "latent to image", "tiled"],
            inputs=[
                io.Latent.Input("samples", tooltip="The latent from the sampler."),
                io.Vae.Input("vae", tooltip="The VAE from the Ovis-Image Loader."),
                io.Int.Input("tile_size", **TILE_SIZE, tooltip=TILE_TOOLTIP),
            ],
            outputs=[io.Image.Output(tooltip="The picture.")],
        )

    @classmethod
    def execute(cls, samples: dict, vae, tile_size: int) -> io.NodeOutput:
        return io.NodeOutput(decode(vae, samples["samples"], tile_size))


class OvisImageVAEEncode(io.ComfyNode):
    """A node that encodes images to latents."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisImageVAEEncode",
            display_name="Ovis-Image VAE Encode",
            category="Ovis-Image",
            description="Turns a picture into a latent, to be changed by the sampler with a denoise below 1.",
            search_aliases=["ovis", "encode", "image to latent", "image to image", "img2img"],
            inputs=[
                io.Image.Input("pixels", tooltip="The picture; sides are cropped to multiples of 8 pixels."),
                io.Vae.Input("vae", tooltip="The VAE from the Ovis-Image Loader."),
                io.Int.Input("tile_size", **TILE_SIZE, tooltip=TILE_TOOLTIP),
            ],
            outputs=[io.Latent.Output(tooltip="The latent, for the sampler.")],
        )

    @classmethod
    def execute(cls, pixels, vae, tile_size: int) -> io.NodeOutput:
        return io.NodeOutput({"samples": encode(vae, pixels, tile_size)})
