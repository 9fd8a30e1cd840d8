"""The polar factor of a matrix, applied to vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.checks import matrices
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.polar_linear import reference

OP = Op("polar_linear", backends=("native",))
POLES = {torch.float32: 4, torch.float64: 9}  # at most; memory for as many inverses is reserved
_SIDES = 192, 2048  # rows and columns


def pays(x: Tensor, V: Tensor) -> bool:
    """Whether the kernels take less time than the factor and a product."""
    m, n = V.shape
    small, large = (m, n) if m < n else (n, m)
    if small < _SIDES[0] or large > _SIDES[1]:
        return False
    return x.is_cpu and V.is_cpu and x.dtype == V.dtype == torch.float32 and 2 * x.shape[:-1].numel() <= small


def polar_linear(x: Tensor, V: Tensor, *, backend: Backend = "auto") -> Tensor:
    r"""Returns Q x for the polar factor Q = V (VᵀV)^{-1/2} of V, or (VVᵀ)^{-1/2} V of a wide one.

    The result is that of ``torch.nn.functional.linear(x, fastlip.ops.polar(V))`` up to rounding, second and third
    derivatives included. The C++ kernels on CPUs find it without Q, from a sum of inverses of the Gram matrix with
    shifts (Zolotarev's rational function), and its gradient from few products with the vectors: about half
    the work for as many vectors as a quarter of the rows of V, or of its columns. ``"auto"`` runs them in float32 for
    matrices of 192 to 2048 rows and columns, and for at most half as many vectors. They take the factor itself where
    singular values of V differ by a factor of more than about 3.

    Args:
        x: (..., n).
        V: (m, n), of the dtype of x.
        backend: ``"auto"`` (default), ``"reference"`` or ``"native"``.

    Returns:
        y: (..., m).

    Raises:
        TypeError: V is not a real floating-point tensor of at least single precision, or x has another dtype.
        ValueError: V is not a matrix with entries, the last dimension of x is not n, or the backend is unknown or
            cannot run here.

    >>> fastlip.ops.polar_linear(torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 0.0], [0.0, -2.0]])).round(decimals=4)
    tensor([ 1., -2.])
    """
    V = matrices("V", V)
    if V.is_complex() or x.dtype != V.dtype:
        raise TypeError(f"x, V: got {x.dtype} and {V.dtype}, expected float32 or float64 for both")
    if V.dim() != 2:
        raise ValueError(f"V: got shape {tuple(V.shape)}, expected (m, n)")
    if x.dim() == 0 or x.shape[-1] != V.shape[1]:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (*, {V.shape[1]})")
    return OPERATOR(x, V, backend)


def _fake_forward(x: Tensor, V: Tensor, backend: Backend) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    small, poles = min(V.shape), POLES[V.dtype]
    found = torch.empty(4, dtype=torch.float64, device="cpu")
    blocks = x.shape[:-1].numel() * poles * small
    inverses = max(poles * small * small, V.numel())
    return x.new_empty((*x.shape[:-1], V.shape[0])), V.new_empty(inverses), x.new_empty(blocks), found


def _fake_backward(gradient: Tensor, x: Tensor, V: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), V.new_empty(V.shape)


def _gradient(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, Tensor, None]:
    return *_backward.outputs(gradient, *ctx.saved_tensors, *ctx.options), None


# polar_linear(x, V, backend).
OPERATOR = OP.main(
    "polar_linear_forward(Tensor x, Tensor V, str backend)"
    " -> (Tensor y, Tensor inverses, Tensor blocks, Tensor found)",
    reference=reference.polar_linear,
    precision=full_precision,
    nested=True,
    fake=_fake_forward,
    saves=("x", "V", "inverses", "blocks", "found"),
    keeps=("backend",),
    backward=_gradient,
)
_backward = OP.define(
    "polar_linear_backward(Tensor gradient, Tensor x, Tensor V, Tensor inverses, Tensor blocks, Tensor found,"
    " str backend) -> (Tensor, Tensor)",
    fake=_fake_backward,
)
