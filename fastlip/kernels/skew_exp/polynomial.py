"""exp(A) of skew matrices by a polynomial of degree 8 in three products, its adjoint in five: in single precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlip.kernels.common.products import product
from fastlip.kernels.skew_exp.norm import skew_norm

_LARGEST = 0.55  # norm of A up to which the polynomial and its derivative are those of the exponential to rounding
_MOST_SQUARINGS = 40

# exp(A) = I + A + _Y A² + (_X3 A² + B)(_X4 I + _X5 A + _X6 A² + _X7 B) + O(A⁹), B = A² (_X1 A + _X2 A²):
# Bader, Blanes, Casas, "Computing the matrix exponential with an optimized Taylor polynomial approximation", 2019.
_ROOT = math.sqrt(177)
_X3 = 2 / 3
_X1, _X2 = _X3 * (1 + _ROOT) / 88, _X3 * (1 + _ROOT) / 352
_X4, _X5 = (29 * _ROOT - 271) / (315 * _X3), 11 * (_ROOT - 1) / (1260 * _X3)
_X6, _X7 = 11 * (_ROOT - 9) / (5040 * _X3), (89 - _ROOT) / (5040 * _X3 * _X3)
_Y = (857 - 58 * _ROOT) / 630


def exponential(A: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """exp(A) of skew matrices (b, c, c); A² and B for the adjoint, and how often the result was squared.

    A is divided by 2^s first, so that the largest norm of the batch is small, and the result squared s times.
    """
    whole = _times(A, A)
    A, square, squarings = _halved(A, whole)
    B = _times(square, torch.add(A * _X1, square, alpha=_X2))
    E = _small(A, square, B)
    for _ in range(squarings):
        E = _times(E, E)
    return E, whole, B, squarings


def adjoint(gradient: Tensor, A: Tensor, square: Tensor, B: Tensor) -> Tensor:
    """The skew part of the gradient of A (b, c, c)."""
    A, square, squarings = _halved(A, square)
    squared = [_small(A, square, B)] if squarings else []
    for _ in range(squarings - 1):
        squared.append(_times(squared[-1], squared[-1]))
    for E in reversed(squared):
        gradient = _times(E.mT, gradient) + _times(gradient, E.mT)
    left, right = _factors(A, square, B)
    of_left, of_right = _times(gradient, right.mT), _times(left.mT, gradient)
    of_B = torch.add(of_left, of_right, alpha=_X7)
    inner = A.mul(-_X1).add_(square, alpha=_X2)  # (x1 A + x2 A²)ᵀ
    of_inner = _times(square, of_B)
    of_square = _times(of_B, inner).add_(gradient, alpha=_Y)
    of_square.add_(of_left, alpha=_X3).add_(of_right, alpha=_X6).add_(of_inner, alpha=_X2)
    of_A = torch.add(gradient, of_right, alpha=_X5).add_(of_inner, alpha=_X1)
    # Of A X + X A only the part of the symmetric half of X is skew.
    of_A.sub_(_times(A, of_square + of_square.mT))
    return (of_A - of_A.mT).mul_(0.5 ** (squarings + 1))


def _times(A: Tensor, B: Tensor) -> Tensor:
    """A B for each matrix of a batch."""
    return product(A[0], B[0])[None] if len(A) == 1 else A @ B


def _small(A: Tensor, square: Tensor, B: Tensor) -> Tensor:
    """exp(A) of an A of small norm."""
    E = _times(*_factors(A, square, B)).add_(A).add_(square, alpha=_Y)
    E.diagonal(dim1=-2, dim2=-1).add_(1)
    return E


def _factors(A: Tensor, square: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors of the last product."""
    right = torch.mul(B, _X7).add_(square, alpha=_X6).add_(A, alpha=_X5)
    right.diagonal(dim1=-2, dim2=-1).add_(_X4)
    return torch.add(B, square, alpha=_X3), right


def _halved(A: Tensor, square: Tensor) -> tuple[Tensor, Tensor, int]:
    """A / 2^s and A² / 4^s, and s: as few halvings as make the norm small.

    Eigenvalues of A² come in pairs, so that its norm is at most its Frobenius norm over the root of 2. Where this
    bound asks for halvings of a single matrix, its norm is estimated more closely.
    """
    if square.is_meta or not square.numel():
        return A, square, 0
    norm = math.sqrt(float(torch.linalg.matrix_norm(square).amax()) / math.sqrt(2))
    if norm > _LARGEST and norm < math.inf and len(A) == 1 and A.is_cpu:
        norm = min(norm, skew_norm(A[0]))
    if not norm > _LARGEST:  # also where it is not a number
        return A, square, 0
    halvings = math.ceil(math.log2(norm / _LARGEST)) if norm < math.inf else _MOST_SQUARINGS
    return A * 0.5**halvings, square * 0.25**halvings, halvings
