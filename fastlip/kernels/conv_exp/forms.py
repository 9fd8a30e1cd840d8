"""The form in which the kernels apply the series, chosen by a count of multiply-adds, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.sizes import are_static
from fastlip.kernels.common.winograd import Tile
from fastlip.kernels.conv_exp.polynomial import products_of
from fastlip.kernels.spectral_conv import costs

_TYPICAL_BATCH = 64  # assumed in a program that is compiled for any batch size
_LARGEST_SPECTRUM = 2**27  # bytes; the backward needs about ten times as much for a while


def choose(x: Sequence[int], geometry: ConvGeometry, terms: int, itemsize: int, tile: Tile | None = None) -> str:
    """Returns the cheapest form for the shape of x, of those whose spectrum is small enough.

    ``"taps"``: one convolution for each power of K. ``"spectrum"``: one spectral convolution instead. ``"matrices"``,
    with circular padding: p(K) as a matrix at each frequency, applied by one spectral convolution.
    ``tile``: as in ``costs.convolution``.
    """
    batch, channels, height, width = x
    taps, ports = geometry.taps, (channels, channels)
    if not are_static(channels, height, width):
        return "taps"
    if not are_static(batch):
        batch = _TYPICAL_BATCH
    fft_size = geometry.fast_fft_size((height, width))
    large = math.prod(fft_size) * channels**2 * itemsize > _LARGEST_SPECTRUM
    if taps == 1 or 0 in (batch, channels, height, width) or large:
        return "taps"
    once = costs.spectral_convolution(batch, ports, fft_size)
    found = {
        "taps": terms * costs.convolution(batch, ports, (height, width), taps, tile),
        "spectrum": terms * once,
    }
    if geometry.padding_mode == "circular":
        found["matrices"] = once + costs.products(products_of(terms) * channels, ports, fft_size)
    # Written out: torch.compile takes min over no dictionary.
    cheapest = "taps"
    for form, cost in found.items():
        cheapest = form if cost < found[cheapest] else cheapest
    return cheapest
