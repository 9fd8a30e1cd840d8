"""In which form the kernels apply the series: chosen by a count of multiply-adds, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastlip.ops._padding import same_pads
from fastlip.ops.conv_exp.polynomial import products_of
from fastlip.ops.spectral_conv import costs

_LARGEST_SPECTRUM = 2**27  # bytes; the backward needs about ten times as much for a while


def choose(
    x: Sequence[int], kernel: Sequence[int], terms: int, dilation: Sequence[int], padding_mode: str, itemsize: int
) -> str:
    """The cheapest form for the shapes of x and kernel, of those whose spectrum is small enough.

    ``"taps"``: one convolution for each power of K. ``"spectrum"``: one spectral convolution instead. ``"matrices"``,
    with circular padding: p(K) as a matrix at each frequency, applied by one spectral convolution.
    """
    batch, channels, height, width = x
    taps, ports = math.prod(kernel[2:]), (channels, channels)
    torus = costs.torus_of((height, width), same_pads(tuple(kernel[2:]), tuple(dilation)), padding_mode)
    if taps == 1 or 0 in x or math.prod(torus) * channels**2 * itemsize > _LARGEST_SPECTRUM:
        return "taps"
    once = costs.spectral_convolution(batch, ports, torus)
    found = {"taps": terms * costs.convolution(batch, ports, (height, width), taps), "spectrum": terms * once}
    if padding_mode == "circular":
        found["matrices"] = once + costs.products(products_of(terms) * channels, ports, torus)
    return min(found, key=lambda form: found[form])
