"""Polynomials of matrices, two powers at a time, and their adjoint.

With S = M^2 and B_i = c_2i + c_(2i+1) M: p(M) = B_0 + S (B_1 + S (B_2 + ...)), half of Horner's products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def products_of(degree: int) -> int:
    """The number of matrix products in a polynomial of this degree: one square, the others in Horner's rule."""
    return 0 if degree == 1 else (degree + 1) // 2


def polynomial(M: Tensor, coefficients: Sequence[float]) -> Tensor:
    """sum_t c_t M^t of matrices (n, c, c), real or complex, of degree 1 or more."""
    return polynomial_and_factors(M, coefficients)[0]


def polynomial_and_factors(M: Tensor, coefficients: Sequence[float]) -> tuple[Tensor, list[Tensor]]:
    """Returns the polynomial, and for its adjoint S and the factors by which S is multiplied, innermost first."""
    if len(coefficients) == 2:
        return _linear(M, coefficients), []
    S = M @ M
    inner, *others = reversed(_groups(coefficients))
    total = _linear(M, inner[:2])
    if len(inner) == 3:
        total.add_(S, alpha=inner[2])
    factors = [S]
    for pair in others:
        factors.append(total)
        total = torch.baddbmm(_linear(M, pair), S, total)
    return total, factors


def polynomial_adjoint(M: Tensor, factors: list[Tensor], gradient: Tensor, coefficients: Sequence[float]) -> Tensor:
    """The gradient of M from that of the polynomial."""
    if not factors:
        return gradient * coefficients[1]
    M_adjoint, S_adjoint = _adjoint(M), _adjoint(factors[0])
    inner, *others = reversed(_groups(coefficients))
    M_gradient, S_gradient = torch.zeros_like(M), torch.zeros_like(M)
    for total, pair in zip(reversed(factors[1:]), reversed(others), strict=True):
        M_gradient.add_(gradient, alpha=pair[1])
        S_gradient.baddbmm_(gradient, _adjoint(total))
        gradient = S_adjoint @ gradient
    M_gradient.add_(gradient, alpha=inner[1])
    if len(inner) == 3:
        S_gradient.add_(gradient, alpha=inner[2])
    return M_gradient.baddbmm_(S_gradient, M_adjoint).baddbmm_(M_adjoint, S_gradient)


def _groups(coefficients: Sequence[float]) -> list[Sequence[float]]:
    """(c_0, c_1), (c_2, c_3), ...; the last has three elements if the number of coefficients is odd."""
    begins = range(0, len(coefficients) - 1, 2)
    return [*(coefficients[begin : begin + 2] for begin in begins[:-1]), coefficients[begins[-1] :]]


def _linear(M: Tensor, coefficients: Sequence[float]) -> Tensor:
    total = M * coefficients[1]
    total.diagonal(dim1=-2, dim2=-1).add_(coefficients[0])
    return total


def _adjoint(M: Tensor) -> Tensor:
    return M.mH.resolve_conj().contiguous()
