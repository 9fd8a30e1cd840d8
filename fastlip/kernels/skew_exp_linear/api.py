"""The exponential of a skew matrix, applied to vectors."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.checks import square_matrix
from fastlip.kernels.common.derivatives import differentiated
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.one_step import in_full_precision
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.skew_exp_linear import reference

OP = Op("skew_exp_linear", backends=("native",))
_SIDES = 96, 2048
_PRODUCTS = 15  # as long as so many of n x n matrices take an exponential and its gradient, of a norm of some tenths
_MOST = 20


def pays(x: Tensor, K: Tensor) -> bool:
    """Whether the kernels take less time than the exponential and a product, for norms up to about 1."""
    size = K.shape[-1]
    if not _SIDES[0] <= size <= _SIDES[1]:
        return False
    return x.is_cpu and K.is_cpu and x.dtype == K.dtype == torch.float32 and 2 * x.shape[:-1].numel() <= size


def most_terms(vectors: int, size: int) -> int:
    """Terms of the series up to which it takes no more multiply-adds than the exponential."""
    return min(_MOST, 1 + _PRODUCTS * size // (3 * max(vectors, 1)))


def skew_exp_linear(x: Tensor, K: Tensor, *, backend: Backend = "auto") -> Tensor:
    r"""Returns E x for the orthogonal matrix E = exp((K - Kᵀ) / 2).

    The result is that of ``torch.nn.functional.linear(x, fastlip.ops.skew_exp(K))`` up to rounding, second and third
    derivatives included. The C++ kernels on CPUs find it without E, by Chebyshev's series in A = (K - Kᵀ) / 2, whose
    terms are products with the vectors: 5 in float32 for a norm of A of 0.14, 9 for 1. ``"auto"`` runs
    them in float32 for matrices of 96 to 2048 rows and for at most half as many vectors. They take the exponential
    itself where the norm asks for so many terms that it costs less.

    Args:
        x: (..., n).
        K: (n, n), of the dtype of x.
        backend: ``"auto"`` (default), ``"reference"`` or ``"native"``.

    Returns:
        y: (..., n).

    Raises:
        TypeError: K is not a real floating-point tensor of at least single precision, or x has another dtype.
        ValueError: K is not a square matrix with entries, the last dimension of x is not n, or the backend is unknown
            or cannot run here.

    >>> turn = torch.tensor([[0.0, -torch.pi], [0.0, 0.0]])  # a quarter turn
    >>> fastlip.ops.skew_exp_linear(torch.tensor([1.0, 2.0]), turn).round(decimals=4)
    tensor([-2.,  1.])
    """
    return OPERATOR(x, square_matrix("K", K, x), backend)


def memory(x: Tensor, K: Tensor) -> int:
    """Numbers that are kept: A and the terms, or the exponential and what its gradient needs."""
    vectors, square = x.shape[:-1].numel(), K.numel()
    return max(square + most_terms(vectors, K.shape[0]) * x.numel(), 3 * square)


def _fake_forward(x: Tensor, K: Tensor, backend: Backend) -> tuple[Tensor, Tensor, Tensor]:
    found = torch.empty(2, dtype=torch.float64, device="cpu")
    return x.new_empty(x.shape), x.new_empty(memory(x, K)), found


def _fake_backward(gradient: Tensor, x: Tensor, K: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), K.new_empty(K.shape)


def _gradient(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor, None]:
    return *_backward.outputs(gradient, *ctx.saved_tensors, *ctx.options), None


def _plain_gradient(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    """Through the exponential itself: skew_exp's first derivative is more exact in float32 than its reference's."""
    x, K = ctx.saved_tensors[:2]
    function = partial(in_full_precision, partial(reference.skew_exp_linear, backend="auto"))
    return *differentiated(function, (x, K), ctx.needs_input_grad[:2], gradient), None


# skew_exp_linear(x, K, backend).
OPERATOR = OP.main(
    "skew_exp_linear_forward(Tensor x, Tensor K, str backend) -> (Tensor y, Tensor kept, Tensor found)",
    reference=reference.skew_exp_linear,
    precision=full_precision,
    nested=True,
    fake=_fake_forward,
    saves=("x", "K", "kept", "found"),
    keeps=("backend",),
    backward=_gradient,
    plain_backward=_plain_gradient,
)
_backward = OP.define(
    "skew_exp_linear_backward(Tensor gradient, Tensor x, Tensor K, Tensor kept, Tensor found, str backend)"
    " -> (Tensor, Tensor)",
    fake=_fake_backward,
)
