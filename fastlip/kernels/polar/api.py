"""Polar factor of a batch of matrices: the nearest matrix with orthonormal rows or columns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.checks import matrices
from fastlip.kernels.common.dispatch import Op
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.precision import full_precision
from fastlip.kernels.polar import reference

OP = Op("polar", backends=("native", "triton"))


def polar(V: Tensor, reals: int = 0, *, backend: Backend = "auto") -> Tensor:
    r"""The polar factor Q = V (VᴴV)^{-1/2} of each matrix; wide ones by their adjoint, (VVᴴ)^{-1/2} V.

    Orthonormal columns (tall) or rows (wide), unitary if square: the matrix of that kind nearest to V. It is
    LOT's layer per frequency (Xu, Li, Li, NeurIPS 2022) and the limit of Björck's and Newton-Schulz iterations.
    The reference computes U Wᴴ from the thin singular value decomposition, hence defined for singular V too, where
    it depends on the decomposition's choice of basis.

    On a CPU, C++ kernels iterate (dynamically weighted Halley iteration) in single and double precision. "auto"
    takes them where they are faster: up to 256 rows or columns (the fewer) of float32, 128 of other numbers. Matrices
    that do not converge are decomposed; V with NaN or Inf has a Q of NaN.

    On a GPU, float32 and complex64 are iterated: scaled Newton-Schulz, in one launch for matrices of at most
    64 x 64 (``"native"``; ``"triton"``: 32 x 32, complex ones and gradients of real ones 16 x 16), by torch's
    products for others. Each ||QᴴQ - I|| is measured, and those that do not converge (condition numbers from about
    1e6) are decomposed; V with NaN or Inf has a Q of NaN. Synchronises: the host waits once per forward for the
    residuals, and in forward and backward for one flag per step where torch's products iterate. While a CUDA graph is
    captured nothing waits: matrices that do not converge keep what was reached, of norm at most 1 but for rounding,
    and a finite gradient.

    The gradient is that of the exact factor, its denominators (singular values and sums of two) at least
    max(m, n) eps times the largest one, and 1 for a zero matrix: finite for every finite V. It can itself not be
    differentiated.

    Args:
        V: (..., m, n), real or complex. float16 and bfloat16 are computed and returned in float32.
        reals: of a complex V, how many of the first matrices (along its first dimension) are taken as real; those
            of Q are real then. A convolution has such matrices at its self-conjugate frequencies.
        backend: ``"auto"``, ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        Q: the shape of V.

    Raises:
        TypeError: V is not a real or complex floating-point tensor.
        ValueError: V has fewer than two dimensions, or matrices without entries; reals that V has not; a backend
            that is unknown or cannot run here.
    """
    V = matrices("V", V)
    if reals != 0 and not (V.is_complex() and V.dim() > 2 and 0 < reals <= V.shape[0]):
        raise ValueError(f"reals={reals}: expected at most the matrices of a complex batch, got {tuple(V.shape)}")
    return OPERATOR(V, reals, backend)


def _fake_forward(V: Tensor, reals: int, backend: Backend) -> tuple[Tensor, Tensor]:
    failed = torch.empty(V.shape[:-2].numel(), dtype=torch.bool, device="cpu")
    return torch.empty_like(V, memory_format=torch.contiguous_format), failed


def _fake_backward(gradient: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(gradient, memory_format=torch.contiguous_format)


def _gradient(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None, None]:
    return _backward.outputs(gradient, *ctx.saved_tensors, *ctx.options), None, None


# polar(V, reals, backend).
OPERATOR = OP.main(
    "polar_forward(Tensor V, int reals, str backend) -> (Tensor Q, Tensor failed)",
    reference=reference.polar,
    precision=full_precision,
    fake=_fake_forward,
    saves=("V", "Q", "failed"),
    keeps=("reals", "backend"),
    backward=_gradient,
)
_backward = OP.define(
    "polar_backward(Tensor gradient, Tensor V, Tensor Q, Tensor failed, int reals, str backend) -> Tensor",
    fake=_fake_backward,
)
