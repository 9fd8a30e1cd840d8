"""conv_exp on circular images by one spectral convolution: p(K) is a matrix at each frequency."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.conv_exp.polynomial import polynomial, polynomial_adjoint, polynomial_and_factors
from fastlip.kernels.conv_exp.series import Series
from fastlip.kernels.spectral_conv import native
from fastlip.kernels.spectral_conv.api import own_frequencies
from fastlip.kernels.spectral_conv.frequencies import Size, kernel_spectrum, kernel_spectrum_adjoint


def forward(
    series: Series, x: Tensor, bias: Tensor | None, keep: bool, training: bool
) -> tuple[Tensor, list[Tensor]]:
    """y, the same in training; there is nothing else to be kept."""
    size = x.shape[2], x.shape[3]
    Q = torch.cat([polynomial(K, series.coefficients) for K in _matrices(series, size)])
    return native.spectral_conv_forward(x, Q, bias, size, 1), []


def backward(
    series: Series, gradient: Tensor, x: Tensor | None, sums: list[Tensor], needs_bias: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of x, kernel and bias; the matrices are computed again."""
    size = gradient.shape[2], gradient.shape[3]
    matrices, coefficients = _matrices(series, size), series.coefficients
    results = [polynomial_and_factors(K, coefficients) for K in matrices]
    Q = torch.cat([Q for Q, _ in results])
    images, wanted = gradient if x is None else x, [True, x is not None, needs_bias]
    x_gradient, Q_gradient, bias_gradient = native.spectral_conv_backward(gradient, images, Q, size, 1, wanted)
    if x is None:
        return x_gradient, None, bias_gradient
    own = len(matrices[0])
    of_Q = Q_gradient[:own].real.contiguous(), Q_gradient[own:]
    of_K = [
        polynomial_adjoint(K, factors, part, coefficients)
        for K, (_, factors), part in zip(matrices, results, of_Q, strict=True)
    ]
    of_taps = kernel_spectrum_adjoint(torch.cat(of_K), series.kernel.shape, size, series.geometry.dilation)
    return x_gradient, of_taps, bias_gradient


def _matrices(series: Series, size: Size) -> tuple[Tensor, Tensor]:
    """The matrices of K at self-conjugate frequencies, which are real, and at the others."""
    spectrum = kernel_spectrum(series.kernel, size, series.geometry.dilation)
    own = own_frequencies(size)
    return spectrum[:own].real.contiguous(), spectrum[own:]
