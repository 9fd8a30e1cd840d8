"""Kernel of an orthogonal convolution from a matrix, or a kernel, and a chain of projectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.block_conv import reference
from fastlip.kernels.common.checks import kind_of
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.precision import full_precision

OP = Op("block_conv", backends=("native", "triton"))


def block_conv(matrix: Tensor, projectors: Tensor, axes: Sequence[int], *, backend: Backend = "auto") -> Tensor:
    r"""Returns the kernel of O * [P_1, I - P_1] * ... * [P_n, I - P_n], each factor of two taps along its axis.

    .. math:: \hat K(z) = \hat O(z) \prod_{i=1}^{n} \bigl(P_i + (I - P_i)\, z_{a_i}\bigr)

    Each factor is unitary at every frequency |z| = 1 if P_i is an orthogonal projector. The product with an
    orthogonal O is then unitary as well; if O has orthonormal rows, so has the kernel at every frequency. Li, Haque,
    Anil, Lucas, Grosse, Jacobsen, *Preventing Gradient Attenuation in Lipschitz Constrained Convolutional Networks*,
    NeurIPS 2019: their kernels are products of 2 x 2 blocks, and a block is two of these factors, one per axis. O may
    itself be a kernel, for instance that of an orthogonal strided convolution (Boissin, Mamalet, Fel, Picard,
    Massena, Serrurier, *An Adaptive Orthogonal Convolution Scheme for Efficient and Flexible CNN Architectures*, ICML
    2025).

    Args:
        matrix: O, (..., m, c), or a kernel (..., th, tw, m, c), real or complex.
        projectors: P_1 ... P_n, (..., n, c, c), in the dtype of matrix.
        axes: n numbers: 0 if the taps of the factor lie along the height, 1 if along the width.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``; the adjoint of the last two
            saves the arguments only.

    Returns:
        (..., kh, kw, m, c) with kh = th + axes.count(0) and kw = tw + axes.count(1) (th = tw = 1 for a matrix). The
        entry [..., y, x] is the coefficient of z_0^y z_1^x, which acts on vectors of length c from the left.

    Raises:
        TypeError: an argument is not a floating-point or complex tensor, or the two dtypes differ.
        ValueError: shapes or axes do not fit, or the backend is unknown or cannot run here.

    >>> projector = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    >>> fastlip.ops.block_conv(torch.eye(2), projector[None], [1])
    tensor([[[[1., 0.],
              [0., 0.]],
    <BLANKLINE>
             [[0., 0.],
              [0., 1.]]]])
    """
    axes = tuple(axes)
    kernel = _check(matrix, projectors, axes)
    return OPERATOR(kernel, projectors, axes, backend)


def _check(matrix: Any, projectors: Any, axes: tuple[int, ...]) -> Tensor:
    """Returns the matrix as a kernel of one tap, a kernel as it is."""
    for name, tensor in (("matrix", matrix), ("projectors", projectors)):
        if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
            kind = kind_of(tensor)
            raise TypeError(f"{name}: got {kind}, expected a floating-point or complex tensor")
    if matrix.dtype != projectors.dtype:
        raise TypeError(f"projectors: got {projectors.dtype}, expected the dtype of matrix, {matrix.dtype}")
    if matrix.dim() < 2:
        raise ValueError(f"matrix: got shape {tuple(matrix.shape)}, expected (..., m, c) or (..., th, tw, m, c)")
    if any(axis not in (0, 1) for axis in axes):
        raise ValueError(f"axes={axes}: allowed are 0 (height) and 1 (width)")
    has_taps = matrix.dim() == projectors.dim() + 1
    batch = matrix.shape[:-4] if has_taps else matrix.shape[:-2]
    expected = torch.Size((*batch, len(axes), matrix.shape[-1], matrix.shape[-1]))
    if projectors.shape != expected:
        raise ValueError(f"projectors: got shape {tuple(projectors.shape)}, expected {tuple(expected)}")
    return matrix if has_taps else matrix[..., None, None, :, :]


def kernel_shape(kernel: Tensor, axes: Sequence[int]) -> tuple[int, ...]:
    """The shape of the result: each factor adds a tap along its axis."""
    *batch, height, width, rows, columns = kernel.shape
    return *batch, height + axes.count(0), width + axes.count(1), rows, columns


def _fake_forward(kernel: Tensor, projectors: Tensor, axes: Sequence[int], backend: Backend) -> Tensor:
    return kernel.new_empty(kernel_shape(kernel, axes))


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
    for_kernel, for_projectors = _backward.outputs(gradient, *ctx.saved_tensors, *ctx.options)
    return for_kernel, for_projectors, None, None


def _fake_backward(gradient: Tensor, kernel: Tensor, projectors: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return kernel.new_empty(kernel.shape), projectors.new_empty(projectors.shape)


# block_conv(kernel, projectors, axes, backend), of a kernel (..., th, tw, m, c) and a tuple of axes.
OPERATOR = OP.main(
    "block_conv_forward(Tensor kernel, Tensor projectors, int[] axes, str backend) -> Tensor",
    reference=reference.block_conv,
    precision=full_precision,
    fake=_fake_forward,
    saves=("kernel", "projectors"),
    keeps=("axes", "backend"),
    backward=_gradients,
)
_backward = OP.define(
    "block_conv_backward(Tensor gradient, Tensor kernel, Tensor projectors, int[] axes, str backend)"
    " -> (Tensor, Tensor)",
    fake=_fake_backward,
)
