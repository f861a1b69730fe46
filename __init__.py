"""Ovis-Image for ComfyUI: the entry point of the node pack."""

from comfy_api.latest import ComfyExtension, io

from .nodes import NODES
from .nodes.adapters import compat
from .nodes.adapters.loading.files import offer_own_models
from .nodes.editor import answer_while_typing

WEB_DIRECTORY = "./web"


class OvisImageExtension(ComfyExtension):
    async def on_load(self) -> None:
        compat.check()
        offer_own_models()
        answer_while_typing()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> OvisImageExtension:
    return OvisImageExtension()
