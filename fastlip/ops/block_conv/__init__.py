"""Kernel of an orthogonal convolution from a matrix and a chain of projectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlip.ops._op import Op
from fastlip.ops.block_conv import reference

OP = Op("block_conv", backends=())


def block_conv(matrix: Tensor, projectors: Tensor, axes: Sequence[int], *, backend: str = "auto") -> Tensor:
    r"""The kernel of O * [P_1, I - P_1] * ... * [P_n, I - P_n], each factor of two taps along its axis.

    .. math:: \hat K(z) = O \prod_{i=1}^{n} \bigl(P_i + (I - P_i)\, z_{a_i}\bigr)

    Each factor is unitary at every frequency |z| = 1 if P_i is an orthogonal projector, and so is the product with
    an orthogonal O; rows of an orthogonal O give semi-orthogonal kernels. Li, Haque, Anil, Lucas, Grosse,
    Jacobsen, *Preventing Gradient Attenuation in Lipschitz Constrained Convolutional Networks*, NeurIPS 2019;
    there kernels are products of 2 x 2 blocks, and a block is two of these factors, one per axis.

    Args:
        matrix: O, (..., m, c).
        projectors: P_1 ... P_n, (..., n, c, c).
        axes: n times 0 (the factor's taps lie along the height) or 1 (along the width).
        backend: ``"auto"`` or ``"reference"``: this op has no kernels yet.

    Returns:
        (..., kh, kw, m, c) with kh = 1 + axes.count(0), kw = 1 + axes.count(1): the coefficient of z_0^y z_1^x at
        [..., y, x]. It acts on vectors of length c from the left.

    Raises:
        TypeError: a dtype that is not floating or complex, or two dtypes.
        ValueError: shapes or axes that do not fit.
    """
    OP.choose(backend)
    _check(matrix, projectors, axes)
    return reference.block_conv(matrix, projectors, tuple(axes))


def _check(matrix: Any, projectors: Any, axes: Sequence[int]) -> None:
    for name, tensor in (("matrix", matrix), ("projectors", projectors)):
        if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise TypeError(f"{name}: got {kind}, expected a floating-point or complex tensor")
    if matrix.dtype != projectors.dtype:
        raise TypeError(f"projectors: got {projectors.dtype}, expected the dtype of matrix, {matrix.dtype}")
    if matrix.dim() < 2:
        raise ValueError(f"matrix: got shape {tuple(matrix.shape)}, expected (..., m, c)")
    if any(axis not in (0, 1) for axis in axes):
        raise ValueError(f"axes={tuple(axes)}: allowed are 0 (height) and 1 (width)")
    expected = torch.Size((*matrix.shape[:-2], len(axes), matrix.shape[-1], matrix.shape[-1]))
    if projectors.shape != expected:
        raise ValueError(f"projectors: got shape {tuple(projectors.shape)}, expected {tuple(expected)}")
