"""The nodes in menu order."""

from .conditioning import OvisImageTextEncode
from .latents import OvisImageEmptyLatent
from .loaders import OvisImageLoader
from .lora import OvisImageLoraConvert, OvisImageLoraLoader
from .sampling import OvisImageGuider, OvisImageSampler, OvisImageScheduler
from .vae import OvisImageVAEDecode, OvisImageVAEEncode

NODES = [
    OvisImageLoader,
    OvisImageLoraLoader,
    OvisImageTextEncode,
    OvisImageEmptyLatent,
    OvisImageScheduler,
    OvisImageGuider,
    OvisImageSampler,
    OvisImageVAEDecode,
    OvisImageVAEEncode,
    OvisImageLoraConvert,
]
