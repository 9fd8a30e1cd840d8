"""conv_exp by one spectral convolution for each power of K, on a torus that holds the padded image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastlip.ops._padding import same_pads
from fastlip.ops.spectral_conv import costs, native
from fastlip.ops.spectral_conv.frequencies import Size, kernel_spectrum, kernel_spectrum_adjoint


def forward(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    coefficients: Sequence[float],
    keep: bool,
    dilation: Size,
    padding_mode: str,
) -> tuple[Tensor, list[Tensor]]:
    """Y, and if they are to be kept the sums of Horner's rule that are neither x nor y, innermost first."""
    K, torus = _matrices(x, kernel, dilation, padding_mode)
    sums, outermost = [], x
    for outermost in _sums(x, K, torus, coefficients):
        if keep:
            sums.append(outermost)
    factor = coefficients[1]
    y = native.spectral_conv_forward(outermost, K, bias if bias is None else bias / factor, torus, 1)
    return y.mul_(factor).add_(x, alpha=coefficients[0]), sums[1:]


def backward(
    gradient: Tensor,
    x: Tensor | None,
    kernel: Tensor,
    sums: list[Tensor],
    needs_bias: bool,
    coefficients: Sequence[float],
    dilation: Size,
    padding_mode: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of the kernel (empty where x was not kept) and of the bias.

    With h_0 = y_bar and h_t = K^T h_{t-1}: x_bar = sum_t c_t h_t, and the gradient of K's matrices is that of
    sum_t c_t <h_{t-1}, K a_t>, summed over the powers before it becomes that of the taps.
    """
    K, torus = _matrices(gradient, kernel, dilation, padding_mode)
    inputs = [x, *sums]
    if x is not None and len(sums) < len(coefficients) - 2:
        inputs = list(_sums(x, K, torus, coefficients))
    x_gradient, K_gradient, h = gradient * coefficients[0], torch.zeros_like(K), gradient
    for t, coefficient in enumerate(coefficients[1:], 1):
        a, wanted = (h, [True, False, False]) if x is None else (inputs[-t], [True, True, False])
        h, part, _ = native.spectral_conv_backward(h, a, K, torus, 1, wanted)
        x_gradient.add_(h, alpha=coefficient)
        if x is not None:
            K_gradient.add_(part, alpha=coefficient)
    bias_gradient = gradient.sum((0, 2, 3)) if needs_bias else kernel.new_empty(0)
    if x is None:
        return x_gradient, kernel.new_empty((0, 0, 0, 0)), bias_gradient
    return x_gradient, kernel_spectrum_adjoint(K_gradient, kernel.shape, torus, dilation), bias_gradient


def _matrices(x: Tensor, kernel: Tensor, dilation: Size, padding_mode: str) -> tuple[Tensor, Size]:
    pads = same_pads(kernel.shape[2:], dilation)
    torus = costs.torus_of((x.shape[2], x.shape[3]), pads, padding_mode)
    return kernel_spectrum(kernel, torus, dilation), torus


def _sums(x: Tensor, K: Tensor, torus: Size, coefficients: Sequence[float]) -> Iterator[Tensor]:
    """x, x + r_T K x, ..., all but the outermost sum of Horner's rule; r_t = c_t / c_{t-1}."""
    total = x
    yield total
    for one, following in zip(coefficients[-2:0:-1], coefficients[:1:-1], strict=True):
        z = native.spectral_conv_forward(total, K, None, torus, 1)
        total = torch.add(x, z, alpha=following / one, out=z)
        yield total
