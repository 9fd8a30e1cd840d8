"""``fastlip.invert_residual``: the inverse of x + f(x) for a strict contraction f, by a fixed point."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastlip.certification.auditing import audit
from fastlip.nn.arguments import positive_int

__all__ = ["Inverse", "invert_residual"]


class Inverse(NamedTuple):
    """The result of :func:`invert_residual`.

    Attributes:
        x: the approximate inverse, in the shape of y.
        error: (n,), for each sample a bound of the L2 distance of x to the exact inverse.
        steps: the number of evaluations of f.

    Example:
        >>> f = torch.nn.Sequential(lip.CayleyLinear(3, 3), lip.Scale(0.5)).eval()
        >>> fastlip.invert_residual(f, torch.ones(2, 3)).error.shape
        torch.Size([2])
    """

    x: Tensor
    error: Tensor
    steps: int


@torch.no_grad()
def invert_residual(
    f: nn.Module, y: Tensor, *, lipschitz: float | None = None, tolerance: float = 1e-6, max_steps: int = 1000
) -> Inverse:
    r"""Solves x + f(x) = y for a strict contraction f: the inverse of a block of an invertible residual network.

    .. math:: x_{k+1} = y - f(x_k), \qquad |x_k - x| \le \frac{|y - x_k - f(x_k)|}{1 - L}

    For L < 1 the iteration converges to the only solution, and each step divides the distance by 1 / L at least
    (Banach; Behrmann et al., *Invertible Residual Networks*, ICML 2019). A 1-Lipschitz network followed by
    ``Scale(0.9)`` is such an f. The bound of the error holds for the residual in exact arithmetic, and does not fall
    below about the roundoff of |y|. The result has no gradient.

    Args:
        f: a contraction whose output has the shape of its input, in eval mode.
        y: (n, ...), the images of the block.
        lipschitz: L, below 1; default None audits f (:func:`fastlip.audit`) in L2 norm, whatever its first layer.
        tolerance: iterates until the bound of the error of every sample is at most this; default 1e-06.
        max_steps: evaluations of f after which it stops; ``error`` then tells how far it came; default 1000.

    Returns:
        An :class:`fastlip.Inverse`.

    Raises:
        ValueError: L is not below 1, f changes the shape or is in training mode, or tolerance is negative or NaN.
        TypeError: max_steps is no int.

    Example:
        >>> f = torch.nn.Sequential(lip.CayleyLinear(3, 4), lip.MaxMin(), lip.CayleyLinear(4, 3), lip.Scale(0.9))
        >>> f = f.eval()
        >>> x = torch.randn(5, 3)
        >>> found = fastlip.invert_residual(f, x + f(x), tolerance=1e-5)
        >>> bool((found.error <= 1e-5).all()), torch.allclose(found.x, x, atol=2e-5)
        (True, True)
    """
    if f.training:
        raise ValueError("f: is in training mode, expected eval mode (f.eval())")
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance}: expected a number, at least 0")
    positive_int("max_steps", max_steps)
    bound = audit(f, tuple(y.shape[1:]), norm="l2").bound if lipschitz is None else float(lipschitz)
    if not 0 <= bound < 1:
        raise ValueError(
            f"lipschitz={bound:.9g}: expected a number below 1, as of a network followed by lip.Scale(0.9)"
        )
    x, steps = y, 0
    while True:
        value = f(x)
        if value.shape != y.shape:
            raise ValueError(f"f: its output has shape {tuple(value.shape)}, expected that of y, {tuple(y.shape)}")
        steps += 1
        following = y - value
        error = _error(following - x, bound)
        if steps == max_steps or bool((error <= tolerance).all()):
            return Inverse(x, error, steps)
        x = following


def _error(residual: Tensor, bound: float) -> Tensor:
    """(n,): |residual| / (1 - L), rounded up; NaN counts as infinite."""
    norms = torch.linalg.vector_norm(residual.flatten(1).double(), dim=1)
    return (norms / (1 - bound) * (1 + 2.0**-40)).nan_to_num(nan=math.inf, posinf=math.inf)
