"""Zolotarev's rational function of the inverse square root, as a sum of fractions."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

_STEP = 0.02  # of log(condition), so that few functions are computed
_LEAST = 1.05


class Fractions(NamedTuple):
    """g^(-1/2) on [1 / condition², 1] is close to scale (1 + sum of residues[i] / (g + poles[i]))."""

    scale: float
    poles: tuple[float, ...]
    residues: tuple[float, ...]


def fractions(condition: float, error: float, most: int) -> Fractions | None:
    """The function of fewest poles whose relative error is at most ``error``; None if it takes more than ``most``.

    Args:
        condition: quotient of the largest and the smallest singular value, the roots of the ends of the interval.
        error: relative error that is allowed.
        most: number of poles that is allowed.
    """
    if not condition < 1e3:
        return None
    return _fractions(max(1, math.ceil(math.log(max(condition, _LEAST)) / _STEP)), error, most)


@lru_cache(256)
def _fractions(steps: int, error: float, most: int) -> Fractions | None:
    """For a condition number of exp(0.02 steps), one that is rounded up."""
    least = math.exp(-_STEP * steps)
    rest = math.sqrt(1 - least**2)
    quarter = _quarter_period(rest)
    # Zolotarev's error falls as 4 exp(-(2r + 1) pi K(l) / K(l')).
    rate = math.pi * _quarter_period(least) / quarter
    count = next((r for r in range(1, most + 1) if 4 * math.exp(-(2 * r + 1) * rate) <= error), None)
    if count is None:
        return None
    nodes = [_node(j * quarter / (2 * count + 1), least, rest) for j in range(1, 2 * count + 1)]
    poles, zeros = nodes[::2], nodes[1::2]
    residues = []
    for j, pole in enumerate(poles):
        others = poles[:j] + poles[j + 1 :]
        residues.append(math.prod(zero - pole for zero in zeros) / math.prod(other - pole for other in others))
    # The largest value of g^(1/2) f(g) is that at 1: singular values are at most 1.
    scale = math.prod((1 + pole) / (1 + zero) for pole, zero in zip(poles, zeros, strict=True))
    return Fractions(scale, tuple(poles), tuple(residues))


def _quarter_period(modulus: float) -> float:
    """K, the complete elliptic integral of the first kind, by the arithmetic-geometric mean."""
    a, b = 1.0, math.sqrt((1 - modulus) * (1 + modulus))
    while abs(a - b) > 1e-15 * a:
        a, b = (a + b) / 2, math.sqrt(a * b)
    return math.pi / (2 * a)


def _node(u: float, least: float, modulus: float) -> float:
    """l² sn²(u) / cn²(u) for Jacobi's functions of this modulus, by Landen's transformation."""
    a, b, ratios = 1.0, least, [0.0]
    c = modulus
    while c > 1e-16 * a:
        a, b, c = (a + b) / 2, math.sqrt(a * b), (a - b) / 2
        ratios.append(c / a)
    angle = 2 ** (len(ratios) - 1) * a * u
    for ratio in ratios[:0:-1]:
        angle = (angle + math.asin(ratio * math.sin(angle))) / 2
    return (least * math.tan(angle)) ** 2
