"""The Cayley transform of a square matrix, applied to vectors."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.cayley_linear import reference
from fastlip.kernels.common.checks import square_matrix
from fastlip.kernels.common.derivatives import differentiated
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.one_step import in_full_precision
from fastlip.kernels.common.precision import full_precision

OP = Op("cayley_linear", backends=("native",))
DTYPES = (torch.float32, torch.float64)
_LEAST = 192  # rows of M: with 128 both take as long, with 64 this op takes longer


def pays(x: Tensor, M: Tensor) -> bool:
    """Whether two products of n x n matrices take longer than two passes over the vectors."""
    size = M.shape[-1]
    if not (size == M.shape[-2] >= _LEAST and 4 * x.shape[:-1].numel() <= size * size):
        return False
    return x.is_cpu and M.is_cpu and x.dtype == M.dtype and M.dtype in DTYPES


def cayley_linear(x: Tensor, M: Tensor, *, backend: Backend = "auto") -> Tensor:
    r"""Returns Q x for the orthogonal matrix Q = Cayley(M) of a square M.

    The result is that of ``torch.nn.functional.linear(x, fastlip.ops.cayley(M))`` up to rounding, second and third
    derivatives included. The gradient of Q has the rank of the vectors: the kernels on CPUs find that of M with the
    products of a plain dense layer's backward, where the transform's own gradient takes two of n x n matrices more.
    ``"auto"`` runs them for 192 rows or more and up to n^2 / 4 vectors.

    Args:
        x: (..., n).
        M: (n, n), of the dtype of x.
        backend: ``"auto"`` (default), ``"reference"`` or ``"native"``.

    Returns:
        y: (..., n).

    Raises:
        TypeError: M is not a real floating-point tensor of at least single precision, or x has another dtype.
        ValueError: M is not a square matrix with entries, the last dimension of x is not n, or the backend is unknown
            or cannot run here.

    >>> turn = torch.tensor([[0.0, 1.0], [0.0, 0.0]])  # a quarter turn
    >>> fastlip.ops.cayley_linear(torch.tensor([1.0, 2.0]), turn)
    tensor([-2.,  1.])
    """
    return OPERATOR(x, square_matrix("M", M, x), backend)


def _fake_forward(x: Tensor, M: Tensor, backend: Backend) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), M.new_empty(M.shape), x.new_empty(x.shape)


def _fake_backward(gradient: Tensor, Q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return gradient.new_empty(gradient.shape), Q.new_empty(Q.shape)


def _gradient(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor, None]:
    return *_backward.outputs(gradient, *ctx.saved_tensors[2:], *ctx.options), None


def _plain_gradient(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, M = ctx.saved_tensors[:2]
    function = partial(in_full_precision, partial(reference.cayley_linear, backend="auto"))
    return *differentiated(function, (x, M), ctx.needs_input_grad[:2], gradient), None


# cayley_linear(x, M, backend).
OPERATOR = OP.main(
    "cayley_linear_forward(Tensor x, Tensor M, str backend) -> (Tensor y, Tensor Q, Tensor s)",
    reference=reference.cayley_linear,
    precision=full_precision,
    nested=True,
    fake=_fake_forward,
    saves=("x", "M", "Q", "s"),
    keeps=("backend",),
    backward=_gradient,
    plain_backward=_plain_gradient,
)
_backward = OP.define(
    "cayley_linear_backward(Tensor gradient, Tensor Q, Tensor s, str backend) -> (Tensor, Tensor)",
    fake=_fake_backward,
)
