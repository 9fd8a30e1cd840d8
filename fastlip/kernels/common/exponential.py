"""The exponential of matrices by torch, right to rounding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_TURN = ((0.0, -1.0), (1.0, 0.0))  # by one radian


def matrix_exp(A: Tensor) -> Tensor:
    """``torch.linalg.matrix_exp`` of matrices (..., c, c), of a larger matrix each.

    Where torch takes a polynomial of degree 8, its error is 8e-4 of the fifth power of the norm: 5e-5 at a norm of
    0.58 in single precision, 2e-10 at 0.05 in double. So each matrix gets a block on its diagonal whose norm asks for
    a higher degree.
    """
    size = A.shape[-1]
    turn = torch.tensor(_TURN, dtype=A.dtype, device=A.device)
    larger = F.pad(A, (0, 2, 0, 2)) + F.pad(turn, (size, 0, size, 0))
    return torch.linalg.matrix_exp(larger)[..., :size, :size].contiguous()
