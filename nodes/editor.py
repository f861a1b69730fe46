"""Answers the editor while one types: what Ovis Copy writes from its fields, and how many tokens that is."""

import asyncio

from aiohttp import web
from server import PromptServer

from .adapters.loading.text_encoder import count_tokens
from .adapters.words.lettering import write_copy_fields

ROUTE = "/ovis_image/copy"
MAX_BYTES = 200_000  # more than any prompt that could be drawn


def answer_while_typing() -> None:
    """Adds the route to ComfyUI's server, where there is one.

    POST, the node's widgets as JSON -> {"prompt", "tokens"}, or 400 and {"error"}.
    """
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.routes.post(ROUTE)(_answer)


async def _answer(request: web.Request) -> web.Response:
    if request.content_length is None or request.content_length > MAX_BYTES:
        return web.json_response({"error": f"the fields are to have at most {MAX_BYTES} bytes"}, status=400)
    try:
        return web.json_response(await asyncio.to_thread(_written, await request.read()))
    except (ValueError, RecursionError) as error:
        return web.json_response({"error": str(error)}, status=400)


def _written(body: bytes) -> dict[str, str]:
    prompt = write_copy_fields(body).prompt
    return {"prompt": prompt, "tokens": count_tokens(prompt)}
