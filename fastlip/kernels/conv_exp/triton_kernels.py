"""conv_exp on a GPU, of one group: cuDNN's channels-last convolutions, and the halos of conv_chain's pass in Triton.

Horner's rule without factors of the kernel: s_T = c_T x, s_{t-1} = c_{t-1} x + K s_t, and y = s_0 + b. With the
gradients g_0 = ȳ, g_t = Kᵀ g_{t-1}, the gradient of x is the sum of c_t g_t, that of K the sum of s_t ⊗ g_{t-1}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common.geometry import ConvGeometry, from_numbers
from fastlip.kernels.conv_chain import triton_kernels as conv_chain
from fastlip.kernels.conv_exp.series import refuse

_passes = conv_chain.Passes()
# The one kernel that runs here: of the halo alone.
AOT = [entry for entry in conv_chain.AOT if not entry.constants["PLAIN"]]


def supports(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    coefficients: Sequence[float],
    geometry: ConvGeometry,
    recompute: bool = False,
) -> str:
    """Empty, or why these kernels cannot run."""
    return refuse(x, kernel, bias, geometry) or _passes.missing(x)


def conv_exp_forward(
    x: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    coefficients: Sequence[float],
    keep: bool,
    exact: bool,
    form: str,
    numbers: Sequence[int],
    recompute: bool,
) -> tuple[Tensor, list[Tensor]]:
    """y, and if they are to be kept s_{T-1} ... s_1."""
    (geometry,) = from_numbers(tuple(numbers))
    sums = _sums(x.contiguous(memory_format=images.LAST), kernel, coefficients, geometry)
    y = sums.pop()
    return y if bias is None else y.add_(bias[:, None, None]), sums if keep else []


def conv_exp_backward(
    gradient: Tensor,
    x: Tensor | None,
    kernel: Tensor,
    sums: list[Tensor],
    needs_bias: bool,
    coefficients: Sequence[float],
    form: str,
    numbers: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, of the kernel (empty where x was not kept) and of the bias (empty unless needed)."""
    (geometry,) = from_numbers(tuple(numbers))
    kernel = kernel.contiguous(memory_format=images.LAST)
    g = gradient = gradient.contiguous(memory_format=images.LAST)
    inputs = []
    if x is not None:
        x = x.contiguous(memory_format=images.LAST)
        recomputed = len(sums) < len(coefficients) - 2
        inputs = [x, *(_sums(x, kernel, coefficients, geometry, 1) if recomputed else sums)]
    x_gradient = gradient if coefficients[0] == 1 else gradient * coefficients[0]
    kernel_gradient = kernel.new_empty((0, 0, 0, 0))
    for t, coefficient in enumerate(coefficients[1:], 1):
        image = inputs[-t] if inputs else g
        extended = _passes.with_halo(g, images.adjoint_halo_of(geometry))
        following, part = images.adjoint_gradients(image, extended, kernel, geometry, True, bool(inputs))
        g = cast(Tensor, following)
        x_gradient = torch.add(x_gradient, g, alpha=coefficient) if t == 1 else x_gradient.add_(g, alpha=coefficient)
        if part is not None:
            factor = coefficient if t == len(coefficients) - 1 else 1  # s_T is a multiple of x
            first = part if factor == 1 else part * factor
            kernel_gradient = first if t == 1 else kernel_gradient.add_(part, alpha=factor)
    return x_gradient, kernel_gradient.contiguous(), gradient.sum((0, 2, 3)) if needs_bias else kernel.new_empty(0)


def _sums(
    x: Tensor, kernel: Tensor, coefficients: Sequence[float], geometry: ConvGeometry, last: int = 0
) -> list[Tensor]:
    """s_{T-1}, ..., s_last."""
    halo = images.halo_of(geometry)
    kernel, image = kernel.contiguous(memory_format=images.LAST), x
    sums: list[Tensor] = []
    for coefficient in coefficients[-2 : last - len(coefficients) - 1 : -1]:
        weight = kernel if sums else kernel * coefficients[-1]
        image = images.convolve(_passes.with_halo(image, halo), weight, geometry)
        sums.append(image.add_(x, alpha=coefficient))
    return sums
