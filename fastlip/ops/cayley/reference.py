"""The Cayley transform of rectangular matrices (Trockman, Kolter 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.ops.polar.reference import polish


def cayley(M: Tensor) -> Tensor:
    """Q = [2 B - I; -2 V B] for a tall M = [U; V], B = (I + U - Uᴴ + VᴴV)^{-1}."""
    if M.shape[-2] < M.shape[-1]:
        return cayley(M.mH).mH
    columns = M.shape[-1]
    U, V = M[..., :columns, :], M[..., columns:, :]
    identity = torch.eye(columns, dtype=M.dtype, device=M.device)
    B = torch.linalg.inv(identity + U - U.mH + V.mH @ V)
    Q = torch.cat((2 * B - identity, -2 * V @ B), -2)
    # The rounding error of the inverse grows with the norm of M. It is corrected in value; the gradient is Q's.
    return Q + (polish(Q.detach()) - Q.detach())


def square_adjoint(gradient: Tensor, Q: Tensor) -> Tensor:
    """The gradient of a square M from that of Q = 2 B - I: A - Aᴴ with A = -2 Bᴴ gradient Bᴴ."""
    B = (Q + torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)) / 2
    A = -2 * B.mH @ gradient @ B.mH
    return A - A.mH
