"""A dense layer whose matrix is a Cayley transform: the transform, then the product."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.cayley.api import OPERATOR as CAYLEY
from fastlip.kernels.common.literals import Backend


def cayley_linear(x: Tensor, M: Tensor, backend: Backend) -> Tensor:
    """Cayley(M) x."""
    return F.linear(x, CAYLEY(M, backend))
