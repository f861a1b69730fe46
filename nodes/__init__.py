"""Lists the nodes in menu order."""

from .acceleration import OvisImageAttention, OvisImageCache, OvisImageCompile
from .campaign import OvisCampaignRows, OvisLabelledGrid
from .conditioning import OvisImageTextEncode
from .copywriting import OvisCopy, OvisLayout, OvisPromptCheck, OvisQuotesKept, OvisStyle
from .latents import OvisImageEmptyLatent
from .loaders import OvisImageLoader
from .lora import OvisImageLoraConvert, OvisImageLoraLoader
from .quantization import OvisImageQuantCheck
from .sampling import OvisImageGuider, OvisImageSampler, OvisImageScheduler
from .typesetting import OvisTypeset
from .vae import OvisImageVAEDecode, OvisImageVAEEncode
from .verify import OvisTextBestOf, OvisTextRetry, OvisTextVerify

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
    OvisImageCompile,
    OvisImageAttention,
    OvisImageCache,
    OvisImageQuantCheck,
    OvisCopy,
    OvisStyle,
    OvisLayout,
    OvisPromptCheck,
    OvisCampaignRows,
    OvisLabelledGrid,
    OvisTextVerify,
    OvisTextBestOf,
    OvisTextRetry,
    OvisTypeset,
    OvisQuotesKept,
]
