"""Polar factor of a batch of matrices: the nearest matrix with orthonormal rows or columns."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.ops._check import matrices
from fastlip.ops._op import Op
from fastlip.ops.polar import reference

OP = Op("polar", backends=())


def polar(V: Tensor, reals: int = 0, *, backend: str = "auto") -> Tensor:
    r"""The polar factor Q = V (VᴴV)^{-1/2} of each matrix; wide ones by their adjoint, (VVᴴ)^{-1/2} V.

    Orthonormal columns (tall) or rows (wide), unitary if square: the matrix of that kind nearest to V. It is
    LOT's layer per frequency (Xu, Li, Li, NeurIPS 2022) and the limit of Björck's and Newton-Schulz iterations.
    Computed as U Wᴴ from the thin singular value decomposition, hence defined for singular V too, where it
    depends on the decomposition's choice of basis.

    The gradient is that of the exact factor, its denominators (singular values and sums of two) at least
    max(m, n) eps times the largest one, and 1 for a zero matrix: finite for every finite V. It can itself not be
    differentiated.

    Args:
        V: (..., m, n), real or complex. float16 and bfloat16 are computed and returned in float32.
        reals: of a complex V, how many of the first matrices (along its first dimension) are taken as real; those
            of Q are real then. A convolution has such matrices at its self-conjugate frequencies.
        backend: ``"auto"`` or ``"reference"``.

    Returns:
        Q: the shape of V.

    Raises:
        TypeError: V is not a real or complex floating-point tensor.
        ValueError: V has fewer than two dimensions, or matrices without entries; reals that V has not; unknown
            backend.
    """
    V = matrices("V", V)
    if reals != 0 and not (V.is_complex() and V.dim() > 2 and 0 < reals <= V.shape[0]):
        raise ValueError(f"reals={reals}: expected at most the matrices of a complex batch, got {tuple(V.shape)}")
    OP.choose(backend, V, reals)
    with torch.autocast(V.device.type, enabled=False):
        return reference.polar(V, reals)
