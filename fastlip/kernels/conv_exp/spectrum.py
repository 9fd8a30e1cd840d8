"""conv_exp by one spectral convolution for each power of K, at an FFT size that holds the padded image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastlip.kernels.conv_exp.series import Series
from fastlip.kernels.spectral_conv import native
from fastlip.kernels.spectral_conv.frequencies import Size, kernel_spectrum, kernel_spectrum_adjoint


def forward(
    series: Series, x: Tensor, bias: Tensor | None, keep: bool, training: bool
) -> tuple[Tensor, list[Tensor]]:
    """y, and if they are to be kept the sums of Horner's rule; the same in training."""
    (K, size), coefficients = _matrices(series, x), series.coefficients
    sums, outermost = [], x
    for outermost in _sums(x, K, size, coefficients):
        if keep:
            sums.append(outermost)
    factor = coefficients[1]
    y = native.spectral_conv_forward(outermost, K, bias if bias is None else bias / factor, size, 1)
    return y.mul_(factor).add_(x, alpha=coefficients[0]), sums[1:]


def backward(
    series: Series, gradient: Tensor, x: Tensor | None, sums: list[Tensor], needs_bias: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of x, kernel and bias.

    With h_0 = y_bar and h_t = K^T h_{t-1}: x_bar = sum_t c_t h_t, and the gradient of K's matrices is that of
    sum_t c_t <h_{t-1}, K a_t>, summed over the powers before it becomes that of the taps.
    """
    (K, size), coefficients = _matrices(series, gradient), series.coefficients
    inputs = [x, *sums]
    if x is not None and len(sums) < len(coefficients) - 2:
        inputs = list(_sums(x, K, size, coefficients))
    x_gradient, K_gradient, h = gradient * coefficients[0], torch.zeros_like(K), gradient
    for t, coefficient in enumerate(coefficients[1:], 1):
        a, wanted = (h, [True, False, False]) if x is None else (inputs[-t], [True, True, False])
        h, part, _ = native.spectral_conv_backward(h, a, K, size, 1, wanted)
        x_gradient.add_(h, alpha=coefficient)
        if x is not None:
            K_gradient.add_(part, alpha=coefficient)
    bias_gradient = gradient.sum((0, 2, 3)) if needs_bias else None
    if x is None:
        return x_gradient, None, bias_gradient
    of_taps = kernel_spectrum_adjoint(K_gradient, series.kernel.shape, size, series.geometry.dilation)
    return x_gradient, of_taps, bias_gradient


def _matrices(series: Series, x: Tensor) -> tuple[Tensor, Size]:
    size = series.geometry.fast_fft_size((x.shape[2], x.shape[3]))
    return kernel_spectrum(series.kernel, size, series.geometry.dilation), size


def _sums(x: Tensor, K: Tensor, size: Size, coefficients: Sequence[float]) -> Iterator[Tensor]:
    """x, x + r_T K x, ..., all but the outermost sum of Horner's rule; r_t = c_t / c_{t-1}."""
    total = x
    yield total
    for one, following in zip(coefficients[-2:0:-1], coefficients[:1:-1], strict=True):
        z = native.spectral_conv_forward(total, K, None, size, 1)
        total = torch.add(x, z, alpha=following / one, out=z)
        yield total
