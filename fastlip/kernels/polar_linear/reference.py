"""A dense layer whose matrix is a polar factor: the factor, then the product."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.common.literals import Backend
from fastlip.kernels.polar.api import OPERATOR as POLAR


def polar_linear(x: Tensor, V: Tensor, backend: Backend) -> Tensor:
    """Q x for the polar factor Q of V."""
    return F.linear(x, POLAR(V, 0, backend))
