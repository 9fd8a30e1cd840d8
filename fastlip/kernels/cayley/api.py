"""Cayley transform of a batch of matrices: orthonormal columns or rows from any matrix."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.cayley import reference
from fastlip.kernels.common.checks import NUMBERS, matrices
from fastlip.kernels.common.derivatives import differentiated
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.one_step import in_full_precision
from fastlip.kernels.common.precision import full_precision

OP = Op("cayley", backends=("native", "triton"))


def cayley(M: Tensor, *, backend: Backend = "auto") -> Tensor:
    r"""Returns the Cayley transform Q of each matrix: orthonormal columns (tall), rows (wide), or unitary (square).

    .. math:: Q = [ (I + A)^{-1} (I - A);\; -2 V (I + A)^{-1} ], \qquad M = [ U; V ], \qquad A = U - U^H + V^H V

    for a tall M with a square U. A wide M is transformed by its adjoint. I + A is invertible for every M.
    Trockman, Kolter, *Orthogonalizing Convolutional Layers with the Cayley Transform*, ICLR 2021.

    Args:
        M: (..., m, n), real or complex; float16 and bfloat16 are computed and returned in float32.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        Q: the shape of M.

    Raises:
        TypeError: M is not a real or complex floating-point tensor.
        ValueError: M has fewer than two dimensions or matrices without entries, or the backend is unknown or cannot
            run here.

    >>> fastlip.ops.cayley(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    tensor([[ 0., -1.],
            [ 1.,  0.]])
    """
    if getattr(M, "dtype", None) not in NUMBERS or M.dim() < 2 or 0 in M.shape:
        M = matrices("M", M)
    return OPERATOR(M, backend)


def _fake_forward(M: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
    return torch.empty_like(M, memory_format=torch.contiguous_format), new_inverse(M)


def new_inverse(M: Tensor) -> Tensor:
    """Room for B, which the gradient of a tall or wide M needs; for a square one it follows from Q."""
    rows, columns = M.shape[-2:]
    smaller = min(rows, columns)
    return M.new_empty(0 if rows == columns else (*M.shape[:-2], smaller, smaller))


def _gradient(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None]:
    Q, M, B = (*ctx.saved_tensors, None, None)[:3]
    return _backward(gradient, Q, M, B, *ctx.options), None


def _plain_gradient(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    saved: tuple[Any, ...] = (*ctx.saved_tensors, None, None)
    Q, M = saved[:2]
    if Q is not None:
        return in_full_precision(reference.square_adjoint, gradient, Q), None
    return *differentiated(partial(in_full_precision, reference.cayley), (M,), (True,), gradient), None


def _fake_backward(gradient: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(gradient, memory_format=torch.contiguous_format)


# cayley(M, backend), of a single- or double-precision M.
OPERATOR = OP.main(
    "cayley_forward(Tensor M, str backend) -> (Tensor Q, Tensor B)",
    reference=reference.cayley,
    precision=full_precision,
    fake=_fake_forward,
    saves=("Q unless B", "M if B", "B if B"),
    keeps=("backend",),
    backward=_gradient,
    plain_backward=_plain_gradient,
)
_backward = OP.define(
    "cayley_backward(Tensor gradient, Tensor? Q, Tensor? M, Tensor? B, str backend) -> Tensor",
    fake=_fake_backward,
)
