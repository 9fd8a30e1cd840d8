"""Cayley transform of a batch of matrices: orthonormal columns or rows from any matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.ops._check import matrices
from fastlip.ops._op import Op
from fastlip.ops.cayley import reference

OP = Op("cayley", backends=())


def cayley(M: Tensor, *, backend: str = "auto") -> Tensor:
    r"""The Cayley transform Q of each matrix: orthonormal columns (tall), rows (wide), unitary (square).

    For tall M = [U; V] with U square, A = U - Uᴴ + VᴴV and B = (I + A)^{-1}: Q = [(I + A)^{-1}(I - A); -2VB], and
    its first block is 2B - I. A wide M is transformed by its adjoint. I + A is invertible for every M.
    Trockman, Kolter, *Orthogonalizing Convolutional Layers with the Cayley Transform*, ICLR 2021.

    Args:
        M: (..., m, n), real or complex. float16 and bfloat16 are computed and returned in float32.
        backend: ``"auto"`` or ``"reference"``.

    Returns:
        Q: the shape of M.

    Raises:
        TypeError: M is not a real or complex floating-point tensor.
        ValueError: M has fewer than two dimensions, or matrices without entries; unknown backend.
    """
    M = matrices("M", M)
    OP.choose(backend, M)
    with torch.autocast(M.device.type, enabled=False):
        return reference.cayley(M)
