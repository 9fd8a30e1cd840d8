"""What truncating the exponential of a skew operator costs: p_T(i theta) = sum_{t <= T} (i theta)^t / t!.

A skew operator K is normal with spectrum i theta, |theta| <= ||K||, so ||p_T(K)|| is the largest |p_T(i theta)|,
and p_T(K) is 1-Lipschitz exactly where that modulus is at most 1. Near 0 it is below 1 for T = 3, 4, 7, 8, 11, 12,
15, 16 and above 1 for the others.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import numpy as np


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
