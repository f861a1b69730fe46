"""Measures a card with little memory: pictures of one process with offloaded weights.

The bench occupies the memory that such a card lacks. Without a GPU, ComfyUI is told that a share of the
weights fits. ComfyUI has two ways: static, where some layers stay off the device, and dynamic VRAM, turned on
as its main does.
"""

import gc
import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple
from unittest import mock

import comfy_aimdo.control
import timer
import torch

# As in ComfyUI's main: its layers use what is there when they are imported.
HAS_AIMDO = comfy_aimdo.control.init(nvml_pressure=True)

from gpu_list import Unavailable  # noqa: E402
from gpu_models import Comfy, Inputs, native_model, our_model  # noqa: E402
from pack import comfy  # noqa: E402
from weights import Weights  # noqa: E402

WAYS = ("static", "dynamic VRAM")
IMAGES = 3
PAGE_BYTES = 32 << 20  # in which comfy_aimdo keeps weights on the device


class Card(NamedTuple):
    """A card with `memory` in GiB, or without a GPU the share of the weights that fits."""

    name: str
    memory: float


CARDS = tuple(Card(f"{memory} GB", memory) for memory in (16, 8, 24, 12))  # the most telling first
SHARES = tuple(Card(f"{share:.0%} of the weights", share) for share in (0.5, 0.0, 0.9))


def cards(device: torch.device) -> tuple[Card, ...]:
    """Lists the cards for a device."""
    return CARDS if device.type == "cuda" else SHARES


def off_device(weights: Weights) -> Weights:
    """Copies our weights into the computer's memory."""
    return Weights({name: tensor.to("cpu", copy=True) for name, tensor in weights.ours.items()}, {})


def turn_on(way: str, device: torch.device) -> None:
    """Switches from static to dynamic VRAM, and not back. Raises Unavailable."""
    if way != "dynamic VRAM":
        return
    management = comfy.model_management
    if device.type != "cuda" or not management.is_nvidia():
        raise Unavailable("needs an Nvidia GPU")
    if not HAS_AIMDO:
        raise Unavailable("comfy_aimdo does not load here")
    if not comfy_aimdo.control.init_devices(device.index for device in management.get_all_torch_devices()):
        raise Unavailable("comfy_aimdo does not work on this GPU")
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True


def measure(id: str, config, weights: Weights, card: Card, inputs: Inputs, steps: int) -> dict:
    """Makes three pictures by U0 or N0, with weights offloaded at the beginning.

    step_s: seconds a step, the median of the second and third; resident_bytes: of weights on the device
    after each; moved_bytes: of those that every forward of the third transfers; alike: whether the second
    and third are the first to the bit.
    """
    is_ours = id == "U0"
    model = Comfy(our_model(config, weights) if is_ours else native_model(weights), is_tabulated=is_ours)
    device, forwards, images, seconds, resident = model.patcher.load_device, [], [], [], []
    handle = model.network.register_forward_pre_hook(lambda *_: forwards.append(1))
    try:
        with limited(card, model.patcher):
            for _ in range(IMAGES):
                seconds.append(timer.seconds(lambda: images.append(model.image(inputs, steps)), device))
                clean_up_behind_node()
                resident.append(model.patcher.loaded_size())
            moved = moved_bytes(model, is_ours)
    finally:
        handle.remove()
        comfy.model_management.current_loaded_models.clear()
    return {
        "id": id,
        "card": card.name,
        "memory": card.memory,
        "image_s": [round(taken, 3) for taken in seconds],
        "step_s": round(statistics.median(seconds[1:]) / steps, 4),
        "resident_bytes": resident,
        "moved_bytes": moved,
        "forwards": round(len(forwards) / (IMAGES * steps), 2),
        "alike": all(torch.equal(image, images[0]) for image in images),
    }


def limited(card: Card, patcher) -> AbstractContextManager:
    """Limits the memory to that of a card for a while."""
    device = patcher.load_device
    return _taken(card, device) if device.type == "cuda" else _told(card, patcher)


@contextmanager
def _taken(card: Card, device: torch.device) -> Iterator[None]:
    gc.collect()
    torch.cuda.empty_cache()
    surplus = torch.cuda.mem_get_info(device)[1] - int(card.memory * 2**30)
    if surplus < -(2**30):  # cards of a size differ a little
        raise Unavailable("more than this GPU has")
    surplus -= torch.cuda.memory_allocated(device)  # what others have left
    ballast = torch.empty(max(0, surplus), dtype=torch.uint8, device=device)
    try:
        yield
    finally:
        del ballast


@contextmanager
def _told(card: Card, patcher) -> Iterator[None]:
    management = comfy.model_management
    free = management.minimum_inference_memory() + card.memory * patcher.model_size()

    def get_free_memory(device=None, torch_free_too=False):
        left = free - patcher.loaded_size()
        return (left, left) if torch_free_too else left

    with mock.patch.multiple(
        management,
        vram_state=management.VRAMState.NORMAL_VRAM,
        is_device_cpu=lambda device: False,
        get_free_memory=get_free_memory,
        current_loaded_models=[],
    ):
        yield


def clean_up_behind_node() -> None:
    """Cleans up as ComfyUI does after every node where dynamic VRAM is on."""
    if comfy.memory_management.aimdo_enabled:
        comfy.model_management.reset_cast_buffers()
        comfy.model_prefetch.cleanup_prefetch_queues()
        comfy_aimdo.model_vbar.vbars_reset_watermark_limits()


def moved_bytes(model: Comfy, is_ours: bool) -> int:
    """Counts the bytes of weights that every forward now transfers, without those of our modulation."""
    patcher = model.patcher
    if not patcher.is_dynamic():
        return patcher.model_size() - patcher.loaded_size()
    vbar = patcher.model.dynamic_vbars[patcher.load_device]
    pages = [page & 1 for page in vbar.get_residency()]
    unused = {*model.network.modulation.layers.values()} if is_ours else set()
    moved = 0
    for layer in model.network.modules():
        if layer not in unused and (place := getattr(layer, "_v", None)) is not None:
            first = place[1] - vbar.base_addr
            held = pages[first // PAGE_BYTES : (first + place[2] - 1) // PAGE_BYTES + 1]
            moved += 0 if held and all(held) else comfy.model_management.module_size(layer)
    return moved
