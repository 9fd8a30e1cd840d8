"""The adjoint of exp(A) from commutators with A, one product of matrices each (README.md): in double precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlip.kernels.common.exponential import matrix_exp

_LARGEST_ANGLE = 2.0  # of the series: its terms stay below e^2, and so does what rounding is magnified by


def adjoint(M: Tensor, A: Tensor) -> Tensor:
    """The skew part of the integral of e^{-uA} M e^{uA} over u in [0, 1]."""
    # The norm of A is at most the root of this one; e^{uA} turns a pair of eigenvectors by at most twice as much.
    angle = 2 * math.sqrt(float(torch.linalg.matrix_norm(A @ A).max())) if A.numel() else 0.0
    halvings = max(0, math.ceil(math.log2(angle / _LARGEST_ANGLE))) if 0 < angle < math.inf else 0
    A, angle = A * 0.5**halvings, angle * 0.5**halvings
    term = (M - M.mT) / 2
    total = term.clone()
    for k in range(1, _terms(angle, torch.finfo(A.dtype).eps)):
        product = A @ term
        term = (product.mT - product) / (k + 1)
        total += term
    if halvings:
        rotation = matrix_exp(A)
        for _ in range(halvings):
            total = (total + rotation.mT @ total @ rotation) / 2
            rotation = rotation @ rotation
    return total


def _terms(angle: float, eps: float) -> int:
    """How many terms angle^k / (k + 1)! of the series exceed eps."""
    k, size = 0, 1.0
    while size > eps:
        k += 1
        size *= angle / (k + 1)
    return k
