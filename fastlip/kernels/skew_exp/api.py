"""Matrix exponential of a batch of real skew matrices: dense orthogonal layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.checks import matrices
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.skew_exp import reference

OP = Op("skew_exp", backends=("native", "triton"))


def skew_exp(K: Tensor, *, backend: Backend = "auto") -> Tensor:
    r"""Returns the orthogonal matrices exp((K - Kᵀ) / 2), whose determinant is 1.

    It is the dense case of Singla, Feizi, *Skew Orthogonal Convolutions*, ICML 2021. The reference differentiates
    ``torch.linalg.matrix_exp``, whose derivative is the exponential of a matrix of twice the size. The native backend
    consists of torch's matrix products, on any device. In single precision on a CPU it takes a polynomial of degree
    8, three products and five for the gradient, and squares its result as often as the norm asks for: not at all near
    the initial values of a layer. It saves K, the result and two matrices more. Otherwise it saves K and the result,
    and computes the gradient from a series of commutators, one product each.
    The Triton kernels compute the same series with few launches.

    Args:
        K: (..., c, c), real; float16 and bfloat16 are computed and returned in float32.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        The shape of K.

    Raises:
        TypeError: K is not a real floating-point tensor.
        ValueError: the matrices are not square or have no entries, or the backend is unknown or cannot run here.

    >>> turn = torch.tensor([[0.0, -torch.pi], [0.0, 0.0]])  # a quarter turn
    >>> fastlip.ops.skew_exp(turn).round(decimals=4) + 0
    tensor([[ 0., -1.],
            [ 1.,  0.]])
    """
    if isinstance(K, Tensor) and K.is_complex():
        raise TypeError(f"K: got {K.dtype}, expected a real floating-point tensor")
    K = matrices("K", K)
    if K.shape[-1] != K.shape[-2]:
        raise ValueError(f"K: got shape {tuple(K.shape)}, expected square matrices (..., c, c)")
    return OPERATOR(K, backend)


def _fake_forward(K: Tensor, backend: Backend) -> tuple[Tensor, Tensor, Tensor]:
    keeps_nothing = K.is_cuda or K.dtype == torch.float64 or backend == "triton"
    shape = (0,) if keeps_nothing else (K.shape[:-2].numel(), *K.shape[-2:])
    return K.new_empty(K.shape), K.new_empty(shape), K.new_empty(shape)


def _fake_backward(gradient: Tensor, K: Tensor, *_: Any) -> Tensor:
    return K.new_empty(K.shape)


def _gradient(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None]:
    return _backward.outputs(gradient, *ctx.saved_tensors, *ctx.options), None


# skew_exp(K, backend).
OPERATOR = OP.main(
    "skew_exp_forward(Tensor K, str backend) -> (Tensor E, Tensor square, Tensor B)",
    reference=reference.skew_exp,
    precision=full_precision,
    fake=_fake_forward,
    saves=("K", "E", "square", "B"),
    keeps=("backend",),
    backward=_gradient,
)
_backward = OP.define(
    "skew_exp_backward(Tensor gradient, Tensor K, Tensor E, Tensor square, Tensor B, str backend) -> Tensor",
    fake=_fake_backward,
)
