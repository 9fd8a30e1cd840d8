"""What a convolution through its spectrum costs, in the multiply-adds of conv2d."""

from __future__ import annotations

from fastlip.ops.spectral_conv.frequencies import Size, own_frequencies

# Beside products: the transforms, for each pixel of the torus in each channel, and reading a number of the spectrum.
# Fitted to (c, side) = (32, 32), (64, 16), (128, 8), (256, 4) at batch 64, on the image's torus and on the next
# larger one, on two cores with AVX-512.
_TRANSFORM = 130
_READ = 30


def products(columns: int, channels: Size, torus: Size) -> int:
    """Of the spectrum of a kernel of (inputs, outputs) channels with so many columns at each frequency.

    N pixels, g of whose frequencies are their own conjugates, make 2 N - g real products of a row by a column.
    """
    area = torus[0] * torus[1]
    return columns * (2 * area - own_frequencies(torus)) * channels[0] * channels[1]


def spectral_convolution(batch: int, channels: Size, torus: Size) -> int:
    """Products with the batch, 130 N (inputs + outputs) an image for transforms, and reading N inputs outputs."""
    area = torus[0] * torus[1]
    transforms = batch * area * sum(channels) * _TRANSFORM
    return products(batch, channels, torus) + transforms + _READ * area * channels[0] * channels[1]
