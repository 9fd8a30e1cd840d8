"""Block reflector: an orthogonal matrix from a basis of the space that it negates."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.block_reflector import reference
from fastlip.kernels.common.checks import NUMBERS, matrices
from fastlip.kernels.common.derivatives import differentiated
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.one_step import in_full_precision
from fastlip.kernels.common.precision import full_precision

OP = Op("block_reflector", backends=("native", "triton"))


def block_reflector(
    V: Tensor, rows: int | None = None, columns: int | None = None, *, backend: Backend = "auto"
) -> Tensor:
    r"""Returns the reflection Q that negates the columns of V and keeps what is orthogonal to them.

    .. math:: Q = I - 2 V (V^H V)^{-1} V^H

    Q is Hermitian and unitary (symmetric and orthogonal for real V), and does not depend on the scale of V. Where V
    does not have full rank, V (V^H V)^{-1} V^H stands for the projector onto the span of its columns; singular values
    below 3e-7 sqrt(n) times the largest count as zero. V = 0 gives the identity. Some of its rows with all
    columns have orthonormal rows, and the other way round.
    Lai, Huang, Kung, Chien, *Enhancing Certified Robustness via Block Reflector Orthogonal Layers and Logit Annealing
    Loss*, ICML 2025.

    Args:
        V: (..., m, n), real or complex; float16 and bfloat16 are computed and returned in float32.
        rows: number of rows of Q to return, the first ones; default None: all m.
        columns: number of columns of Q to return, the first ones; default None: all m.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        Q: (..., rows, columns).

    Raises:
        TypeError: V is not a real or complex floating-point tensor.
        ValueError: V has fewer than two dimensions or matrices without entries, rows or columns are not between 1 and
            m, or the backend is unknown or cannot run here.

    >>> fastlip.ops.block_reflector(torch.tensor([[2.0], [0.0]]))
    tensor([[-1.,  0.],
            [ 0.,  1.]])
    """
    if getattr(V, "dtype", None) not in NUMBERS or V.dim() < 2 or 0 in V.shape[-2:]:
        V = matrices("V", V)
    m = V.shape[-2]
    return OPERATOR(V, _part("rows", rows, m), _part("columns", columns, m), backend)


def _part(name: str, count: int | None, m: int) -> int:
    if count is None:
        return m
    if not 1 <= count <= m:
        raise ValueError(f"{name}={count}: expected between 1 and the {m} rows of V")
    return count


def _fake_forward(V: Tensor, rows: int, columns: int, backend: Backend) -> tuple[Tensor, Tensor]:
    n = V.shape[-1]
    return V.new_empty((*V.shape[:-2], rows, columns)), V.new_empty((*V.shape[:-2], n, n))


def _fake_backward(gradient: Tensor, V: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(V, memory_format=torch.contiguous_format)


def _gradient(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
    *_sizes, backend = ctx.options
    return _backward(gradient, *ctx.saved_tensors, backend), None, None, None


def _plain_gradient(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
    V, rows, columns = ctx.saved_tensors[0], *ctx.options[:2]

    def function(V: Tensor) -> Tensor:
        return reference.block_reflector(V, rows, columns)

    return *differentiated(partial(in_full_precision, function), (V,), (True,), gradient), None, None, None


# block_reflector(V, rows, columns, backend), of a single- or double-precision V.
OPERATOR = OP.main(
    "block_reflector_forward(Tensor V, int rows, int columns, str backend) -> (Tensor Q, Tensor R)",
    reference=reference.block_reflector,
    precision=full_precision,
    fake=_fake_forward,
    saves=("V", "R"),
    keeps=("rows", "columns", "backend"),
    backward=_gradient,
    plain_backward=_plain_gradient,
)
_backward = OP.define(
    "block_reflector_backward(Tensor gradient, Tensor V, Tensor R, str backend) -> Tensor",
    fake=_fake_backward,
)
