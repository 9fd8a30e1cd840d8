"""Tables for transforms of real images, cached by size."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fastlip.kernels.common.fourier import Size, count_frequencies, own_frequencies, plane_angles, unique_frequencies


@lru_cache(maxsize=32)
def positions(fft_size: Size, device: torch.device) -> Tensor:
    """The positions of the unique frequencies in rfft2's list."""
    y, x = unique_frequencies(fft_size, device).unbind(1)
    return y * (fft_size[1] // 2 + 1) + x


@lru_cache(maxsize=32)
def weights(fft_size: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(F,): the number of frequencies for which each unique one stands, 1 or 2, divided by the area."""
    result = torch.full((count_frequencies(fft_size),), 2 / (fft_size[0] * fft_size[1]), dtype=torch.float64)
    result[: own_frequencies(fft_size)] /= 2
    return result.to(device=device, dtype=dtype)


@lru_cache(maxsize=32)
def transform(fft_size: Size, image: Size, weighted: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2 F, h w): the matrix from an image at the origin to its spectrum, real parts before imaginary ones.

    Weighted, its rows are multiplied by :func:`weights`: the transpose of that is the way back. Imaginary parts at
    self-conjugate frequencies are 0. Computed in float64.
    """
    positions = torch.arange(image[0]), torch.arange(image[1])
    angles = plane_angles(unique_frequencies(fft_size), positions, fft_size)
    sines = -angles.sin()
    sines[: own_frequencies(fft_size)] = 0
    parts = torch.stack((angles.cos(), sines))
    if weighted:
        parts *= weights(fft_size, torch.float64, torch.device("cpu"))[:, None]
    return parts.flatten(0, 1).to(device=device, dtype=dtype)
