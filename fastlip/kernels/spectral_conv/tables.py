"""What a transform of real images needs besides the images, kept between calls: it depends on sizes only.

:func:`prepare` makes the tables before a kernel is called. torch.compile calls it while it traces, so that no table
is made in the memory of a CUDA graph, where the next replay would overwrite it. A table that is needed while a graph
is captured all the same is filled on the device, and not kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.capture import is_capturing
from fastlip.kernels.spectral_conv.frequencies import (
    Size,
    count_frequencies,
    own_frequencies,
    unique_frequencies,
)

SMALL = 400  # pixels of a torus whose transform is one matrix product: 16 x 16 with its zero padding


@torch.compiler.assume_constant_result
def prepare(torus: Size, image: Size, dtype: torch.dtype, device: torch.device) -> None:
    """Makes the tables that the forward and the backward of a convolution need."""
    if torus[0] * torus[1] <= SMALL:
        for weighted in (False, True):
            transform(torus, image, weighted, dtype, device)
    else:
        positions(torus, device)
        weights(torus, dtype, device)


def positions(torus: Size, device: torch.device) -> Tensor:
    """Where the unique frequencies are in rfft2's list."""
    return _kept(_positions, device, torus)


def weights(torus: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(F,): what each unique frequency stands for, itself or two conjugates, divided by the area."""
    return _kept(_weights, device, torus, dtype)


def transform(torus: Size, image: Size, weighted: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2 F, h w): the matrix from an image at the torus's origin to its spectrum, real parts before imaginary ones.

    Weighted, its rows are multiplied by :func:`weights`: the transpose of that is the way back. Imaginary parts at
    self-conjugate frequencies are 0. Computed in float64, of turns that are reduced as integers.
    """
    return _kept(_transform, device, torus, image, weighted, dtype)


def _kept(make: Callable[..., Tensor], device: torch.device, *arguments: Any) -> Tensor:
    if is_capturing(device):
        return make(device, *arguments)
    return _keep(make, device, *arguments)


@lru_cache(maxsize=256)
def _keep(make: Callable[..., Tensor], device: torch.device, *arguments: Any) -> Tensor:
    with torch.inference_mode(False):
        return make(device, *arguments)


def _positions(device: torch.device, torus: Size) -> Tensor:
    y, x = unique_frequencies(torus, device).unbind(1)
    return y * (torus[1] // 2 + 1) + x


def _weights(device: torch.device, torus: Size, dtype: torch.dtype) -> Tensor:
    count = count_frequencies(torus)
    result = torch.full((count,), 2 / (torus[0] * torus[1]), dtype=torch.float64, device=device)
    result[: own_frequencies(torus)] /= 2
    return result.to(dtype)


def _transform(device: torch.device, torus: Size, image: Size, weighted: bool, dtype: torch.dtype) -> Tensor:
    frequencies = unique_frequencies(torus, device)
    turns = [
        (frequencies[:, axis, None] * torch.arange(image[axis], device=device) % torus[axis]).double() / torus[axis]
        for axis in (0, 1)
    ]
    angles = 2 * math.pi * (turns[0][:, :, None] + turns[1][:, None, :]).flatten(1)
    sines = -angles.sin()
    sines[: own_frequencies(torus)] = 0
    parts = torch.stack((angles.cos(), sines))
    if weighted:
        parts *= _weights(device, torus, torch.float64)[:, None]
    return parts.flatten(0, 1).to(dtype)
