"""The Cayley transform of rectangular matrices (Trockman, Kolter 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common.finite import finite_part, poisoned
from fastlip.kernels.common.gate import is_observed
from fastlip.kernels.polar.reference import polish

_LARGE = 2.0**20  # entries from which single precision leaves few digits, and squares may overflow
_WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def cayley(M: Tensor) -> Tensor:
    """Q = [2 B - I; -2 V B] for a tall M = [U; V], B = (I + U - Uᴴ + VᴴV)^{-1}. NaN for an M with NaN or Inf."""
    if M.shape[-2] < M.shape[-1]:
        return cayley(M.mH).mH
    if M.dtype in _WIDE and not (M.is_meta or is_observed()) and bool((M.detach().abs() > _LARGE).any()):
        return cayley(M.to(_WIDE[M.dtype])).to(M.dtype)
    M, finite = finite_part(M)
    scale = _scale(M)
    M = M / scale
    columns = M.shape[-1]
    U, V = M[..., :columns, :], M[..., columns:, :]
    identity = torch.eye(columns, dtype=M.dtype, device=M.device)
    scaled, _ = torch.linalg.inv_ex(identity / scale + (U - U.mH) + (scale * V).mH @ V)  # scale B
    Q = torch.cat((2 / scale * scaled - identity, -2 * V @ scaled), -2)
    # The rounding error of the inverse grows with the norm of M. It is corrected in value; the gradient is Q's.
    return poisoned(Q + (polish(Q.detach()) - Q.detach()), finite)


def _scale(M: Tensor) -> Tensor:
    """1, or for matrices whose squares might overflow the power of two that is next to their largest entry."""
    largest = M.detach().abs().amax((-2, -1), keepdim=True)
    return torch.where(largest > _LARGE, largest.clamp(min=1).log2().floor().exp2(), 1.0).to(largest.dtype)


def square_adjoint(gradient: Tensor, Q: Tensor) -> Tensor:
    """The gradient of a square M from that of Q = 2 B - I: A - Aᴴ with A = -2 Bᴴ gradient Bᴴ."""
    B = (Q + torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)) / 2
    A = -2 * B.mH @ gradient @ B.mH
    return A - A.mH
