"""The exponential of skew matrices with the gradient from commutators: products of matrices, through torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlip.kernels.common.dispatch import registered
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.common.sizes import surely_below
from fastlip.kernels.skew_exp import on_device

KERNELS = ""  # made of torch's products

_LARGEST_ANGLE = 2.0  # of the series: its terms stay below e^2, and so does what rounding is magnified by
# Numbers from which this wins, forward and backward, whatever the angles: one 48 x 48 matrix takes 0.7 of the
# reference's time at small ones and 1.0 at a norm of 1.4, one 17 x 17 matrix 0.9 and 1.3.
_WORTHWHILE = 1 << 12


def supports(K: Tensor) -> str:
    """Empty: matrix products run everywhere."""
    return ""


def unprofitable(K: Tensor) -> str:
    """Empty, or why the reference is faster."""
    if K.is_cuda:  # torch.linalg.matrix_exp waits for a GPU
        return "" if registered["skew_exp"].why_not("triton", K) else "Triton's kernels take fewer launches"
    little = surely_below(K.numel(), _WORTHWHILE)
    return "calls of torch cost more than the products of so few numbers" if little else ""


def skew_exp_forward(K: Tensor) -> Tensor:
    """exp((K - Kᵀ) / 2), orthogonal to rounding."""
    A = (K - K.mT) / 2
    with full_precision(K.device):
        return _correct(on_device.exponential(A) if K.is_cuda else torch.linalg.matrix_exp(A)).contiguous()


def skew_exp_backward(gradient: Tensor, K: Tensor, E: Tensor) -> Tensor:
    """The skew part of the integral of e^{-uA} (gradient Eᵀ) e^{uA} over u in [0, 1] (README.md)."""
    A = (K - K.mT) / 2
    if K.is_cuda:
        return on_device.adjoint(gradient @ E.mT, A)
    # The norm of A is at most the root of this one; e^{uA} turns a pair of eigenvectors by at most twice as much.
    angle = 2 * math.sqrt(float(torch.linalg.matrix_norm(A @ A).max())) if A.numel() else 0.0
    halvings = max(0, math.ceil(math.log2(angle / _LARGEST_ANGLE))) if 0 < angle < math.inf else 0
    A, angle = A * 0.5**halvings, angle * 0.5**halvings
    M = gradient @ E.mT
    term = (M - M.mT) / 2
    total = term.clone()
    for k in range(1, _terms(angle, torch.finfo(A.dtype).eps)):
        product = A @ term
        term = (product.mT - product) / (k + 1)
        total += term
    if halvings:
        rotation = torch.linalg.matrix_exp(A)
        for _ in range(halvings):
            total = (total + rotation.mT @ total @ rotation) / 2
            rotation = rotation @ rotation
    return total


def _correct(E: Tensor) -> Tensor:
    """One Newton-Schulz step as a small correction, E + E (I - EᵀE) / 2, whose own rounding hardly counts.

    It maps singular values up to sqrt(3) to at most 1. An E that may exceed that is scaled down first.
    """
    gram, identity = E.mT @ E, torch.eye(E.shape[-1], dtype=E.dtype, device=E.device)
    square = ((1 + torch.linalg.matrix_norm(gram - identity, keepdim=True)) / 3).clamp(min=1)
    E = E * square.rsqrt()
    return E + E @ ((identity - gram / square) / 2)


def _terms(angle: float, eps: float) -> int:
    """How many terms angle^k / (k + 1)! of the series exceed eps."""
    k, size = 0, 1.0
    while size > eps:
        k += 1
        size *= angle / (k + 1)
    return k
