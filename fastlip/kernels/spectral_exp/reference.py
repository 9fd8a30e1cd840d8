"""Matrix exponential of skew-Hermitian matrices by eigendecomposition."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.finite import finite_part, poisoned
from fastlip.kernels.common.gate import is_recorded
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.polar.reference import polish
from fastlip.kernels.spectral_conv.frequencies import Size, kernel_spectrum, per_frequency


# Tracing an autograd.Function makes torch.compile warn; a call left whole in the graph is traced by autograd.
@torch.compiler.allow_in_graph
def spectral_exp(K: Tensor) -> Tensor:
    """exp((K - Kᴴ) / 2) = V diag(exp(-i l)) Vᴴ for the Hermitian i (K - Kᴴ) / 2 = V diag(l) Vᴴ."""
    return (_Exponential.forward(K) if is_recorded() else _Exponential.apply(K))[0]


def kernel_exp(kernel: Tensor, size: Size, dilation: Size, groups: int) -> Tensor:
    """The exponentials of a kernel's matrices at each frequency, (F, c, c / groups)."""

    def exponential(matrices: Tensor) -> Tensor:
        return spectral_exp(matrices.unflatten(1, (groups, -1))).flatten(1, 2)

    return per_frequency(exponential, kernel_spectrum(kernel, size, dilation), size)


class _Exponential(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        angles, V = decompose(K)
        E = V * torch.polar(torch.ones_like(angles), -angles)[..., None, :] @ V.mH
        return polish(E if K.is_complex() else E.real), angles, V

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> Tensor:
        K, angles, V = ctx.saved_tensors
        with full_precision(gradient.device):
            if torch.is_grad_enabled():
                return _skew_part(_derivative(_skew_part(K).mH, gradient))
            return exponential_adjoint(gradient, angles, V)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, None, None]:
        (K,) = ctx.saved_tensors
        with full_precision(tangent.device):
            return _derivative(_skew_part(K), _skew_part(tangent)), None, None


def _skew_part(K: Tensor) -> Tensor:
    return (K - K.mH) / 2


def _derivative(A: Tensor, direction: Tensor) -> Tensor:
    """The derivative of exp at A: the upper right block of exp([[A, direction], [0, A]]), differentiable again.

    The adjoint is the derivative at Aᴴ. By divided differences it would have denominators of its own.
    """
    A, finite = finite_part(A)
    size = A.shape[-1]
    upper, lower = torch.cat((A, direction), -1), torch.cat((torch.zeros_like(A), A), -1)
    block = torch.linalg.matrix_exp(torch.cat((upper, lower), -2))
    return poisoned(block[..., :size, size:], finite)


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
