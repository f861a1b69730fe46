"""Makes sampling faster: MODEL -> MODEL."""

from functools import partial

from comfy_api.latest import io
from server import PromptServer

from .adapters.network.attention import AUTOMATIC, KERNELS
from .adapters.network.compilation import compiled_model
from .adapters.network.transformer import model_with_attention
from .adapters.sampling.residual_cache import cached_model

CATEGORY = "Ovis-Image/advanced"


class OvisImageCache(io.ComfyNode):
    """A node that skips blocks whose result changes little between steps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisImageCache",
            display_name="Ovis-Image Cache (approximate)",
            category=CATEGORY,
            description="Skips most of the network at steps that change little. The picture changes: it is "
            "an approximation of the one without this node.",
            search_aliases=["ovis", "cache", "first block cache", "dbcache", "teacache", "faster"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of the Ovis-Image Loader, with LoRAs or patches."),
                io.Float.Input(
                    "threshold",
                    default=0.08,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    tooltip="A step is skipped when what the first block adds has changed by less than this "
                    "share since the last computed step, for every picture and both branches of guidance. "
                    "0 skips nothing.",
                ),
                io.Int.Input(
                    "warmup_steps",
                    default=4,
                    min=0,
                    max=10000,
                    tooltip="Evaluations at the start that are always computed; they decide the layout and "
                    "the letters.",
                ),
                io.Int.Input(
                    "max_skips",
                    default=3,
                    min=0,
                    max=10000,
                    tooltip="The most evaluations skipped in a row; 0 skips nothing.",
                ),
                io.Int.Input(
                    "taylor_order",
                    default=0,
                    min=0,
                    max=1,
                    tooltip="0 reuses what the last computed step gave; 1 extrapolates the last two in a "
                    "straight line.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the cache.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, model, threshold, warmup_steps, max_skips, taylor_order) -> io.NodeOutput:
        tell = partial(PromptServer.instance.send_progress_text, node_id=cls.hidden.unique_id)
        return io.NodeOutput(cached_model(model, threshold, warmup_steps, max_skips, taylor_order, tell))


class OvisImageCompile(io.ComfyNode):
    """A node that compiles the blocks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisImageCompile",
            display_name="Ovis-Image Compile",
            category=CATEGORY,
            description="Compiles the network's blocks with torch.compile, once for all sizes and prompts. "
            "The picture is the same up to rounding.",
            search_aliases=["ovis", "torch compile", "torchcompilemodel", "inductor", "triton", "faster"],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of the Ovis-Image Loader, with LoRAs or patches."),
            ],
            outputs=[
                io.Model.Output(tooltip="The model whose blocks run compiled; its first step takes longer.")
            ],
        )

    @classmethod
    def execute(cls, model) -> io.NodeOutput:
        return io.NodeOutput(compiled_model(model))


class OvisImageAttention(io.ComfyNode):
    """A node that chooses the attention kernel."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OvisImageAttention",
            display_name="Ovis-Image Attention",
            category=CATEGORY,
            description="Names the kernel that computes the attention. Without this node, it is cuDNN's on "
            "NVIDIA's Hopper and newer GPUs, and ComfyUI's own elsewhere.",
            search_aliases=[
                *("ovis", "attention", "sageattention", "sage attention", "flash attention", "cudnn", "sdpa"),
                "faster",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The MODEL of the Ovis-Image Loader, with LoRAs or patches."),
                io.Combo.Input(
                    "kernel",
                    options=list(KERNELS),
                    default=AUTOMATIC,
                    tooltip="automatic: as without this node. comfyui: what ComfyUI uses. cudnn, flash, "
                    "efficient: torch's exact kernels, on a GPU. sage: SageAttention, an approximation in "
                    "8 bit, which you install yourself. measured: the former name of automatic.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with that kernel.")],
        )

    @classmethod
    def execute(cls, model, kernel) -> io.NodeOutput:
        return io.NodeOutput(model_with_attention(model, kernel))
