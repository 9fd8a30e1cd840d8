"""The exponential of skew matrices, and its adjoint, without a look at their norms: for GPUs.

How often a matrix is halved, and its exponential squared again, is decided on the device: every matrix goes through
the same steps, and those that it does not need leave it as it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_HALVINGS = 14  # for norms up to 8192, where float32 knows a phase to 1e-3: NaN beyond


def exponential(A: Tensor) -> Tensor:
    """exp(A) of skew matrices (..., c, c)."""
    halved, needed = _halved(A.reshape(-1, *A.shape[-2:]))
    return _squared(_series(halved), needed).view(A.shape)


def adjoint(M: Tensor, A: Tensor) -> Tensor:
    """The skew part of the integral of e^{-uA} M e^{uA} over u in [0, 1], as in README.md."""
    shape = A.shape
    A, needed = _halved(A.reshape(-1, *shape[-2:]))
    M = M.reshape(A.shape)
    half = (M - M.mT) / 4
    total = 2 * half
    # Horner's rule for the sum of L^k S / (k + 1)! of the skew part S, with L(T) = TA - AT = -AT - (-AT)ᵀ.
    for k in range(_terms(2.0, A.dtype) - 1, 0, -1):
        upper = torch.baddbmm(half, A, total, alpha=-1 / (k + 1))
        total = upper - upper.mT
    rotation = _series(A)
    for share in (_steps(needed).to(A.dtype) / 2).unbind():
        total = torch.lerp(total, rotation.mT @ total @ rotation, share)
        rotation = rotation @ rotation  # of matrices that are done: not used again, and of norm 1
    return total.view(shape)


def _halved(A: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices divided by powers of two, to norms of at most 1, and how often (b, 1, 1); NaN beyond all steps."""
    norm = torch.linalg.matrix_norm(A @ A, keepdim=True).sqrt()
    needed = norm.clamp(min=1).log2().ceil()
    return A * torch.where(needed <= _HALVINGS, torch.exp2(-needed), torch.nan), needed


def _series(A: Tensor) -> Tensor:
    """exp(A) of matrices of norm at most 1: Horner's scheme, a product each."""
    identity = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    terms = _terms(1.0, A.dtype)
    result = identity + A / terms
    for k in range(terms - 1, 0, -1):
        result = torch.baddbmm(identity, A, result, alpha=1 / k)
    return result


def _squared(E: Tensor, needed: Tensor) -> Tensor:
    for more in _steps(needed).unbind():
        E = torch.where(more, E @ E, E)
    return E


def _steps(needed: Tensor) -> Tensor:
    """(steps, b, 1, 1): whether a matrix needs a step."""
    return needed > torch.arange(_HALVINGS, device=needed.device).view(-1, 1, 1, 1)


def _terms(angle: float, dtype: torch.dtype) -> int:
    """How many terms angle^k / (k + 1)! of the series exceed a rounding."""
    k, size, eps = 0, 1.0, torch.finfo(dtype).eps
    while size > eps:
        k += 1
        size *= angle / (k + 1)
    return k + math.ceil(angle)
