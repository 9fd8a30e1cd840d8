"""``fastlip.invert_residual``: the inverse of x + f(x) for a strict contraction f, by a fixed point."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastlip.certification.auditing import audit
from fastlip.certification.certificates.outputs import certify_outputs
from fastlip.certification.rounding import RoundingModel, check_model_name
from fastlip.kernels.common.checks import kind_of
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
    f: nn.Module,
    y: Tensor,
    *,
    lipschitz: float | None = None,
    tolerance: float = 1e-6,
    max_steps: int = 1000,
    rounding: RoundingModel | None = None,
) -> Inverse:
    r"""Solves x + f(x) = y for a strict contraction f: the inverse of a block of an invertible residual network.

    .. math:: x_{k+1} = y - f(x_k), \qquad |x_k - x| \le \frac{|y - x_k - f(x_k)| + e(x_k)}{1 - L}

    For L < 1 the iteration converges to the only solution, and each step divides the distance by 1 / L at least
    (Banach; Behrmann et al., *Invertible Residual Networks*, ICML 2019). A 1-Lipschitz network followed by
    ``Scale(0.9)`` is such an f. e bounds the rounding errors of f(x_k). It counts as 0 unless ``rounding`` asks for
    it. The result has no gradient.

    Args:
        f: a contraction whose output has the shape of its input, in eval mode.
        y: (n, ...), the images of the block.
        lipschitz: L, below 1; default None audits f (:func:`fastlip.audit`) in L2 norm, whatever its first layer.
        tolerance: iterates until the bound of every sample, without e, is at most this; default 1e-06.
        max_steps: evaluations of f after which it stops; ``error`` then tells how far it came; default 1000.
        rounding: ``"worst-case"`` or ``"probabilistic"`` adds e as :func:`fastlip.certify_outputs` bounds it: x is
            then within ``error`` of the inverse without rounding errors; default None leaves it out.

    Returns:
        An :class:`fastlip.Inverse`.

    Raises:
        ValueError: L is not below 1, f changes the shape or is in training mode, or tolerance is negative or NaN.
        TypeError: max_steps is no int, tolerance no number, or y no floating-point tensor.

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
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)):
        raise TypeError(f"tolerance={tolerance!r}: expected a number, got {type(tolerance).__name__}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance}: expected a number, at least 0")
    if not isinstance(y, Tensor) or not y.is_floating_point():
        raise TypeError(f"y: got {kind_of(y)}, expected a floating-point tensor")
    positive_int("max_steps", max_steps)
    if rounding is not None:
        check_model_name(rounding)
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
        if steps == max_steps or bool(((error <= tolerance) | (error == math.inf)).all()):
            return Inverse(x, error if rounding is None else _with_rounding(f, x, y, bound, rounding), steps)
        x = following


def _error(residual: Tensor, bound: float, rounding: Tensor | float = 0.0) -> Tensor:
    """(n,): (|residual| + rounding) / (1 - L), rounded up; NaN counts as infinite."""
    norms = torch.linalg.vector_norm(residual.flatten(1).double(), dim=1) + rounding
    return (norms / (1 - bound) * (1 + 2.0**-40)).nan_to_num(nan=math.inf, posinf=math.inf)


def _with_rounding(f: nn.Module, x: Tensor, y: Tensor, bound: float, rounding: RoundingModel) -> Tensor:
    """(n,): the bound of the error of x, with the rounding errors of f(x) and of the residual."""
    error = torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    rows = x.flatten(1).isfinite().all(1)
    if rows.any():
        outputs = certify_outputs(f, x[rows], rounding=rounding)
        parts = [part.flatten(1).to(error) for part in (x[rows], y[rows], outputs.values)]
        sums = sum(torch.linalg.vector_norm(part, dim=1) for part in parts) * 2.0**-51  # roundings of the residual
        residual = parts[1] - parts[0] - parts[2]
        error[rows] = _error(residual, bound, outputs.errors.error.to(error) + sums)
    return error
