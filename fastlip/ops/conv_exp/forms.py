"""In which form the kernels apply the series: by convolutions, or by one matrix per frequency."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastlip.ops.conv_exp.polynomial import products_of
from fastlip.ops.spectral_conv import costs

_LARGEST_SPECTRUM = 2**27  # bytes; the backward needs about ten times as much for a while


def choose(x: Sequence[int], kernel: Sequence[int], terms: int, padding_mode: str, itemsize: int, keep: bool) -> str:
    """For the shapes of x and kernel: ``"spectral"``, or with convolutions their sums ``"kept"`` or ``"recomputed"``.

    With circular padding p(K) is a matrix per frequency, and applied by one spectral convolution: where matrices
    are small enough, and their products with it take fewer multiply-adds than the convolutions. Nothing is kept.
    """
    if padding_mode == "circular" and 0 not in x and _is_cheaper(x, kernel, terms, itemsize):
        return "spectral"
    return "kept" if keep else "recomputed"


def _is_cheaper(x: Sequence[int], kernel: Sequence[int], terms: int, itemsize: int) -> bool:
    batch, channels, height, width = x
    pixels, taps, ports, torus = height * width, math.prod(kernel[2:]), (channels, channels), (height, width)
    if taps == 1 or pixels * channels**2 * itemsize > _LARGEST_SPECTRUM:
        return False
    matrices = costs.products(products_of(terms) * channels, ports, torus)
    convolutions = terms * batch * pixels * taps * channels**2
    return costs.spectral_convolution(batch, ports, torus) + matrices < convolutions
