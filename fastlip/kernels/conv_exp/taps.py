"""conv_exp by channels-last convolutions of oneDNN or Winograd, one pass between two of them.

The pass is that of csrc/conv_chain: the sum with x, in place, and the halo of the next convolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common import winograd
from fastlip.kernels.conv_exp.series import Series


def forward(
    series: Series, x: Tensor, bias: Tensor | None, keep: bool, training: bool
) -> tuple[Tensor, list[Tensor]]:
    """y, and if they are to be kept the sums of Horner's rule; by ``winograd`` where it is faster."""
    series = _channels_last(series)
    kernel, coefficients, geometry = series
    sums, outermost = [], x
    for plain, extended in _sums(series, x, keep, training):
        outermost = extended
        if keep:
            sums.append(plain)
    last, factor = kernel * coefficients[1], coefficients[0]
    size = x.shape[2], x.shape[3]
    tile = images.tile_for(x, kernel, geometry, size, training)
    if tile is not None:
        y = winograd.convolve(outermost, last, geometry, size, winograd.Finish(bias, x, factor), tile)
    else:
        y = images.convolve(outermost, last, geometry, bias).add_(x, alpha=factor)
    return y, sums[1:]


def backward(
    series: Series, gradient: Tensor, x: Tensor | None, sums: list[Tensor], needs_bias: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of x, kernel and bias."""
    kernel, coefficients, geometry = series
    inputs = []
    if x is not None:
        if len(sums) < len(coefficients) - 2:
            inputs = [plain for plain, _ in _sums(_channels_last(series), x, True, True)]
        else:
            inputs = [x, *sums]
    adjoint = images.adjoint(kernel).contiguous(memory_format=images.LAST)
    size = gradient.shape[2], gradient.shape[3]
    halo = images.halo_for(geometry, images.tile_for(gradient, adjoint, geometry, size, True), adjoint=True)
    adjoint_gradient = torch.zeros_like(adjoint, memory_format=torch.contiguous_format)
    g = x_gradient = gradient
    for t, factor in enumerate(_factors(coefficients), 1):
        extended = images.with_halo(g, halo)
        other = inputs[-t] if inputs else None
        g, part = images.convolve_and_differentiate(extended, other, adjoint * factor, geometry, size)
        if part is not None:
            adjoint_gradient.add_(part, alpha=factor)
        x_gradient = torch.add(g, gradient, alpha=coefficients[0]) if t == 1 else x_gradient.add_(g)
    kernel_gradient = images.adjoint(adjoint_gradient).contiguous() if inputs else None
    return x_gradient, kernel_gradient, gradient.sum((0, 2, 3)) if needs_bias else None


def _factors(coefficients: Sequence[float]) -> list[float]:
    """The factor of K at each step of Horner's rule, outermost first; c_0 is multiplied into the first."""
    ratios = [following / one for one, following in pairwise(coefficients)]
    return [coefficients[1], *ratios[1:]]


def _channels_last(series: Series) -> Series:
    return series._replace(kernel=series.kernel.contiguous(memory_format=images.LAST))


def _sums(series: Series, x: Tensor, keep: bool, training: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """x, x + r_T K x, ..., all but the outermost sum; each plain (if it is to be kept) and with its halo."""
    kernel, coefficients, geometry = series
    size = x.shape[2], x.shape[3]
    tile = images.tile_for(x, kernel, geometry, size, training)
    halo = images.halo_for(geometry, tile)
    extended = images.with_halo(x, halo)
    yield x, extended
    for factor in reversed(_factors(coefficients)[1:]):
        if tile is not None:
            plain = winograd.convolve(extended, kernel * factor, geometry, size, winograd.Finish(added=x), tile)
            extended = images.with_halo(plain, halo)
            yield plain, extended
            continue
        # The pass subtracts.
        z = images.convolve(extended, kernel * -factor, geometry)
        plain, extended, address = images.outputs_of(z, halo)
        kept = plain.data_ptr() if keep or not address else 0
        images.launch(
            "conv_chain_forward", z, z.data_ptr(), 0, x.data_ptr(), kept, address, 0, images.ACTIVATIONS["none"],
            halo=halo,
        )  # fmt: skip
        yield plain, extended
