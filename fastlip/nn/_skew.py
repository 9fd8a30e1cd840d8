"""Skew kernels, and a bound of their norm that holds for every image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.gate import is_recorded
from fastlip.kernels.conv_exp.polynomial import polynomial
from fastlip.kernels.conv_exp.truncation import taylor
from fastlip.kernels.spectral_conv.api import FixedSpectrum, kernel_spectrum, per_frequency, spectral_conv_fixed
from fastlip.kernels.spectral_conv.frequencies import Size

_SQUARINGS = 5  # the bound of a c x c matrix is at most c^(1/128) too large: 2 % for c = 16, 4 % for c = 256


def skew(raw: Tensor) -> Tensor:
    """(K - K^T) / 2 of (groups, c, c, kh, kw): the adjoint of a convolution has the transposed, flipped kernel."""
    return (raw - raw.transpose(1, 2).flip(3, 4)) / 2


def norm_bound(kernel: Tensor) -> Tensor:
    """(groups,): bounds of the norms of the convolutions (groups, c, c, kh, kw), for any image, zeros or circular.

    K at any frequency is R E with R the c x (kh kw c) matrix of the taps and E of norm sqrt(kh kw) (Singla, Feizi,
    *Fantastic Four*, ICLR 2021). No singular value decomposition, no synchronisation with the host; differentiable,
    finite at 0.
    """
    return matrix_bound(kernel.flatten(2)) * math.sqrt(math.prod(kernel.shape[3:]))


def norm_on(torus: Size, kernel: Tensor, dilation: Size) -> Tensor:
    """A tighter bound, of all groups' norms on this circular image, and on zero-padded ones that it holds."""
    spectrum = kernel_spectrum(kernel.flatten(0, 1), torus, dilation)
    return matrix_bound(spectrum.unflatten(1, (len(kernel), -1))).max()


# Tracing an autograd.Function makes torch.compile warn; a call left whole in the graph is traced by autograd.
@torch.compiler.allow_in_graph
def matrix_bound(R: Tensor) -> Tensor:
    """(*): bounds of the norms of matrices (*, m, n), by ||R||^2 <= |S^p|_F^(1 / p), S = R Rᴴ, p = 2^5."""
    return _MatrixBound.forward(R) if is_recorded() else _MatrixBound.apply(R)


class _MatrixBound(torch.autograd.Function):
    """Keeps R alone: the gradient of b = |S^p|_F^(1 / 2p) is b S^(2p - 1) R / tr S^(2p)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(R: Tensor) -> Tensor:
        size, scaled = _scaled(R)
        _, norms = _powers(scaled)
        logarithm = torch.stack([norm.log() / 2**step for step, norm in enumerate(norms)]).sum(0)
        return (size * (logarithm / 2).exp())[..., 0, 0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        R, bound = ctx.saved_tensors
        size, scaled = _scaled(R)
        powers, norms = _powers(scaled)
        product = powers[0]  # S^1 S^2 S^4 ... up to a factor, which the trace divides out
        for power in powers[1:]:
            product = product @ power
        trace = (product * powers[0].mT).sum((-2, -1), keepdim=True) * norms[0]
        return (gradient * bound)[..., None, None] / (size * trace) * (product @ scaled)


def _scaled(R: Tensor) -> tuple[Tensor, Tensor]:
    """The largest entry of each matrix, 1 for a zero matrix, and R divided by it."""
    size = R.abs().amax((-2, -1), keepdim=True)
    size = torch.where(size > 0, size, 1)
    return size, R / size


def _powers(R: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """S, S^2, S^4, ..., each the square of the one before divided by its norm, and those norms."""
    # The largest entry of R is 1: eps hardly enlarges the bound, and keeps the gradient finite at R = 0.
    power = R @ R.mH + torch.finfo(R.dtype).eps * torch.eye(R.shape[-2], dtype=R.dtype, device=R.device)
    norms = [torch.linalg.matrix_norm(power, keepdim=True)]
    powers = [power / norms[0]]
    for _ in range(_SQUARINGS):
        power = powers[-1] @ powers[-1]
        norms.append(torch.linalg.matrix_norm(power, keepdim=True))
        powers.append(power / norms[-1])
    return powers, norms


def series_of_spectrum(spectrum: Tensor, torus: Size, groups: int, terms: int) -> Tensor:
    """The matrices per frequency of a kernel's truncated series, from those of the kernel."""

    def series(matrices: Tensor) -> Tensor:
        return polynomial(matrices.unflatten(1, (groups, -1)).flatten(0, 1), taylor(terms)).view_as(matrices)

    return per_frequency(series, spectrum, torus)


def series_by_spectrum(
    x: Tensor, spectrum: FixedSpectrum, coefficients: Sequence[float], bias: Tensor | None
) -> Tensor:
    """sum_t c_t K^t x + bias by Horner's rule, K by fixed matrices on a torus that holds the padded image."""
    total = x
    for following, coefficient in zip(coefficients[:1:-1], coefficients[-2:0:-1], strict=True):
        total = spectral_conv_fixed(total, spectrum, residual=x, factor=-following / coefficient)
    constant, factor = coefficients[:2]
    subtracted = bias if bias is None else -bias / constant
    y = spectral_conv_fixed(total, spectrum, subtracted, x, factor=-factor / constant)
    rounded = torch.tensor(constant, dtype=x.dtype).item()
    return y if rounded == 1 else y.mul_(constant)
