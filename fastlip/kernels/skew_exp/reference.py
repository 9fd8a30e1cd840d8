"""Matrix exponential of skew matrices; autograd differentiates it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.polar.reference import polish


def skew_exp(K: Tensor) -> Tensor:
    """exp((K - Kᵀ) / 2), orthogonal to rounding."""
    E = torch.linalg.matrix_exp((K - K.mT) / 2)
    # The rounding error of the series is corrected in value; the gradient is E's.
    return E + (polish(E.detach()) - E.detach())
