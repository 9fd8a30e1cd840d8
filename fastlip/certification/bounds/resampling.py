"""Bounds of paddings that repeat entries, and of interpolation."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip import ops
from fastlip.certification.bounds.table import Bound, Shape, lipschitz_bound, register

_ROUNDINGS = 16.0  # at most this many taps per axis, and weights of a few roundings each
_EPS = torch.finfo(torch.float64).eps


@register(
    *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
)
def _repeating(module: Any, input_shape: Shape, output_shape: Shape) -> Bound:
    """The root of how often the most frequent entry occurs in the padded sample."""
    labels = torch.arange(math.prod(input_shape), dtype=torch.float64).view(1, *input_shape)
    copies = int(module(labels).flatten().long().bincount().amax())
    return Bound(math.sqrt(copies), f"an entry is copied at most {copies} times", exact=True)


@lipschitz_bound.register
def _upsample(module: nn.Upsample, input_shape: Shape, output_shape: Shape) -> Bound:
    names = "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor"
    return interpolation(input_shape, {name: getattr(module, name) for name in names})


def interpolation(input_shape: Shape, options: dict[str, Any]) -> Bound:
    """The bound of ``torch.nn.functional.interpolate`` with these options, the product of the norms along each axis.

    Every mode works along one axis after the other. Where its weights depend on the precision in which positions are
    computed, the larger norm counts.
    """
    value = 1.0
    for axis in range(len(input_shape) - 1):
        matrices = (_along(axis, input_shape[1:], options, dtype) for dtype in (torch.float32, torch.float64))
        value *= max(ops.spectral_norm(matrix.double()).item() for matrix in matrices)
    moves = str(options.get("mode") or "nearest").startswith("nearest")
    value *= 1 + 4 * len(input_shape) * _EPS
    return Bound(value, "norms along each axis", 0.0 if moves else _ROUNDINGS * value, exact=True)


def _along(axis: int, sides: tuple[int, ...], options: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """The matrix of the interpolation along one axis, found on images that are constant along the others."""
    options = dict(options)
    size, scale = options.get("size"), options.get("scale_factor")
    shape = [1] * len(sides)
    if size is not None:
        sizes = [size] * len(sides) if isinstance(size, int) else list(size)
        options["size"] = [side if other == axis else 1 for other, side in enumerate(sizes)]
    elif scale is not None:
        scales = list(scale) if isinstance(scale, (tuple, list)) else [scale] * len(sides)
        shape = [max(1, math.ceil(1 / factor)) for factor in scales]
    shape[axis] = sides[axis]
    own = [side if other == axis else 1 for other, side in enumerate(sides)]
    entries = torch.eye(sides[axis], dtype=dtype).view(1, sides[axis], *own)
    found = F.interpolate(entries.expand(1, -1, *shape), **options)
    return found.movedim(2 + axis, -1).flatten(2, -2)[0, :, 0].T if len(sides) > 1 else found[0].T
