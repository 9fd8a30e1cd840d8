"""The outputs of a classifier as scores of at least two classes, with bounds of how fast they change."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastlip.certification.certificates.outputs import CertifiedOutputs, check_outputs
from fastlip.certification.certificates.slopes import SQRT2
from fastlip.certification.rounding import Rounded
from fastlip.losses.labels import as_logits, is_binary


class Scores(NamedTuple):
    """The scores of at least two classes, and how fast they change.

    One output f is the two scores (-f/2, f/2), which move by 1/sqrt 2 of what f moves.

    Attributes:
        logits: (n, c), float64.
        joint: a bound of how fast all scores change together, in L2 norm.
        single: (c,), bounds of how fast each score changes.
        pairs: (c, c), bounds of how fast the difference of two scores changes.
        errors: see :class:`CertifiedOutputs`; of the outputs, in L2 norm.
        shares: the factors by which such an error counts for all scores together, for one, and for a difference.
    """

    logits: Tensor
    joint: float
    single: Tensor
    pairs: Tensor
    errors: Rounded
    shares: tuple[float, float, float]


def scores_of(outputs: CertifiedOutputs) -> Scores:
    """The scores of a classifier; ValueError for outputs of another shape, TypeError for another type."""
    check_outputs(outputs)
    values, bound = outputs.values, outputs.lipschitz
    if is_binary(values):
        single = torch.full((2,), bound / 2, dtype=torch.float64)
        shares = (1 / SQRT2, 0.5, 1.0)
        return Scores(as_logits(values), bound / SQRT2, single, outputs.class_slopes, outputs.errors, shares)
    if values.dim() != 2:
        raise ValueError(f"outputs: got shape {tuple(values.shape)}, expected scores (n, c), (n, 1) or (n,)")
    return Scores(values, bound, outputs.slopes, outputs.class_slopes, outputs.errors, (1.0, 1.0, SQRT2))
