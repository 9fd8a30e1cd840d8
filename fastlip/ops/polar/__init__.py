"""Polar factor of a batch of matrices: the nearest matrix with orthonormal rows or columns."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.ops._check import matrices
from fastlip.ops._op import Op
from fastlip.ops.polar import reference

OP = Op("polar", backends=())


def polar(V: Tensor, *, backend: str = "auto") -> Tensor:
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
        backend: ``"auto"`` or ``"reference"``.

    Returns:
        Q: the shape of V.

    Raises:
        TypeError: V is not a real or complex floating-point tensor.
        ValueError: V has fewer than two dimensions, or matrices without entries; unknown backend.
    """
    V = matrices("V", V)
    OP.choose(backend, V)
    with torch.autocast(V.device.type, enabled=False):
        return reference.polar(V)
