"""The block reflector I - 2 V (VᴴV)⁻¹ Vᴴ, also where VᴴV is singular."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common.finite import finite_part, poisoned

# Squared singular values up to this times n and the largest one count as zero: double precision cannot tell them
# from rounding of the others' squares.
NEGLIGIBLE = 1e-13


def block_reflector(V: Tensor, rows: int, columns: int) -> Tensor:
    """The first rows and columns of I - 2 V (VᴴV)⁺ Vᴴ. NaN for a V with NaN or Inf."""
    X, finite = scaled(V)
    X = X @ basis(X.detach()).to(V.dtype)
    identity = torch.eye(X.shape[-2], dtype=X.dtype, device=X.device)[:rows, :columns]
    # What V spans, X spans. Its columns are nearly orthonormal, or zero: this inverse has all its digits.
    gram = X.mH @ X
    is_zero = gram.detach().diagonal(dim1=-2, dim2=-1).abs() == 0
    inverse, _ = torch.linalg.inv_ex(gram + torch.diag_embed(is_zero.to(X.dtype)))
    return poisoned(identity - 2 * X[..., :rows, :] @ inverse @ X[..., :columns, :].mH, finite)


def scaled(V: Tensor) -> tuple[Tensor, Tensor]:
    """V over the power of two next to its largest entry, on which Q does not depend; and which V are finite.

    What is not finite is replaced by zeros. A V so small that its gradient might overflow is taken as a constant.
    """
    V, finite = finite_part(V)
    largest = V.detach().abs().amax((-2, -1), keepdim=True)
    scale = largest.clamp(min=torch.finfo(V.dtype).tiny).log2().floor().exp2()
    return torch.where(has_gradient(V), V, V.detach()) / scale, finite


def has_gradient(V: Tensor) -> Tensor:
    """(..., 1, 1): whether V is so large that its gradient, of the order of 1 / |V|, does not overflow."""
    largest = V.detach().abs().amax((-2, -1), keepdim=True)
    return largest > torch.finfo(V.dtype).tiny ** 0.5


def basis(V: Tensor) -> Tensor:
    """R in double for which V R has orthonormal columns, to a few digits, and zeros where V, scaled, lacks rank."""
    V = V.to(torch.complex128 if V.is_complex() else torch.float64)
    values, W = torch.linalg.eigh(V.mH @ V)
    keep = values > NEGLIGIBLE * V.shape[-1] * values[..., -1:].clamp(min=torch.finfo(values.dtype).tiny)
    return W * (torch.where(keep, values, 1).rsqrt() * keep)[..., None, :]
