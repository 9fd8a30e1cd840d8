"""Radii in other norms, and the share of samples that are certified at many radii."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlip.inspection.evaluation import radii_of
from fastlip.nn.arguments import positive_int

DOWN = 1 - 2.0**-50  # a few roundings in float64


def lp_factor(p: float, inputs: int) -> float:
    r"""Returns the factor by which a radius in L2 norm becomes one in L_p norm.

    .. math:: |\delta|_2 \le |\delta|_p \;\; (1 \le p \le 2), \qquad
              |\delta|_2 \le d^{1/2 - 1/p} \, |\delta|_p \;\; (p \ge 2)

    by monotony of the norms and Hoelder's inequality. A ball of radius r in L2 thus contains one of radius
    d^min(0, 1/p - 1/2) r in L_p: r / sqrt(d) for Linf, r for L1. No larger factor holds for all perturbations. The
    radius in L2 of a ball that contains a given one in L_p is that radius divided by the factor.

    Args:
        p: the norm, at least 1; ``math.inf`` for Linf.
        inputs: d, the number of inputs, such as 3 * 32 * 32.

    Returns:
        The factor, rounded down.

    Raises:
        ValueError: p below 1, or fewer than 1 input.

    Example:
        >>> round(fastlip.certification.lp_factor(float("inf"), 64), 9), fastlip.certification.lp_factor(1, 64)
        (0.125, 1.0)
    """
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not p >= 1:
        raise ValueError(f"p={p!r}: expected a number of at least 1, or math.inf")
    power = min(0.0, 1 / p - 0.5)
    factor = positive_int("inputs", inputs) ** power
    return factor * DOWN if power else 1.0


def share_above(radii: Tensor, eps: float | Sequence[float] | Tensor) -> Tensor:
    """(k,): for each eps the share of the radii (n,) above it; ValueError for one that is negative or not finite."""
    values, count = torch.tensor(radii_of(eps), dtype=torch.float64), len(radii)
    return (count - torch.searchsorted(radii.sort().values, values, right=True)).double() / count


def nearest_meeting(gaps: Tensor) -> Tensor:
    r"""Returns how far scores must move, in L2 norm, until some of them meet one other.

    .. math:: D(g)^2 = \min_{a \ge 0} \; a^2 + \sum_j \max(0, g_j - a)^2

    g_j is how far score j is away; the one other score moves by a, and each j by what remains. The best a is where
    the derivative is 0, a = sum_j max(0, g_j - a): it is the largest of (g_(1) + ... + g_(m)) / (m + 1) over m, with
    g sorted downwards. For one j, D = g / sqrt(2); for k equal ones, D = g sqrt(k / (k + 1)).

    Args:
        gaps: (n, k), finite.

    Returns:
        (n,), 0 where no gap is positive; rounded down.
    """
    gaps = gaps.clamp_min(0)
    sums = gaps.sort(1, descending=True).values.cumsum(1)
    counts = torch.arange(2, gaps.shape[1] + 2, dtype=gaps.dtype, device=gaps.device)
    best = (sums / counts).amax(1, keepdim=True)
    rest = (gaps - best).clamp_min(0)
    found = torch.linalg.vector_norm(torch.cat((best, rest), 1), dim=1)
    return found * (1 - gaps.shape[1] * torch.finfo(gaps.dtype).eps)
