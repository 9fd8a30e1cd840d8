"""What a convolution costs through its spectrum, and without it, in multiply-adds; and on which torus it runs."""

from __future__ import annotations

from fastlip.kernels.common.literals import PaddingMode
from fastlip.kernels.common.padding import Pads
from fastlip.kernels.spectral_conv.frequencies import Size, own_frequencies

# Beside products: the transforms, for each pixel of the torus in each channel, and reading a number of the spectrum.
# Fitted to (c, side) = (32, 32), (64, 16), (128, 8), (256, 4) at batch 64, on the image's torus and on the next
# larger one, on two cores with AVX-512.
_TRANSFORM = 130
_READ = 30
_LARGEST_FACTOR = 17  # of a side of the torus: transforms of larger primes are slow


def torus_of(image: Size, pads: Pads, padding_mode: PaddingMode) -> Size:
    """The image's own torus with circular padding.

    Zero padding needs only as many zeros behind the image as the kernel reads before or after it.
    """
    if padding_mode == "circular":
        return image
    left, right, top, bottom = pads
    return _enlarged(image[0], max(top, bottom)), _enlarged(image[1], max(left, right))


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


def _enlarged(side: int, reach: int) -> int:
    length = side + reach
    while _largest_factor(length) > _LARGEST_FACTOR:
        length += 1
    return length


def _largest_factor(number: int) -> int:
    factor = 2
    while factor * factor <= number:
        if number % factor:
            factor += 1
        else:
            number //= factor
    return number
