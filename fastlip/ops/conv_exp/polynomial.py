"""Polynomials of matrices, two powers at a time, and their adjoint.

With S = M^2 and B_i = c_2i + c_(2i+1) M: p(M) = B_0 + S (B_1 + S (B_2 + ...)), half of Horner's products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def products_of(degree: int) -> int:
    """Products of matrices that a polynomial of this degree takes: the square, and those of Horner's rule with it."""
    return 0 if degree == 1 else (degree + 1) // 2


def polynomial(M: Tensor, coefficients: Sequence[float]) -> Tensor:
    """sum_t c_t M^t of matrices (n, c, c), real or complex, of degree 1 or more."""
    if len(coefficients) == 2:
        return _linear(M, *coefficients)
    S = M @ M
    inner, *others = reversed(_pairs(coefficients))
    total = _innermost(M, S, inner)
    for pair in others:
        total = torch.baddbmm(_linear(M, *pair), S, total)
    return total


def polynomial_adjoint(M: Tensor, gradient: Tensor, coefficients: Sequence[float]) -> Tensor:
    """The gradient of M from that of the polynomial."""
    if len(coefficients) == 2:
        return gradient * coefficients[1]
    adjoint = _adjoint(M)
    S, S_adjoint = M @ M, adjoint @ adjoint
    inner, *others = reversed(_pairs(coefficients))
    totals = [_innermost(M, S, inner)]
    for pair in others[:-1]:
        totals.append(torch.baddbmm(_linear(M, *pair), S, totals[-1]))
    M_gradient = torch.zeros_like(M)
    S_gradient = torch.zeros_like(M)
    for pair, total in zip(reversed(others), reversed(totals), strict=False):  # degree 2 has no product but the square
        M_gradient.add_(gradient, alpha=pair[1])
        S_gradient.baddbmm_(gradient, _adjoint(total))
        gradient = S_adjoint @ gradient
    M_gradient.add_(gradient, alpha=inner[1])
    if len(inner) == 3:
        S_gradient.add_(gradient, alpha=inner[2])
    return M_gradient.baddbmm_(S_gradient, adjoint).baddbmm_(adjoint, S_gradient)


def _pairs(coefficients: Sequence[float]) -> list[tuple[float, ...]]:
    """(c_0, c_1), (c_2, c_3), ...; the last has three elements where their number is odd."""
    ends = [*range(2, len(coefficients) - 1, 2), len(coefficients)]
    return [tuple(coefficients[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]


def _innermost(M: Tensor, S: Tensor, coefficients: Sequence[float]) -> Tensor:
    total = _linear(M, *coefficients[:2])
    return total.add_(S, alpha=coefficients[2]) if len(coefficients) == 3 else total


def _linear(M: Tensor, constant: float, factor: float) -> Tensor:
    total = M * factor
    total.diagonal(dim1=-2, dim2=-1).add_(constant)
    return total


def _adjoint(M: Tensor) -> Tensor:
    return M.mH.resolve_conj().contiguous()
