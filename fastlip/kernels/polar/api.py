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
    r"""Returns the polar factor Q = V (VᴴV)^{-1/2} of each matrix, or (VVᴴ)^{-1/2} V of a wide one.

    Q has orthonormal columns (tall) or rows (wide) and is unitary if V is square: it is the matrix of that kind
    nearest to V. It is LOT's layer at each frequency (Xu, Li, Li, *LOT: Layer-wise Orthogonal Training on Improving
    l2 Certified Robustness*, NeurIPS 2022) and the limit of Björck's and of Newton-Schulz iterations. The reference
    computes U Wᴴ from the thin singular value decomposition. For a singular V the factor depends on the basis that
    the decomposition chooses.

    On a CPU, the C++ kernels use the dynamically weighted Halley iteration in single and double precision. ``"auto"``
    takes them where they are faster: if the smaller side has at most 1024 entries in float32, or 128 in other dtypes.

    On a GPU, float32 and complex64 use a scaled Newton-Schulz iteration, and the host never waits. One launch
    iterates matrices of at most 64 x 64 (``"native"``) or 32 x 32 (``"triton"``; complex matrices and gradients of
    real ones: 16 x 16); ``"triton"`` iterates larger ones in batched products. A matrix that does not converge
    (condition numbers from about 1e6 in one launch, 1e4 by products) gets a small fixed addition, relative to V less
    than a rounding, so that Q is orthonormal for every finite V. If V has NaN or Inf, Q is NaN.

    The gradient is that of the exact factor with its denominators, singular values and sums of two of them, bounded
    below by max(m, n) eps times the largest one (1 for a zero matrix), hence finite for every finite V. On a GPU, the
    singular values of a matrix that did not converge count as larger by (8 + max(m, n)) eps ||V||_F instead.
    Derivatives up to the third are those of the reference.

    Args:
        V: (..., m, n), real or complex; float16 and bfloat16 are computed and returned in float32.
        reals: number of matrices, along the first dimension of a complex V, that are taken as real; the same matrices
            of Q are real. A convolution has such matrices at its self-conjugate frequencies. Default 0.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.

    Returns:
        Q: the shape of V.

    Raises:
        TypeError: V is not a real or complex floating-point tensor.
        ValueError: V has fewer than two dimensions or matrices without entries, reals exceeds the number of matrices
            of a complex batch, or the backend is unknown or cannot run here.

    >>> fastlip.ops.polar(torch.tensor([[3.0, 0.0], [0.0, -2.0]])).round(decimals=4) + 0
    tensor([[ 1.,  0.],
            [ 0., -1.]])
    """
    V = matrices("V", V)
    if reals != 0 and not (V.is_complex() and V.dim() > 2 and 0 < reals <= V.shape[0]):
        raise ValueError(f"reals={reals}: expected at most the matrices of a complex batch, got {tuple(V.shape)}")
    return OPERATOR(V, reals, backend)


def _fake_forward(V: Tensor, reals: int, backend: Backend) -> tuple[Tensor, Tensor]:
    failed = torch.empty(V.shape[:-2].numel(), dtype=torch.bool, device=V.device)
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
