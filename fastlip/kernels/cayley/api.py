"""Cayley transform of a batch of matrices: orthonormal columns or rows from any matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.cayley import reference
from fastlip.kernels.common.checks import matrices
from fastlip.kernels.common.dispatch import Op, differentiated
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.precision import full_precision

OP = Op("cayley", backends=("native", "triton"))


def cayley(M: Tensor, *, backend: Backend = "auto") -> Tensor:
    r"""The Cayley transform Q of each matrix: orthonormal columns (tall), rows (wide), unitary (square).

    For tall M = [U; V] with U square, A = U - Uᴴ + VᴴV and B = (I + A)^{-1}: Q = [(I + A)^{-1}(I - A); -2VB], and
    its first block is 2B - I. A wide M is transformed by its adjoint. I + A is invertible for every M.
    Trockman, Kolter, *Orthogonalizing Convolutional Layers with the Cayley Transform*, ICLR 2021.

    Args:
        M: (..., m, n), real or complex. float16 and bfloat16 are computed and returned in float32.
        backend: ``"auto"``, ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        Q: the shape of M.

    Raises:
        TypeError: M is not a real or complex floating-point tensor.
        ValueError: M has fewer than two dimensions, or matrices without entries; a backend that
            cannot run here.
    """
    M = matrices("M", M)
    chosen = OP.choose(backend, M)
    if chosen != "reference":
        return _forward(M.mH, chosen).mH if M.shape[-2] < M.shape[-1] else _forward(M, chosen)
    with full_precision(M.device):
        return reference.cayley(M)


def _fake_forward(M: Tensor, backend: Backend) -> tuple[Tensor, Tensor]:
    return torch.empty_like(M, memory_format=torch.contiguous_format), new_inverse(M)


def new_inverse(M: Tensor) -> Tensor:
    """Room for B, which the gradient of a tall M needs; for a square one it follows from Q."""
    columns = M.shape[-1]
    return M.new_empty(0 if M.shape[-2] == columns else (*M.shape[:-2], columns, columns))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    M, ctx.backend = inputs
    Q, B = output
    ctx.save_for_backward(*((Q, None, None) if B.numel() == 0 else (None, M, B)))


def _gradient(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None]:
    return _backward(gradient, *ctx.saved_tensors, ctx.backend), None


def _plain_gradient(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    Q, M, _ = ctx.saved_tensors
    with full_precision(gradient.device):
        if Q is not None:
            return reference.square_adjoint(gradient, Q), None
        return *differentiated(reference.cayley, (M,), (True,), gradient), None


def _fake_backward(gradient: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(gradient, memory_format=torch.contiguous_format)


_forward = OP.define(
    "cayley_forward(Tensor M, str backend) -> (Tensor, Tensor)",
    fake=_fake_forward,
    setup_context=_save,
    backward=_gradient,
    plain_backward=_plain_gradient,
)
_backward = OP.define(
    "cayley_backward(Tensor gradient, Tensor? Q, Tensor? M, Tensor? B, str backend) -> Tensor",
    fake=_fake_backward,
)
