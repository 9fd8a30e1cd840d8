"""Bounds of how fast the difference of two class scores changes: sqrt 2 L, or less if the last layer is linear."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

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
    head = _head(links, found, _matrix)
    return joint if head is None else torch.minimum(joint, head.distances() * head.body)


def output_slopes(links: Sequence[Link], found: Audit) -> Tensor:
    """(*output_shape): bounds of how fast each output changes: L, or L_body |w_i| if the last layer is linear."""
    shape = found.layers[-1].output_shape
    joint = torch.full(shape, found.bound, dtype=torch.float64)
    head = _head(links, found, _matrix) if len(shape) == 1 else None
    return joint if head is None else torch.minimum(joint, head.norms() * head.body)


def pixel_slopes(links: Sequence[Link], found: Audit) -> Tensor | None:
    """(c, c): L_body |w_i - w_j| if the network ends in a linear layer that acts on each pixel alone; else None.

    The distances over all pixels of what precedes that layer have a sum of squares of at most (L_body eps)^2.
    """
    shape = found.layers[-1].output_shape
    head = _head(links, found, partial(_pixel_matrix, shape[1:])) if shape[0] > 1 else None
    return None if head is None else head.distances() * head.body


class _Head(NamedTuple):
    """The rows w_i of a last linear layer, and the bound of all other layers."""

    rows: Tensor
    body: float

    def distances(self) -> Tensor:
        """(c, c): |w_i - w_j|."""
        found = torch.cdist(self.rows, self.rows, compute_mode="donot_use_mm_for_euclid_dist")
        return found * (1 + self.rows.shape[1] * _EPS)

    def norms(self) -> Tensor:
        """(c,): |w_i|."""
        return torch.linalg.vector_norm(self.rows, dim=1) * (1 + self.rows.shape[1] * _EPS)


def _head(links: Sequence[Link], found: Audit, matrix: Callable[[Any, LayerBound], Tensor | None]) -> _Head | None:
    """The last linear layer, of which ``matrix`` gives the weight, and the bound of the others; None without one.

    Selections and a factor may follow the layer: the bound is times the factor.
    """
    last = len(links) - 1
    while last > 0 and (_keeps_the_first(links[last].module) or _multiplies(links[last].module)):
        last -= 1
    weight = matrix(links[last].module, found.layers[last])
    if weight is None:
        return None
    others = [*found.layers[:last], *found.layers[last + 1 :]]
    body = math.prod([row.bound for row in others])
    return _Head(as_it_runs(weight)[: found.layers[-1].output_shape[0]], body * (1 + len(others) * _EPS))


def _keeps_the_first(module: nn.Module) -> bool:
    """Whether the outputs are the inputs, or the first of them."""
    for kind in _SELECTIONS:
        if isinstance(module, kind):
            return runs_as(module, kind, "forward")
    return runs_as(module, FirstEntries, "forward") and cast(FirstEntries, module).groups == 1


def _multiplies(module: nn.Module) -> bool:
    """Whether the outputs are the inputs times one number."""
    return runs_as(module, (Scale, Multiply), "forward")


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


def _pixel_matrix(sides: tuple[int, ...], module: Any, row: LayerBound) -> Tensor | None:
    """The matrix of a 1x1 convolution that maps each pixel by itself, on images of these sides; else None."""
    if linear_form(module) != "convolution" or module.groups != 1 or set(module.stride) != {1}:
        return None
    weight = module.weight
    # Sides of 1 tap keep their length only without padding.
    is_alone = set(weight.shape[2:]) == {1} and row.input_shape[1:] == row.output_shape[1:] == sides
    return weight.flatten(1) if is_alone else None
