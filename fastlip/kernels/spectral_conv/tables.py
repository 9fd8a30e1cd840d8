"""What a transform of real images needs besides the images, kept between calls: it depends on sizes only."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from fastlip.kernels.spectral_conv.frequencies import Size, own_frequencies, unique_frequencies


@lru_cache(maxsize=32)
def positions(torus: Size, device: torch.device) -> Tensor:
    """Where the unique frequencies are in rfft2's list."""
    y, x = unique_frequencies(torus, device).unbind(1)
    return y * (torus[1] // 2 + 1) + x


@lru_cache(maxsize=32)
def weights(torus: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(F,): what each unique frequency stands for, itself or two conjugates, divided by the area."""
    result = torch.full((len(unique_frequencies(torus)),), 2 / (torus[0] * torus[1]), dtype=torch.float64)
    result[: own_frequencies(torus)] /= 2
    return result.to(device=device, dtype=dtype)


@lru_cache(maxsize=32)
def transform(torus: Size, image: Size, weighted: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2 F, h w): the matrix from an image at the torus's origin to its spectrum, real parts before imaginary ones.

    Weighted, its rows are multiplied by :func:`weights`: the transpose of that is the way back. Imaginary parts at
    self-conjugate frequencies are 0. Computed in float64, of turns that are reduced as integers.
    """
    frequencies = unique_frequencies(torus)
    turns = [
        (frequencies[:, axis, None] * torch.arange(image[axis]) % torus[axis]).double() / torus[axis]
        for axis in (0, 1)
    ]
    angles = 2 * math.pi * (turns[0][:, :, None] + turns[1][:, None, :]).flatten(1)
    sines = -angles.sin()
    sines[: own_frequencies(torus)] = 0
    parts = torch.stack((angles.cos(), sines))
    if weighted:
        parts *= weights(torus, torch.float64, torch.device("cpu"))[:, None]
    return parts.flatten(0, 1).to(device=device, dtype=dtype)
