"""The exponential of skew matrices and its gradient by products of matrices, through torch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common.dispatch import registered
from fastlip.kernels.common.exponential import matrix_exp
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.common.sizes import surely_below
from fastlip.kernels.skew_exp import commutators, on_device, polynomial

KERNELS = ""  # made of torch's products

# Numbers from which this wins, forward and backward.
_WORTHWHILE = 1 << 4


def supports(K: Tensor) -> str:
    """Empty: matrix products run everywhere."""
    return ""


def unprofitable(K: Tensor) -> str:
    """Empty, or why the reference is faster."""
    if K.is_cuda:  # torch.linalg.matrix_exp waits for a GPU
        return "" if registered["skew_exp"].why_not("triton", K) else "Triton's kernels take fewer launches"
    little = surely_below(K.numel(), _WORTHWHILE)
    return "calls of torch cost more than the products of so few numbers" if little else ""


def skew_exp_forward(K: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """exp((K - Kᵀ) / 2), orthogonal to rounding; and what the backward in float32 on a CPU needs besides it."""
    A = (K - K.mT) / 2
    with full_precision(K.device):
        if K.is_cuda or K.dtype == torch.float64:
            E = on_device.exponential(A) if K.is_cuda else matrix_exp(A)
            return _correct(E).contiguous(), K.new_empty(0), K.new_empty(0)
        E, square, B, squarings = polynomial.exponential(A.view(-1, *A.shape[-2:]))
        if squarings:  # each doubles rounding errors
            E = _correct(E)
    return E.view(K.shape), square, B


def skew_exp_backward(gradient: Tensor, K: Tensor, E: Tensor, square: Tensor, B: Tensor) -> Tensor:
    """The skew part of the gradient of K (README.md)."""
    A = (K - K.mT) / 2
    if K.is_cuda:
        with full_precision(K.device):
            return on_device.adjoint(gradient @ E.mT, A)
    if K.dtype == torch.float64:
        return commutators.adjoint(gradient @ E.mT, A)
    with full_precision(K.device):
        shape = -1, *K.shape[-2:]
        return polynomial.adjoint(gradient.contiguous().view(shape), A.view(shape), square, B).view(K.shape)


def _correct(E: Tensor) -> Tensor:
    """One Newton-Schulz step as a small correction, E + E (I - EᵀE) / 2, whose own rounding hardly counts.

    It maps singular values up to sqrt(3) to at most 1. An E that may exceed that is scaled down first.
    """
    gram, identity = E.mT @ E, torch.eye(E.shape[-1], dtype=E.dtype, device=E.device)
    square = ((1 + torch.linalg.matrix_norm(gram - identity, keepdim=True)) / 3).clamp(min=1)
    E = E * square.rsqrt()
    return E + E @ ((identity - gram / square) / 2)
