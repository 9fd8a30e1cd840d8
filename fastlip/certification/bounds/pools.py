"""The bounds of pools: from how many windows see a pixel, and from the norms of averages along each axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastlip import ops
from fastlip.certification.bounds.table import Bound, Shape, register

MAX_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
AVERAGE_POOLS = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)


@register(*MAX_POOLS)
def _max_pool(module: Any, input_shape: Shape, output_shape: Shape) -> Bound:
    overlap = math.prod(int(seen.sum(0).amax()) for seen in windows(module, input_shape, output_shape))
    return Bound(math.sqrt(overlap), f"a pixel is in at most {overlap} windows", 0.0, exact=True)


@register(*AVERAGE_POOLS)
def _average_pool(module: Any, input_shape: Shape, output_shape: Shape) -> Bound:
    value, length = 1.0, 1
    divisor = getattr(module, "divisor_override", None)
    for axis, seen in enumerate(windows(module, input_shape, output_shape)):
        counts = seen.sum(1)
        if getattr(module, "count_include_pad", False):
            counts = _counts_with_padding(module, axis, input_shape[1 + axis], len(seen))
        weights = seen if divisor else seen / counts.clamp_min(1)[:, None]
        value *= ops.spectral_norm(weights).item()
        length *= int(seen.sum(1).amax())
    value = value / divisor if divisor else value
    return Bound(value, "windows", math.sqrt(length) * max(1.0, value), exact=True)


def windows(module: Any, input_shape: Shape, output_shape: Shape) -> Iterable[Tensor]:
    """For each axis the 0-1 matrix (outputs, inputs) of the windows that a pool looks through."""
    for axis, (side, outputs) in enumerate(zip(input_shape[1:], output_shape[1:], strict=True)):
        found = torch.zeros(outputs, side, dtype=torch.float64)
        for index, window in enumerate(found):
            if hasattr(module, "output_size"):  # adaptive
                window[index * side // outputs : -(-(index + 1) * side // outputs)] = 1
                continue
            size, stride, padding = _pool_axis(module, axis)
            dilation = _along(getattr(module, "dilation", 1), axis)
            places = index * stride - padding + dilation * torch.arange(size)
            window[places[(places >= 0) & (places < side)]] = 1
        yield found


def _counts_with_padding(module: Any, axis: int, side: int, outputs: int) -> Tensor:
    size, stride, padding = _pool_axis(module, axis)
    starts = torch.arange(outputs) * stride - padding
    return ((starts + size).clamp_max(side + padding) - starts).double()


def _pool_axis(module: Any, axis: int) -> tuple[int, int, int]:
    return _along(module.kernel_size, axis), _along(module.stride, axis), _along(module.padding, axis)


def _along(value: Any, axis: int) -> int:
    if isinstance(value, int):
        return value
    return value[axis] if len(value) > 1 else value[0]
