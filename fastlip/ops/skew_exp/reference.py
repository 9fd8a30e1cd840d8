"""Matrix exponential of skew matrices; autograd differentiates it."""

from __future__ import annotations

import torch
from torch import Tensor


def skew_exp(K: Tensor) -> Tensor:
    """exp((K - Kᵀ) / 2)."""
    return torch.linalg.matrix_exp((K - K.mT) / 2)
