"""Decides which bounds of the audit are tight, i.e. equal the norm up to rounding."""

from __future__ import annotations

import math
from functools import lru_cache

from fastlip.kernels.common.geometry import ConvGeometry, Pair
from fastlip.kernels.spectral_norm.reference import is_cheap


def matrix_is_exact(rows: int, columns: int) -> bool:
    """Whether the 2-norm of such a matrix is computed, not bounded by Gram iteration."""
    return is_cheap(1, min(rows, columns))


@lru_cache(1024)
def convolution_is_exact(shape: tuple[int, ...], image: Pair, geometry: ConvGeometry) -> bool:
    """Whether ``fastlip.ops.spectral_norm`` is exact here: one tap, or circular with all its padding.

    Args:
        shape: that of the kernel, (outputs, inputs of a group, ...).
        image: the sides of the input.
        geometry: that of the convolution.
    """
    frequencies = 1
    for padding, halo, side, step in zip(geometry.totals, geometry.halo, image, geometry.stride, strict=True):
        circular = geometry.padding_mode == "circular" and padding == halo and side % step == 0
        if not (circular or halo == padding == 0):
            return False
        frequencies *= -(-side // step)
    groups, patch = geometry.groups, math.prod(geometry.stride)
    if geometry.taps == 1:
        frequencies = patch = 1
    return is_cheap(groups * frequencies, min(shape[0] // groups, shape[1] * patch))
