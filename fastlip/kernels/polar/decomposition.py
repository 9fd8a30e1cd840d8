"""The thin singular value decomposition that gives a polar factor, by the cheaper way where that is accurate."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common.finite import svd
from fastlip.kernels.common.gate import is_observed


def decompose(V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(U, s, Wᴴ) with V = U diag(s) Wᴴ: U with orthonormal columns, s descending.

    On the CPU from the eigenvectors W of the smaller Gram matrix, in a half to a third of the time, if the squared
    condition number of every matrix is small: W and s are wrong by eps times that number, and two Newton-Schulz
    steps correct U alone. The limit is 1 / sqrt(eps) in float32. Float64 is for accuracy: there it is 64.
    Otherwise, and where the answer must not depend on values (tracing, torch.func), by LAPACK's singular value
    decomposition.
    """
    # Quotients of subnormal entries would overflow.
    largest = V.detach().abs().amax((-2, -1), keepdim=True) if V.numel() else V.real
    root = torch.finfo(V.dtype).tiny ** 0.5
    lift = torch.where(largest < root, largest.new_full((), 1 / root), 1)
    U, s, Wh = _decompose(V * lift)
    return U, s / lift[..., 0], Wh


def _decompose(V: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if V.device.type == "cpu" and V.numel() > 0 and not is_observed():
        if V.shape[-2] < V.shape[-1]:
            found = _by_eigenvectors(V.mH)
            if found is not None:
                U, s, Wh = found
                return Wh.mH, s, U.mH
        elif (found := _by_eigenvectors(V)) is not None:
            return found
    return svd(V)


# The smallest ratio of the squared singular values that is left to eigenvectors.
_LEAST_RATIO = {torch.float32: torch.finfo(torch.float32).eps ** 0.5, torch.float64: 1 / 64}


def _by_eigenvectors(V: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """The decomposition of tall or square matrices, or None where it would be inaccurate."""
    scale = V.abs().amax((-2, -1), keepdim=True)
    if not ((scale > 0) & scale.isfinite()).all():  # zeros, Inf, NaN
        return None
    scaled = V / scale
    squares, W = torch.linalg.eigh(scaled.mH @ scaled)
    if not (squares[..., 0] > _LEAST_RATIO[squares.dtype] * squares[..., -1]).all():
        return None
    squares, W = squares.flip(-1), W.flip(-1)
    image = scaled @ W
    U = image / squares.sqrt()[..., None, :]
    for _ in range(2):
        U = U @ (1.5 * _identity(U) - 0.5 * (U.mH @ U))
    s = (U.conj() * image).sum(-2).real * scale[..., 0]
    return U, s, W.mH


def _identity(U: Tensor) -> Tensor:
    return torch.eye(U.shape[-1], dtype=U.dtype, device=U.device)
