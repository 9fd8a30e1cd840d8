"""Non-finite in, non-finite out, matrix by matrix: LAPACK raises, or returns meaningless numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def finite_part(M: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices, zeros in place of those with NaN or Inf; and which are finite, (..., 1, 1)."""
    # Of a conjugate view torch.func.vmap has no isfinite.
    finite = M.detach().resolve_conj().isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    return torch.where(finite, M, 0), finite


def poisoned(result: Tensor, finite: Tensor) -> Tensor:
    """NaN in place of the results of matrices that were not finite."""
    return torch.where(finite, result, torch.nan)


def svd(V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thin singular value decomposition of finite matrices.

    LAPACK's divide and conquer fails on some of rank one: those are decomposed in double precision, or after a
    rotation of their rows.
    """
    try:
        return torch.linalg.svd(V, full_matrices=False)
    except torch.linalg.LinAlgError:
        wide = V.to(torch.complex128 if V.is_complex() else torch.float64)
    try:
        U, s, Wh = torch.linalg.svd(wide, full_matrices=False)
    except torch.linalg.LinAlgError:
        rotation = _rotation(V.shape[-2]).to(wide)
        U, s, Wh = torch.linalg.svd(rotation @ wide, full_matrices=False)
        U = rotation.mH @ U
    return U.to(V.dtype), s.to(V.real.dtype), Wh.to(V.dtype)


def _rotation(rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64))[0]
