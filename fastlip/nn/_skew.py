"""Skew kernels, and a bound of their norm that holds for every image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastlip.kernels.common import gram
from fastlip.kernels.conv_exp.polynomial import polynomial
from fastlip.kernels.conv_exp.truncation import taylor
from fastlip.kernels.spectral_conv.api import FixedSpectrum, kernel_spectrum, per_frequency, spectral_conv_fixed
from fastlip.kernels.spectral_conv.frequencies import Size


def skew(raw: Tensor) -> Tensor:
    """(K - K^T) / 2 of (groups, c, c, kh, kw): the adjoint of a convolution has the transposed, flipped kernel."""
    return (raw - raw.transpose(1, 2).flip(3, 4)) / 2


def norm_bound(kernel: Tensor) -> Tensor:
    """(groups,): bounds of the norms of the convolutions (groups, c, c, kh, kw), for any image, zeros or circular.

    K at any frequency is R E with R the c x (kh kw c) matrix of the taps and E of norm sqrt(kh kw) (Singla, Feizi,
    *Fantastic Four*, ICLR 2021). No singular value decomposition, no synchronisation with the host; differentiable,
    finite at 0.
    """
    return gram.norm_bound(kernel.flatten(2)) * math.sqrt(math.prod(kernel.shape[3:]))


def norm_on(fft_size: Size, kernel: Tensor, dilation: Size) -> Tensor:
    """A tighter bound, of all groups' norms at this FFT size, and on zero-padded images that it holds."""
    spectrum = kernel_spectrum(kernel.flatten(0, 1), fft_size, dilation)
    return gram.norm_bound(spectrum.unflatten(1, (len(kernel), -1))).max()


def series_of_spectrum(spectrum: Tensor, fft_size: Size, groups: int, terms: int) -> Tensor:
    """The matrices per frequency of a kernel's truncated series, from those of the kernel."""

    def series(matrices: Tensor) -> Tensor:
        return polynomial(matrices.unflatten(1, (groups, -1)).flatten(0, 1), taylor(terms)).view_as(matrices)

    return per_frequency(series, spectrum, fft_size)


def series_by_spectrum(
    x: Tensor, spectrum: FixedSpectrum, coefficients: Sequence[float], bias: Tensor | None
) -> Tensor:
    """sum_t c_t K^t x + bias by Horner's rule, K by kept matrices at an FFT size that holds the padded image."""
    total = x
    for following, coefficient in zip(coefficients[:1:-1], coefficients[-2:0:-1], strict=True):
        total = spectral_conv_fixed(total, spectrum, residual=x, factor=-following / coefficient)
    constant, factor = coefficients[:2]
    subtracted = bias if bias is None else -bias / constant
    y = spectral_conv_fixed(total, spectrum, subtracted, x, factor=-factor / constant)
    rounded = torch.tensor(constant, dtype=x.dtype).item()
    return y if rounded == 1 else y.mul_(constant)
