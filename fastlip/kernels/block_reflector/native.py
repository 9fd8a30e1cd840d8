"""block_reflector on the CPU: a Cholesky factor of the small Gram matrix, and products of matrices, through torch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.block_reflector import reference
from fastlip.kernels.common.precision import full_precision

KERNELS = ""  # made of torch's products


def supports(V: Tensor, rows: int, columns: int) -> str:
    """Empty, or why these kernels cannot run."""
    return "" if V.is_cpu else "on other devices than the CPU the reference runs"


def block_reflector_forward(V: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """The part of Q, and R such that V R has orthonormal columns."""
    V = V.contiguous().resolve_conj().resolve_neg()
    shape, V = V.shape, V.flatten(0, -3) if V.dim() > 3 else V.view(-1, *V.shape[-2:])
    with full_precision(V.device):
        X, R = _orthonormal(V)
        identity = torch.eye(shape[-2], dtype=V.dtype)[:rows, :columns]
        Q = torch.baddbmm(identity, X[:, :rows], X[:, :columns].mH, alpha=-2)
    R = R.resolve_conj().contiguous()
    return Q.view(*shape[:-2], rows, columns), R.view(*shape[:-2], shape[-1], shape[-1])


def block_reflector_backward(gradient: Tensor, V: Tensor, R: Tensor) -> Tensor:
    """-2 (I - X Xᴴ) (Q̄ + Q̄ᴴ) X Rᴴ with X = V R (README.md)."""
    rows, columns = gradient.shape[-2:]
    with full_precision(V.device):
        X = V @ R
        A = torch.zeros_like(X)
        A[..., :rows, :] = gradient @ X[..., :columns, :]
        # The conjugate of the small factor and of the result, not of the gradient.
        A[..., :columns, :] += (gradient.mT @ X[..., :rows, :].conj()).conj()
        A -= X @ (X.mH @ A)
        return (A @ R.mH).mul_(-2).contiguous()


def _orthonormal(V: Tensor) -> tuple[Tensor, Tensor]:
    """X = V R with orthonormal columns, and R, of a batch (b, m, n).

    VᴴV = L Lᴴ and R = L⁻ᴴ make them orthonormal up to a defect XᴴX - I, which one step corrects up to √eps.
    Above that the reference's basis takes the place of R.
    """
    identity = torch.eye(V.shape[-1], dtype=V.dtype)
    L, _ = torch.linalg.cholesky_ex(V.mH @ V)
    R = torch.linalg.solve_triangular(L, identity.expand_as(L), upper=False).mH
    X = V @ R
    defect = X.mH @ X - identity
    largest = defect.abs().amax((-2, -1))
    X, R = X - X @ defect / 2, R - R @ defect / 2
    failed = ~(largest <= torch.finfo(V.dtype).eps ** 0.5)  # also where it is not a number
    if failed.any():
        X[failed], R[failed] = _decomposed(V[failed])
    return X, R


def _decomposed(V: Tensor) -> tuple[Tensor, Tensor]:
    """X and R of matrices whose Gram matrix is singular to rounding, or not finite; zero columns where rank lacks."""
    wide, finite = reference.scaled(V.to(torch.complex128 if V.is_complex() else torch.float64))
    R = reference.basis(wide)
    X = wide @ R
    for _ in range(3):  # Newton-Schulz steps: zero columns stay zero
        step = 1.5 * torch.eye(V.shape[-1], dtype=X.dtype) - X.mH @ X / 2
        X, R = X @ step, R @ step
    X = reference.poisoned(X, finite).to(V.dtype)
    largest = V.abs().amax((-2, -1), keepdim=True).double()  # X = V R of V as it is
    scale = torch.where(reference.has_gradient(V), largest, 1).log2().floor().exp2()
    return X, torch.where(reference.has_gradient(V), R / scale, 0).to(V.dtype)
