"""Matrix exponential of skew matrices; autograd differentiates it."""

from __future__ import annotations

from torch import Tensor

from fastlip.kernels.common.exponential import matrix_exp
from fastlip.kernels.polar.reference import polish


def skew_exp(K: Tensor) -> Tensor:
    """exp((K - Kᵀ) / 2), orthogonal to rounding."""
    E = matrix_exp((K - K.mT) / 2)
    # The rounding error of the series is corrected in value; the gradient is E's.
    return E + (polish(E.detach()) - E.detach())
