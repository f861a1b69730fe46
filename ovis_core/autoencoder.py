"""Converts latents <-> images with FLUX's autoencoder.

B batch, C channels, H and W latent pixels. Images are (B, 3, 8H, 8W) in [-1, 1]. Parameters are named as in
FLUX's `ae.safetensors`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .latents import LATENT_CHANNELS
from .layers import Attention, Ops, sdp_attention

# The MMDiT's latents are the autoencoder's, moved and scaled to unit variance (numbers of the released
# autoencoder).
SHIFT = 0.1159
SCALE = 0.3611


def normalize(latents: Tensor) -> Tensor:
    """Turns the autoencoder's latents into the MMDiT's."""
    return (latents - SHIFT) * SCALE


def denormalize(latents: Tensor) -> Tensor:
    """Turns the MMDiT's latents into the autoencoder's."""
    return latents / SCALE + SHIFT


@dataclass(frozen=True)
class AutoencoderConfig:
    """The numbers of the network; the defaults are FLUX.1-schnell's."""

    channels: tuple[int, ...] = (128, 256, 512, 512)  # per resolution, finest first
    num_res_blocks: int = 2
    latent_channels: int = LATENT_CHANNELS
    norm_groups: int = 32

    def __post_init__(self):
        if type(self.norm_groups) is not int or self.norm_groups < 1:
            raise ValueError(f"the VAE's config has norm_num_groups {self.norm_groups!a}; a number is needed")
        if any(width % self.norm_groups for width in self.channels):
            raise ValueError(f"channels {self.channels} must be multiples of {self.norm_groups}")


class Autoencoder(nn.Module):
    """FLUX's autoencoder, an encoder and a decoder."""

    def __init__(
        self, config: AutoencoderConfig, ops: Ops = nn, attention: Attention = sdp_attention, **factory
    ):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, ops, attention, **factory)
        self.decoder = Decoder(config, ops, attention, **factory)

    def encode(self, image: Tensor) -> Tensor:
        """Encodes (B, 3, 8H, 8W) in [-1, 1] to the mean of the latents (B, C, H, W), not normalized."""
        return self.encoder(image).chunk(2, dim=1)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """Decodes latents (B, C, H, W), not normalized, to (B, 3, 8H, 8W), about [-1, 1]."""
        return self.decoder(latents)


