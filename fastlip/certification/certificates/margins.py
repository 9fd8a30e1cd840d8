"""From scores to certified radii: margins, minus what rounding may take, over how fast they can change."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor

from fastlip.certification.certificates.slopes import SQRT2
from fastlip.certification.rounding import EXACT, Rounded
from fastlip.losses.labels import classes, is_binary

# A constant function has infinite radii: gaps over the smallest positive number say so.
TINY, LARGEST = torch.finfo(torch.float64).tiny, torch.finfo(torch.float64).max


class Slopes(NamedTuple):
    """Bounds of how fast scores change: that of the network, and (c, c) those of the differences of two classes."""

    bound: float
    classes: Tensor


# The scores (k, c) without rounding of some samples of a batch, given by a mask (n,); None where they cannot be had.
Exact = Callable[[Tensor], Tensor | None]


def above(threshold: float, outputs: Tensor, exact: Exact) -> tuple[Tensor, Exact]:
    """One score per sample minus a threshold, and likewise the scores without rounding; see :func:`measure`."""
    if isinstance(threshold, bool) or not isinstance(threshold, Real):
        raise TypeError(f"threshold={threshold!r}: expected a number, got {type(threshold).__name__}")
    if not threshold:
        return outputs, exact
    if not (math.isfinite(threshold) and is_binary(outputs)):
        raise ValueError(
            f"threshold={threshold!r}: expected a number, for one score per sample, or 0 for several;"
            f" the outputs are {tuple(outputs.shape)}"
        )
    level = outputs.new_tensor(threshold).double()
    shift = torch.stack((level, -level)) / 2

    def shifted(rows: Tensor) -> Tensor | None:
        scores = exact(rows)
        return None if scores is None else scores + shift

    return outputs.double() - level, shifted


def measure(
    outputs: Tensor,
    labels: Tensor,
    error: Rounded,
    slopes: Slopes,
    eps: Sequence[float],
    exact: Exact,
) -> dict[str, Tensor]:
    """Margins, and radii that are not yet 0 for misclassified samples, by name and with one row per sample.

    A margin changes by at most ``root`` times the L2 norm of a change of the outputs: sqrt 2, or 1 for one score.

    Args:
        outputs: the network's, (n, c), or one score (n,) or (n, 1).
        labels: integers or one-hot.
        error: bounds of the errors of the outputs.
        slopes: see :class:`Slopes`.
        eps: the radii at which an exact evaluation is worth its cost.
        exact: see :data:`Exact`.
    """
    logits, true = classes(outputs, labels)
    logits, root = logits.double(), 1.0 if is_binary(outputs) else SQRT2
    gaps, classes_of = gaps_of(logits, true), true.long().argmax(1)
    growth = root * error.growth
    steepness = (slopes.classes[classes_of] + growth[:, None]).clamp_min(TINY)
    joint_steepness = (root * slopes.bound + growth).clamp_min(TINY)
    certain = gaps - root * (error.error + error.near)[:, None]
    margin = gaps.amin(1)
    hopeful = gaps + root * (error.error - error.near)[:, None]
    rows = _is_between(certain, hopeful, steepness, eps) & (margin > 0)
    rows |= _is_between(certain, hopeful, joint_steepness[:, None], eps) & (margin > 0)
    if rows.any() and (scores := exact(rows)) is not None:
        lost = root * (EXACT * error.error + error.near)[rows, None]
        certain[rows] = torch.maximum(certain[rows], gaps_of(scores, true[rows]) - lost)
    class_radii = torch.minimum(certain / steepness, error.reach[:, None])
    radius = class_radii.amin(1).clamp(0, LARGEST)
    return {
        "margin": margin,
        "joint": torch.minimum(certain.amin(1) / joint_steepness, error.reach).clamp(0, LARGEST),
        "radius": radius,
        "class_radii": class_radii.clamp_min(0).masked_fill(true, math.inf),
        "label": classes_of,
        "prediction": logits.argmax(1),
        "error": error.near + error.growth * radius,
    }


def gaps_of(logits: Tensor, true: Tensor) -> Tensor:
    """(n, c): f_y - f_j, inf at j = y."""
    gaps = logits.masked_fill(~true, 0).sum(1, keepdim=True) - logits
    return gaps.masked_fill(true, math.inf)


def _is_between(certain: Tensor, hopeful: Tensor, steepness: Tensor, eps: Sequence[float]) -> Tensor:
    """(n,): which samples have certain margins that leave them at or below an eps that hopeful ones exceed."""
    low = (certain / steepness).amin(1, keepdim=True)
    high = (hopeful / steepness).amin(1, keepdim=True)
    values = torch.as_tensor(list(eps), dtype=torch.float64, device=certain.device)
    return ((low <= values) & (high > values)).any(1)
