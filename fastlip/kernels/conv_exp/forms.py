"""In which form the kernels apply the series: chosen by a count of multiply-adds, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastlip.kernels.common.literals import PaddingMode
from fastlip.kernels.common.padding import same_pads
from fastlip.kernels.common.sizes import are_static
from fastlip.kernels.conv_exp.polynomial import products_of
from fastlip.kernels.spectral_conv import costs

_TYPICAL_BATCH = 64  # of a program that is compiled for any
_LARGEST_SPECTRUM = 2**27  # bytes; the backward needs about ten times as much for a while


def choose(
    x: Sequence[int],
    kernel: Sequence[int],
    terms: int,
    dilation: Sequence[int],
    padding_mode: PaddingMode,
    itemsize: int,
) -> str:
    """The cheapest form for the shapes of x and kernel, of those whose spectrum is small enough.

    ``"taps"``: one convolution for each power of K. ``"spectrum"``: one spectral convolution instead. ``"matrices"``,
    with circular padding: p(K) as a matrix at each frequency, applied by one spectral convolution.
    """
    batch, channels, height, width = x
    taps, ports = math.prod(kernel[2:]), (channels, channels)
    if not are_static(channels, height, width):
        return "taps"
    if not are_static(batch):
        batch = _TYPICAL_BATCH
    torus = costs.torus_of((height, width), same_pads(tuple(kernel[2:]), tuple(dilation)), padding_mode)
    large = math.prod(torus) * channels**2 * itemsize > _LARGEST_SPECTRUM
    if taps == 1 or 0 in (batch, channels, height, width) or large:
        return "taps"
    once = costs.spectral_convolution(batch, ports, torus)
    found = {"taps": terms * costs.convolution(batch, ports, (height, width), taps), "spectrum": terms * once}
    if padding_mode == "circular":
        found["matrices"] = once + costs.products(products_of(terms) * channels, ports, torus)
    # Written out: torch.compile takes min over no dictionary.
    cheapest = "taps"
    for form, cost in found.items():
        cheapest = form if cost < found[cheapest] else cheapest
    return cheapest
