"""Truncated exponential of a convolution (Singla, Feizi 2021), by Horner's rule."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastlip.kernels.common.geometry import ConvGeometry


def conv_exp(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    coefficients: Sequence[float],
    geometry: ConvGeometry,
) -> Tensor:
    """c_0 (x + r_1 K(x + r_2 K(x + ...))) + b with r_t = c_t / c_{t-1}, innermost first; r_t = 1/t of the series."""
    y = x
    for t in range(len(coefficients) - 1, 0, -1):
        weight = kernel * (coefficients[t] / coefficients[t - 1])
        y = x + geometry.convolve(y, weight)
    y = y if coefficients[0] == 1 else y * coefficients[0]
    return y if bias is None else y + bias[:, None, None]
