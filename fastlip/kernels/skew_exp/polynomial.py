"""exp(A) of skew matrices by a polynomial of degree 8 in three products, and its adjoint in five (README.md)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Up to these norms of A the polynomial, and its derivative, are those of the exponential to rounding.
_LARGEST = {torch.float32: 0.55, torch.float64: 0.045}
_MOST_SQUARINGS = 60

# exp(A) = I + A + _Y A² + (_X3 A² + B)(_X4 I + _X5 A + _X6 A² + _X7 B) + O(A⁹), B = A² (_X1 A + _X2 A²): Bader, Blanes,
# Casas, "Computing the matrix exponential with an optimized Taylor polynomial approximation", Mathematics 2019.
_ROOT = math.sqrt(177)
_X3 = 2 / 3
_X1, _X2 = _X3 * (1 + _ROOT) / 88, _X3 * (1 + _ROOT) / 352
_X4, _X5 = (29 * _ROOT - 271) / (315 * _X3), 11 * (_ROOT - 1) / (1260 * _X3)
_X6, _X7 = 11 * (_ROOT - 9) / (5040 * _X3), (89 - _ROOT) / (5040 * _X3 * _X3)
_Y = (857 - 58 * _ROOT) / 630


def exponential(A: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """exp(A) of skew matrices (b, c, c); A², B and the matrices that were squared (s, b, c, c), for the adjoint.

    A is divided by 2^s first, so that the largest norm of the batch is small, and the result squared s times.
    """
    square = A @ A
    squarings = _squarings(square)
    if squarings:
        A, square = A * 0.5**squarings, square * 0.25**squarings
    B = square @ torch.add(A * _X1, square, alpha=_X2)
    E = torch.baddbmm(A, *_factors(A, square, B)).add_(square, alpha=_Y)
    E.diagonal(dim1=-2, dim2=-1).add_(1)
    squared = E.new_empty(squarings, *E.shape)
    for kept in squared:
        kept.copy_(E)
        E = kept @ kept
    return E, square, B, squared


def adjoint(gradient: Tensor, A: Tensor, square: Tensor, B: Tensor, squared: Tensor) -> Tensor:
    """The skew part of the gradient of A (b, c, c)."""
    scale = 0.5 ** len(squared)
    A = A * scale if scale < 1 else A
    for E in squared.flip(0):
        gradient = torch.baddbmm(E.mT @ gradient, gradient, E.mT)
    left, right = _factors(A, square, B)
    of_left, of_right = gradient @ right.mT, left.mT @ gradient
    of_B = torch.add(of_left, of_right, alpha=_X7)
    inner = A.mul(-_X1).add_(square, alpha=_X2)  # (x1 A + x2 A²)ᵀ
    of_inner = square @ of_B
    of_square = torch.baddbmm(gradient, of_B, inner, beta=_Y)
    of_square.add_(of_left, alpha=_X3).add_(of_right, alpha=_X6).add_(of_inner, alpha=_X2)
    of_A = torch.add(gradient, of_right, alpha=_X5).add_(of_inner, alpha=_X1)
    # Of A X + X A only the part of the symmetric half of X is skew.
    of_A.baddbmm_(A, of_square + of_square.mT, alpha=-1)
    return (of_A - of_A.mT).mul_(scale / 2)


def _factors(A: Tensor, square: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors of the last product."""
    right = torch.mul(B, _X7).add_(square, alpha=_X6).add_(A, alpha=_X5)
    right.diagonal(dim1=-2, dim2=-1).add_(_X4)
    return torch.add(B, square, alpha=_X3), right


def _squarings(square: Tensor) -> int:
    """How often the largest matrix must be halved. Eigenvalues of A² come in pairs: its norm is at most ||A²||_F / √2."""
    norm = math.sqrt(float(torch.linalg.matrix_norm(square).amax()) / math.sqrt(2)) if square.numel() else 0.0
    if not norm > _LARGEST[square.dtype]:  # also where it is not a number
        return 0
    if math.isinf(norm):
        return _MOST_SQUARINGS
    return min(_MOST_SQUARINGS, math.ceil(math.log2(norm / _LARGEST[square.dtype])))
