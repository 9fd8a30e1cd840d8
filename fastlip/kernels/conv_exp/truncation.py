"""The error of truncating the exponential of a skew operator: p_T(i theta) = sum_{t <= T} (i theta)^t / t!.

A skew operator K is normal with spectrum i theta, |theta| <= ||K||, so ||p_T(K)|| is the largest |p_T(i theta)|,
and p_T(K) is 1-Lipschitz exactly where that modulus is at most 1. Near 0 it is below 1 for T = 3, 4, 7, 8, 11, 12,
15, 16 and above 1 for the others.

A polynomial of lower degree agrees with p_T to rounding where the norm allows: :func:`economized`.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import numpy as np

MAX_TERMS = 16  # beyond, the series has converged in double precision for every norm that the layers use
_TAYLOR = tuple(1 / math.factorial(t) for t in range(MAX_TERMS + 1))
_HALVINGS = 40


def taylor(terms: int) -> tuple[float, ...]:
    """The coefficients 1 / t! for t = 0 to terms."""
    return _TAYLOR[: terms + 1]


@cache
def _excess(terms: int) -> tuple[float, ...]:
    """Coefficients in u = theta^2, lowest first, of |p_T(i theta)|^2 - 1: exact sums, most of them 0."""
    total = [Fraction(0)] * (terms + 1)
    for s in range(terms + 1):
        for t in range(s % 2, terms + 1, 2):  # only terms of one parity add up to a real square
            sign = -1 if ((s - t) // 2) % 2 else 1
            total[(s + t) // 2] += Fraction(sign, math.factorial(s) * math.factorial(t))
    total[0] -= 1
    return tuple(float(value) for value in total)


def modulus(terms: int, theta: float) -> float:
    """|p_T(i theta)|."""
    return math.sqrt(1 + _evaluate(terms, theta * theta))


def largest_modulus(terms: int, norm: float) -> float:
    """The largest |p_T(i theta)| over |theta| <= norm: the Lipschitz constant for a skew operator of that norm."""
    derivative = np.polynomial.Polynomial(_excess(terms)).deriv()
    candidates = [0.0, norm * norm]
    candidates += [root.real for root in derivative.roots() if 0 < root.real < norm * norm]
    return math.sqrt(1 + max(_evaluate(terms, u) for u in candidates))


@cache
def stable_norm(terms: int) -> float:
    """The largest norm up to which |p_T(i theta)| <= 1; 0 if the modulus exceeds 1 near 0."""
    excess = _excess(terms)
    leading = next(i for i, value in enumerate(excess) if value != 0)
    if excess[leading] > 0:
        return 0.0
    roots = np.polynomial.Polynomial(excess[leading:]).roots()
    smallest = min(root.real for root in roots if abs(root.imag) < 1e-9 * abs(root) and root.real > 0)
    return math.sqrt(smallest) * (1 - 1e-9)  # a rounded root may lie a little too far


def _evaluate(terms: int, u: float) -> float:
    value = 0.0
    for coefficient in reversed(_excess(terms)):
        value = value * u + coefficient
    return value


@cache
def economized(terms: int, degree: int, tolerance: float) -> tuple[tuple[float, ...], float]:
    """Coefficients of K^0 to K^degree in place of p_T's, and the norm up to which they are good enough.

    For a skew K of at most that norm the two polynomials of K differ by at most tolerance in norm. p_T on
    [-i norm, i norm] is a finite sum of Chebyshev polynomials. The last ``terms - degree`` of them are left out, and
    the error is at most the sum of the absolute values of their coefficients (Lanczos's economization).
    """
    if degree == terms:
        return taylor(terms), math.inf
    low, high = 0.0, float(MAX_TERMS)
    for _ in range(_HALVINGS):
        norm = (low + high) / 2
        error = np.abs(_chebyshev(terms, norm)[degree + 1 :]).sum()
        low, high = (norm, high) if error <= tolerance else (low, norm)
    powers = np.polynomial.chebyshev.cheb2poly(_chebyshev(terms, low)[: degree + 1])
    coefficients = [(value / (1j * low) ** t).real for t, value in enumerate(powers)]
    return tuple(map(float, coefficients)), low


def degree_for(terms: int, norm: float, tolerance: float) -> int:
    """The lowest degree of an economized p_T that is good enough for skew operators of at most this norm."""
    return next((d for d in range(1, terms) if norm <= economized(terms, d, tolerance)[1]), terms)


def _chebyshev(terms: int, norm: float) -> np.ndarray:
    """p_T(i norm x) = sum_k c_k T_k(x): the coefficients c_k."""
    return np.polynomial.chebyshev.poly2cheb([(1j * norm) ** t / math.factorial(t) for t in range(terms + 1)])
