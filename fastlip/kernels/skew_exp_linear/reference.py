"""A dense layer whose matrix is the exponential of a skew matrix: the exponential, then the product."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.common.literals import Backend
from fastlip.kernels.skew_exp.api import OPERATOR as SKEW_EXP


def skew_exp_linear(x: Tensor, K: Tensor, backend: Backend) -> Tensor:
    """exp((K - Kᵀ) / 2) x."""
    return F.linear(x, SKEW_EXP(K, backend))