class Encoder(nn.Module):
    """The half that turns images into latents."""

    def __init__(self, config: AutoencoderConfig, ops: Ops, attention: Attention, **factory):
        super().__init__()
        channels = config.channels
        norm = config.norm_groups, ops
        self.conv_in = conv3x3(3, channels[0], ops, **factory)
        self.down = nn.ModuleList()
        previous = channels[0]
        for level, width in enumerate(channels):
            is_last = level == len(channels) - 1
            self.down.append(DownLevel(previous, width, config.num_res_blocks, is_last, *norm, **factory))
            previous = width
        self.mid = Middle(channels[-1], *norm, attention, **factory)
        self.norm_out = group_norm(channels[-1], *norm, **factory)
        self.conv_out = conv3x3(channels[-1], 2 * config.latent_channels, ops, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Encodes (B, 3, 8H, 8W) to mean and log variance, (B, 2C, H, W)."""
        x = self.conv_in(x)
        for step in self.steps():
            x = step(x)
        return self.conv_out(silu(self.norm_out(self.mid(x))))

    def steps(self) -> Iterator[nn.Module]:
        """Yields the layers between `conv_in` and `mid`, in the order of running."""
        for down in self.down:
            assert isinstance(down, DownLevel)
            yield from down.block
            if down.downsample is not None:
                yield down.downsample


class Decoder(nn.Module):
    """The half that turns latents into images."""

    def __init__(self, config: AutoencoderConfig, ops: Ops, attention: Attention, **factory):
        super().__init__()
        channels = config.channels
        norm = config.norm_groups, ops
        self.conv_in = conv3x3(config.latent_channels, channels[-1], ops, **factory)
        self.mid = Middle(channels[-1], *norm, attention, **factory)
        previous = channels[-1]
        levels = []
        for level, width in reversed(list(enumerate(channels))):
            is_last = level == 0
            levels.append(UpLevel(previous, width, config.num_res_blocks + 1, is_last, *norm, **factory))
            previous = width
        self.up = nn.ModuleList(reversed(levels))  # numbered finest first, run coarsest first
        self.norm_out = group_norm(channels[0], *norm, **factory)
        self.conv_out = conv3x3(channels[0], 3, ops, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Decodes (B, C, H, W) to (B, 3, 8H, 8W)."""
        x = self.mid(self.conv_in(x))
        for step in self.steps():
            x = step(x)
        return self.conv_out(silu(self.norm_out(x)))

    def steps(self) -> Iterator[nn.Module]:
        """Yields the layers between `mid` and `norm_out`, in the order of running."""
        for up in reversed(self.up):
            assert isinstance(up, UpLevel)
            yield from up.block
            if up.upsample is not None:
                yield up.upsample


class DownLevel(nn.Module):
    """Holds the layers of one resolution.

    The encoder runs them, so that no frame of this level keeps its input in memory.
    """

    def __init__(
        self, in_width: int, width: int, num_blocks: int, is_last: bool, groups: int, ops: Ops, **factory
    ):
        super().__init__()
        self.block = res_blocks(in_width, width, num_blocks, groups, ops, **factory)
        self.downsample = None if is_last else Downsample(width, ops, **factory)


class UpLevel(nn.Module):
    """Holds the layers of one resolution, which the decoder runs."""

    def __init__(
        self, in_width: int, width: int, num_blocks: int, is_last: bool, groups: int, ops: Ops, **factory
    ):
        super().__init__()
        self.block = res_blocks(in_width, width, num_blocks, groups, ops, **factory)
        self.upsample = None if is_last else Upsample(width, ops, **factory)


class Middle(nn.Module):
    """The layers at the coarsest resolution: two residual blocks around an attention."""

    def __init__(self, width: int, groups: int, ops: Ops, attention: Attention, **factory):
        super().__init__()
        self.block_1 = ResBlock(width, width, groups, ops, **factory)
        self.attn_1 = AttentionBlock(width, groups, ops, attention, **factory)
        self.block_2 = ResBlock(width, width, groups, ops, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Runs the three layers: (B, C, H, W) -> the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class ResBlock(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, in_width: int, out_width: int, groups: int, ops: Ops, **factory):
        super().__init__()
        self.norm1 = group_norm(in_width, groups, ops, **factory)
        self.conv1 = conv3x3(in_width, out_width, ops, **factory)
        self.norm2 = group_norm(out_width, groups, ops, **factory)
        self.conv2 = conv3x3(out_width, out_width, ops, **factory)
        self.nin_shortcut = None
        if in_width != out_width:
            self.nin_shortcut = ops.Conv2d(in_width, out_width, kernel_size=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Adds the convolutions to x: (B, in_width, H, W) -> (B, out_width, H, W)."""
        h = self.conv1(silu(self.norm1(x)))
        h = self.conv2(silu(self.norm2(h)))
        if self.nin_shortcut is not None:
            x = self.nin_shortcut(x)
        return add(x, h)


class AttentionBlock(nn.Module):
    """Attention of one head over all latent pixels."""

    def __init__(self, width: int, groups: int, ops: Ops, attention: Attention, **factory):
        super().__init__()
        self.attention = attention
        self.norm = group_norm(width, groups, ops, **factory)
        self.q = ops.Conv2d(width, width, kernel_size=1, **factory)
        self.k = ops.Conv2d(width, width, kernel_size=1, **factory)
        self.v = ops.Conv2d(width, width, kernel_size=1, **factory)
        self.proj_out = ops.Conv2d(width, width, kernel_size=1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Adds the attention to x: (B, C, H, W) -> the same shape."""
        h = self.norm(x)
        q, k, v = (
            f(h).flatten(2).transpose(1, 2)[:, None] for f in (self.q, self.k, self.v)
        )  # (B, 1, HW, C)
        h = self.attention(q, k, v, None)  # (B, HW, C)
        return add(x, self.proj_out(h.transpose(1, 2).reshape(x.shape)))


class Downsample(nn.Module):
    """A strided convolution that halves the resolution."""

    def __init__(self, width: int, ops: Ops, **factory):
        super().__init__()
        self.conv = ops.Conv2d(width, width, kernel_size=3, stride=2, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Halves the resolution: (B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(functional.pad(x, (0, 1, 0, 1)))  # on one side only, as trained


class Upsample(nn.Module):
    """Nearest neighbours and a convolution, which double the resolution."""

    def __init__(self, width: int, ops: Ops, **factory):
        super().__init__()
        self.conv = conv3x3(width, width, ops, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Doubles the resolution: (B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


def silu(x: Tensor) -> Tensor:
    """Applies SiLU to a norm's output, in place without gradients: nobody needs the input again."""
    return functional.silu(x, inplace=not torch.is_grad_enabled())


def add(x: Tensor, h: Tensor) -> Tensor:
    """Adds x to a convolution's output, in place where there are no gradients."""
    return x + h if torch.is_grad_enabled() else h.add_(x)


def res_blocks(
    in_width: int, out_width: int, num_blocks: int, groups: int, ops: Ops, **factory
) -> nn.ModuleList:
    """Makes residual blocks, the first of which changes the width."""
    widths = (in_width, *(out_width for _ in range(num_blocks)))
    pairs = zip(widths[:-1], widths[1:], strict=True)
    return nn.ModuleList(ResBlock(a, b, groups, ops, **factory) for a, b in pairs)


def conv3x3(in_width: int, out_width: int, ops: Ops, **factory) -> nn.Module:
    """Makes a 3x3 convolution that keeps the resolution."""
    return ops.Conv2d(in_width, out_width, kernel_size=3, padding=1, **factory)


def group_norm(width: int, groups: int, ops: Ops, **factory) -> nn.Module:
    """Makes the GroupNorm that all blocks use."""
    return ops.GroupNorm(groups, width, eps=1e-6, affine=True, **factory)
