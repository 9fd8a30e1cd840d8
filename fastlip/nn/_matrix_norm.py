r"""The spectral norm of a dense layer's matrix, never underestimated, in few products.

The largest eigenvalue of the Gram matrix G is found from a vector that the last training step left, which gives a
Rayleigh quotient from below. A Cholesky factor of (1 + tolerance) times that, minus G, proves that it bounds G: for
half of a product of matrices. Where there is none, G is decomposed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common import binding, gram
from fastlip.kernels.common.binding import CPU
from fastlip.kernels.common.derivatives import differentiated
from fastlip.kernels.common.finite import finite_part, poisoned
from fastlip.kernels.common.gate import is_observed
from fastlip.nn._sigma import is_recomputed
from fastlip.nn._warm import WarmStart

# By how much a squared norm that is found from a kept vector may be too large.
TOLERANCE = 2.0**-9
_STEPS = 4  # from the kept vector, each a product of the Gram matrix and a vector
_KERNEL = "matrix_norm_float32"
_ROUNDINGS = 16


def squared_norm(weight: Tensor, warm: WarmStart | None = None) -> Tensor:
    """A bound of the squared spectral norm of a matrix (m, n); (1,).

    On a CPU it is a few roundings too large at most. With ``warm``, in single precision, it is ``TOLERANCE`` too
    large at most, and so much where the vector has converged. Elsewhere it is that of Gram iteration, which does not
    wait for the device. Differentiable twice: where the largest singular value is multiple, as if others were a
    little smaller. Finite at 0; NaN where the weight is not finite.
    """
    if not weight.is_cpu:
        rounding = 1 + (_ROUNDINGS + sum(weight.shape)) * torch.finfo(weight.dtype).eps
        return gram.norm_bound(weight).square()[None] * rounding
    if warm is None or weight.dtype != torch.float32:
        return exact(weight)
    if is_observed() or binding.missing(_KERNEL, weight.device):
        return exact(weight) * (1 + TOLERANCE)  # as if it were found from a kept vector
    return _Certified.apply(weight, warm)


def exact(weight: Tensor) -> Tensor:
    """The squared norm, enlarged by a few roundings, by torch's operations; (1,)."""
    return _exact(weight)[0]


def _exact(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The squared norm, and the vector v of the smaller side for which it is |M v|^2."""
    weight, finite = finite_part(weight)
    size = weight.detach().abs().amax()
    size = torch.where(size > 0, size, 1)
    G = _gram(weight / size)
    values, vectors = torch.linalg.eigh(G.detach())
    largest, v = values[-1], vectors[:, -1]
    # The value is that of LAPACK. This quotient of the constant v has its first derivative; the second is that of
    # the terms of value 0, in which the other eigenvectors turn v.
    image = G @ v
    slope = v @ image
    floor = len(G) * torch.finfo(G.dtype).eps * torch.where(largest > 0, largest, 1)
    turned = vectors[:, :-1].mT @ image
    turned = turned - turned.detach()
    value = largest + (slope - slope.detach()) + (turned.square() / torch.maximum(largest - values[:-1], floor)).sum()
    rounding = 1 + (_ROUNDINGS + sum(weight.shape)) * torch.finfo(value.dtype).eps
    return poisoned(value * (size * size * rounding), finite[0, 0])[None], v


class _Certified(torch.autograd.Function):
    """The squared norm from a kept vector, or the exact one."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, warm: WarmStart) -> Tensor:
        bound, v, ctx.factor = _from_kept(weight, warm)
        ctx.save_for_backward(weight, v)
        return bound

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        """That of factor |M v|^2 for the constant v; to be differentiated itself, that of the exact norm."""
        weight, v = ctx.saved_tensors
        if torch.is_grad_enabled():
            factor = ctx.factor
            return differentiated(lambda weight: exact(weight) * factor, (weight,), (True,), gradient)[0], None
        u = torch.mv(weight if weight.shape[0] >= weight.shape[1] else weight.mT, v)
        u, v = (u, v) if weight.shape[0] >= weight.shape[1] else (v, u)
        return torch.outer(u * (2 * ctx.factor * gradient), v), None


def _from_kept(weight: Tensor, warm: WarmStart) -> tuple[Tensor, Tensor, float]:
    """The bound, and the vector v of the smaller side and the factor for which it is factor |M v|^2."""
    kept = warm.recall(weight, (min(weight.shape),))
    if kept is not None:
        # A forward of the same weight, or a recomputed one, takes the vector of the forward that it repeats.
        steps = 0 if is_recomputed() or warm.is_of(weight) else _STEPS
        bound, v = _certified(weight, kept, steps)
        if bound.item() < math.inf:  # NaN where there is no factor
            warm.keep(v, weight)
            return bound, v, 1 + TOLERANCE
    largest, v = _exact(weight)
    v = v.contiguous()
    # By the same kernel, so that a repeated forward has the same bits.
    bound, _ = _certified(weight, v, 0)
    warm.keep(v, weight)
    return bound if bound.item() < math.inf else largest * (1 + TOLERANCE), v, 1 + TOLERANCE


def _certified(weight: Tensor, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The bound that some steps from a vector lead to, NaN if it is not proved, and the vector then."""
    M, v, bound = weight.contiguous(), start.clone(), weight.new_empty(1)
    CPU[_KERNEL](M.data_ptr(), v.data_ptr(), bound.data_ptr(), *M.shape, steps, TOLERANCE)
    return bound, v


def _gram(weight: Tensor) -> Tensor:
    """The smaller of W^T W and W W^T."""
    return weight.mT @ weight if weight.shape[0] >= weight.shape[1] else weight @ weight.mT
