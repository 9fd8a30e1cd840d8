"""Matrix exponential of skew-Hermitian matrices by eigendecomposition."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.compiled import left_whole
from fastlip.kernels.common.derivatives import differentiated
from fastlip.kernels.common.exponential import matrix_exp
from fastlip.kernels.common.finite import finite_part, poisoned
from fastlip.kernels.common.gate import is_recorded, is_transformed
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.polar.reference import polish
from fastlip.kernels.spectral_conv.frequencies import Size, kernel_spectrum, per_frequency


# Tracing an autograd.Function makes torch.compile warn; a call left whole in the graph is traced by autograd.
@left_whole
def spectral_exp(K: Tensor) -> Tensor:
    """exp((K - Kᴴ) / 2) = V diag(exp(-i l)) Vᴴ for the Hermitian i (K - Kᴴ) / 2 = V diag(l) Vᴴ."""
    if is_transformed():
        return by_series(K)
    return (_Exponential.forward(K) if is_recorded() else _Exponential.apply(K))[0]


def kernel_exp(kernel: Tensor, size: Size, dilation: Size, groups: int) -> Tensor:
    """The exponentials of a kernel's matrices at each frequency, (F, c, c / groups)."""

    def exponential(matrices: Tensor) -> Tensor:
        return spectral_exp(matrices.unflatten(1, (groups, -1))).flatten(1, 2)

    return per_frequency(exponential, kernel_spectrum(kernel, size, dilation), size)


class _Exponential(torch.autograd.Function):
    @staticmethod
    def forward(K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        angles, V = decompose(K)
        E = V * torch.polar(torch.ones_like(angles), -angles)[..., None, :] @ V.mH
        return polish(E if K.is_complex() else E.real), angles, V

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> Tensor | None:
        K, *factors = ctx.saved_tensors
        with full_precision(gradient.device):
            if torch.is_grad_enabled():
                return differentiated(by_series, (K,), (True,), gradient)[0]
            return exponential_adjoint(gradient, *factors)


def by_series(K: Tensor) -> Tensor:
    """exp((K - Kᴴ) / 2) by torch's series, which can be differentiated any number of times, in every mode.

    Derivatives of eigenvectors have denominators. The rounding error of the series is corrected in value.
    """
    K, finite = finite_part(K)
    E = matrix_exp((K - K.mH) / 2)
    return poisoned(E + (polish(E.detach()) - E.detach()), finite)


def decompose(K: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the Hermitian i (K - Kᴴ) / 2; eigenvalues NaN where that is not finite."""
    skew, finite = finite_part(0.5j * (K - K.mH))
    angles, V = torch.linalg.eigh(skew)
    return torch.where(finite[..., 0], angles, torch.nan), V


def exponential_adjoint(gradient: Tensor, angles: Tensor, V: Tensor) -> Tensor:
    """The gradient of K from that of exp(K), by divided differences of the exponential (README.md)."""
    mean = (angles[..., :, None] + angles[..., None, :]) / 2
    half_difference = (angles[..., :, None] - angles[..., None, :]) / 2
    divided = torch.sinc(half_difference / math.pi) * torch.polar(torch.ones_like(mean), mean)
    A = V @ (V.mH @ gradient.to(V.dtype) @ V * divided) @ V.mH
    A = (A - A.mH) / 2
    return A if gradient.is_complex() else A.real.contiguous()
