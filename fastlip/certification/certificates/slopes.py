"""Bounds of how fast the difference of two class scores changes: sqrt 2 L, or less if the last layer is linear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastlip.certification.auditing import Audit, LayerBound
from fastlip.certification.bounds.weights import linear_form, runs_as
from fastlip.certification.unfolding import Link
from fastlip.exporting.plain import FirstEntries, Multiply
from fastlip.nn.base import as_it_runs
from fastlip.nn.scaling import Scale
from fastlip.nn.shaping import FirstChannels

SQRT2 = math.sqrt(2)
_SELECTIONS = (nn.Flatten, nn.Identity, nn.Dropout, FirstChannels)
_EPS = torch.finfo(torch.float64).eps


def class_slopes(links: Sequence[Link], found: Audit) -> Tensor:
    """(c, c): bounds of how fast f_i - f_j changes, for all classes i and j; (2, 2) of one score's own change."""
    count = (*found.layers[-1].output_shape, 1)[0]
    if count == 1:
        return torch.full((2, 2), found.bound, dtype=torch.float64)
    joint = torch.full((count, count), SQRT2 * found.bound, dtype=torch.float64)
    head = _head(links, found)
    return joint if head is None else torch.minimum(joint, head[0] * head[1])


def _head(links: Sequence[Link], found: Audit) -> tuple[Tensor, float] | None:
    """If the network ends in a linear layer: |w_i - w_j| for all classes, and the bound of what precedes it.

    Selections and a factor may follow the layer: the bound is times the factor.
    """
    last = len(links) - 1
    while last > 0 and (_keeps_the_first(links[last].module) or _multiplies(links[last].module)):
        last -= 1
    weight = _matrix(links[last].module, found.layers[last])
    if weight is None:
        return None
    rows = as_it_runs(weight)[: found.layers[-1].output_shape[0]]
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    others = [*found.layers[:last], *found.layers[last + 1 :]]
    body = math.prod([row.bound for row in others])
    return distances * (1 + rows.shape[1] * _EPS), body * (1 + len(others) * _EPS)


def _keeps_the_first(module: nn.Module) -> bool:
    """Whether the outputs are the inputs, or the first of them."""
    for kind in _SELECTIONS:
        if isinstance(module, kind):
            return runs_as(module, kind, "forward")
    return runs_as(module, FirstEntries, "forward") and cast(FirstEntries, module).groups == 1


def _multiplies(module: nn.Module) -> bool:
    """Whether the outputs are the inputs times one number."""
    return runs_as(module, Scale, "forward") or runs_as(module, Multiply, "forward")


def _matrix(module: Any, row: LayerBound) -> Tensor | None:
    """The matrix of a dense layer, or of a 1x1 convolution of a single pixel; None for any other module."""
    form = linear_form(module)
    if form == "matrix" and len(row.input_shape) == 1:
        return module.weight
    if form == "convolution" and module.groups == 1 and len(row.input_shape) == 3:
        weight = module.weight
        if row.input_shape[1:] == row.output_shape[1:] == weight.shape[2:] == (1, 1):
            return weight.flatten(1)
    return None
