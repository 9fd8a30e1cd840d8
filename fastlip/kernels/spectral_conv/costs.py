"""What a convolution costs through its spectrum, and without it, in multiply-adds; and on which torus it runs."""

from __future__ import annotations

from fastlip.kernels.common.fourier import Size, own_frequencies
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.literals import PaddingMode
from fastlip.kernels.common.padding import Pads

# Beside products: the transforms, for each pixel of the torus in each channel, and reading a number of the spectrum.
# Fitted to (c, side) = (32, 32), (64, 16), (128, 8), (256, 4) at batch 64, on the image's torus and on the next
# larger one, on two cores with AVX-512.
_TRANSFORM = 130
_READ = 30


def torus_of(image: Size, pads: Pads, padding_mode: PaddingMode) -> Size:
    """``ConvGeometry.fast_fft_size`` of a convolution with these pads."""
    left, right, top, bottom = pads
    geometry = ConvGeometry((top + bottom + 1, left + right + 1), pads=pads, padding_mode=padding_mode)
    return geometry.fast_fft_size(image)


def convolution(batch: int, channels: Size, image: Size, taps: int) -> int:
    """Of a kernel of (inputs, outputs) channels with so many taps, without its spectrum."""
    return batch * image[0] * image[1] * taps * channels[0] * channels[1]


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
