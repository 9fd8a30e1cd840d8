"""The cost of a convolution in multiply-adds, through its spectrum and without it."""

from __future__ import annotations

from fastlip.kernels.common import winograd
from fastlip.kernels.common.fourier import Size, own_frequencies

# In addition to products: a transform, for each pixel and channel, and reading one number of the spectrum.
# Fitted to (c, side) = (32, 32), (64, 16), (128, 8), (256, 4) at batch 64, at the image's own FFT size and the next
# larger one, on two cores with AVX-512.
_TRANSFORM = 130
_READ = 30
# A step of training has three products and five transforms, in place of three convolutions. It computes the spectrum
# and its gradient anew: fitted to the same layers at batches 16, 64 and 128, with circular and zero padding, on one
# core, by processor time.
_READ_IN_TRAINING = 45


def convolution(batch: int, channels: Size, image: Size, taps: int, tile: winograd.Tile | None = None) -> int:
    """Multiply-adds of a kernel of (inputs, outputs) channels with this number of taps, without its spectrum.

    ``tile``: that of the kernel of ``kernels.common.winograd``, if it may run.
    """
    direct = batch * image[0] * image[1] * taps * channels[0] * channels[1]
    if tile is None:
        return direct
    return min(direct, winograd.operations(batch, image[0], image[1], channels[0], channels[1], tile))


def products(columns: int, channels: Size, fft_size: Size) -> int:
    """Multiply-adds of a spectrum of (inputs, outputs) channels with this number of columns at each frequency.

    At an FFT size of N pixels with g self-conjugate frequencies, a row times a column is 2 N - g real products.
    """
    area = fft_size[0] * fft_size[1]
    return columns * (2 * area - own_frequencies(fft_size)) * channels[0] * channels[1]


def spectral_convolution(batch: int, channels: Size, fft_size: Size, training: bool = False) -> int:
    """Products with the batch, 130 N (inputs + outputs) per image for transforms, and reading N inputs outputs.

    In training a third of a step, forward and backward.
    """
    read = _READ_IN_TRAINING if training else _READ
    area = fft_size[0] * fft_size[1]
    transforms = batch * area * sum(channels) * _TRANSFORM
    return products(batch, channels, fft_size) + transforms + read * area * channels[0] * channels[1]
