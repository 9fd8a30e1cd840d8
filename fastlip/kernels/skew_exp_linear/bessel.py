"""Chebyshev's series of the exponential of a skew matrix: Bessel functions of its norm."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

_STEP = 0.02  # of log(norm), so that few series are computed
_LEAST, _LARGEST = 1e-3, 100.0


class Series(NamedTuple):
    """exp(A) = sum of coefficients[k] φ_k(A / norm) with φ_0 = I, φ_1 = N and φ_(k+1) = 2 N φ_k + φ_(k-1)."""

    norm: float
    coefficients: tuple[float, ...]


def steps_of(norm: float) -> int | None:
    """s for a norm of exp(0.02 s), the norm of a skew matrix rounded up, at least 0.001; None from 100 on."""
    return math.ceil(math.log(max(norm, _LEAST)) / _STEP) if norm < _LARGEST else None


@lru_cache(256)
def series(steps: int, error: float, most: int) -> Series | None:
    """The shortest series for a norm of exp(0.02 steps); None if its degree is more than ``most``.

    The first term that is left out, and its derivative, are at most ``error``.
    """
    norm = math.exp(_STEP * steps)
    found = [bessel(0, norm)]
    for k in range(1, most + 2):
        term = 2 * bessel(k, norm)
        # |φ_k| is at most 1, and the derivative of A -> φ_k(A / norm) at most k² / norm.
        if k > max(1, norm) and abs(term) * max(1, k * k / norm) <= error:
            return Series(norm, tuple(found))
        found.append(term)
    return None


def bessel(k: int, x: float) -> float:
    """J_k(x) by its power series, in which little cancels up to x = 10."""
    term = (x / 2) ** k / math.factorial(k)
    total, m = term, 0
    while abs(term) > 1e-18 * abs(total) or m < x:
        m += 1
        term *= -((x / 2) ** 2) / (m * (m + k))
        total += term
    return total
