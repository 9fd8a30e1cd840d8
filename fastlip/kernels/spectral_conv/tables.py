"""The tables of a transform of real images, kept between calls: they depend on sizes only.

:func:`prepare` makes the tables before a kernel is called. torch.compile calls it while it traces, so that no table
is made in the memory of a CUDA graph, where the next replay would overwrite it. A graph reads the tables that were
made before its capture; one that is missing is filled on the device in each replay, and not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.capture import kept
from fastlip.kernels.common.compiled import constant
from fastlip.kernels.common.fourier import (
    Size,
    angles,
    count_frequencies,
    own_frequencies,
    plane_angles,
    unique_frequencies,
)
from fastlip.kernels.spectral_conv.frequencies import half_plane

SMALL = 400  # entries of an FFT size whose transform is one matrix product: 16 x 16 with its zero padding
PLANE = 32  # the largest side of an FFT size whose images are transformed on the chip


@constant
def prepare(fft_size: Size, image: Size, dtype: torch.dtype, device: torch.device) -> None:
    """Makes the tables that the forward and the backward of a convolution need."""
    if fft_size[0] * fft_size[1] <= SMALL:
        for weighted in (False, True):
            transform(fft_size, image, weighted, dtype, device)
    elif max(fft_size) <= PLANE and dtype == torch.float32:
        for weighted in (False, True):
            planes(fft_size, weighted, device)
    else:
        positions(fft_size, device)
        weights(fft_size, dtype, device)
        sources(fft_size, device)
        for weighted in (False, True):
            factors(fft_size, weighted, dtype, device)


def positions(fft_size: Size, device: torch.device) -> Tensor:
    """Where the unique frequencies are in rfft2's list."""
    return _kept(_positions, device, fft_size)


def weights(fft_size: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(F,): what each unique frequency stands for, itself or two conjugates, divided by the area."""
    return _kept(_weights, device, fft_size, dtype)


def sources(fft_size: Size, device: torch.device) -> Tensor:
    """(h (w // 2 + 1),): the unique frequency that each entry of rfft2's list is, or is the conjugate of."""
    return _kept(_sources, device, fft_size)


def factors(fft_size: Size, weighted: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2, h (w // 2 + 1)): what real and imaginary parts at the :func:`sources` are multiplied by.

    Signs of the conjugates, and unless weighted a division by :func:`weights`.
    """
    return _kept(_factors, device, fft_size, weighted, dtype)


def transform(fft_size: Size, image: Size, weighted: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(2 F, h w): the matrix from an image at the origin to its spectrum, real parts before imaginary ones.

    Weighted, its rows are multiplied by :func:`weights`: the transpose of that is the way back. Imaginary parts at
    self-conjugate frequencies are 0. Computed in float64.
    """
    return _kept(_transform, device, fft_size, image, weighted, dtype)


def planes(fft_size: Size, weighted: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """The matrices of planes_triton.py one after the other, and where what they give is in a spectrum.

    Of rows (PLANE, PLANE), of columns and of the columns of the shared pair, both (2 PLANE, 2 PLANE): rows are what
    comes out. The places are (2 PLANE, PLANE / 2), of the results of the second product of each pair; -1: nowhere.
    Weighted, results are multiplied by :func:`weights`.
    """
    return _kept(_plane_matrices, device, fft_size, weighted), _kept(_places, device, fft_size)


def _kept(make: Callable[..., Tensor], device: torch.device, *arguments: Any) -> Tensor:
    return kept(_keep, _make, device, make, device, *arguments)


@lru_cache(maxsize=256)
def _keep(make: Callable[..., Tensor], device: torch.device, *arguments: Any) -> Tensor:
    with torch.inference_mode(False):
        return make(device, *arguments)


def _make(make: Callable[..., Tensor], device: torch.device, *arguments: Any) -> Tensor:
    return make(device, *arguments)


def _positions(device: torch.device, fft_size: Size) -> Tensor:
    y, x = unique_frequencies(fft_size, device).unbind(1)
    return y * (fft_size[1] // 2 + 1) + x


def _weights(device: torch.device, fft_size: Size, dtype: torch.dtype) -> Tensor:
    count = count_frequencies(fft_size)
    result = torch.full((count,), 2 / (fft_size[0] * fft_size[1]), dtype=torch.float64, device=device)
    result[: own_frequencies(fft_size)] /= 2
    return result.to(dtype)


def _sources(device: torch.device, fft_size: Size) -> Tensor:
    return half_plane(torch.arange(count_frequencies(fft_size), device=device), fft_size)


def _factors(device: torch.device, fft_size: Size, weighted: bool, dtype: torch.dtype) -> Tensor:
    each = _weights(device, fft_size, torch.float64)
    each = torch.ones_like(each) if weighted else 1 / each
    return torch.view_as_real(half_plane(torch.complex(each, each), fft_size).resolve_conj()).T.to(dtype).contiguous()


def _transform(device: torch.device, fft_size: Size, image: Size, weighted: bool, dtype: torch.dtype) -> Tensor:
    grid = torch.arange(image[0], device=device), torch.arange(image[1], device=device)
    found = plane_angles(unique_frequencies(fft_size, device), grid, fft_size)
    sines = -found.sin()
    sines[: own_frequencies(fft_size)] = 0
    parts = torch.stack((found.cos(), sines))
    if weighted:
        parts *= _weights(device, fft_size, torch.float64)[:, None]
    return parts.flatten(0, 1).to(dtype)


def _plane_matrices(device: torch.device, fft_size: Size, weighted: bool) -> Tensor:
    """:func:`planes`, in float64. Of rows (k_x, part) and columns (part, k_y); of the shared pair (which, k_y)."""
    height, width = fft_size
    grid = {"dtype": torch.float64, "device": device}
    vertical, horizontal = (_turns(side, device) for side in fft_size)
    rows, general, shared = (torch.zeros(shape, **grid) for shape in _PLANE_SHAPES)
    count = (width + 1) // 2  # pairs: 0 with width / 2, 1, 2, ...
    rows[: 2 * count : 2, :width] = horizontal[:count].cos()
    rows[1 : 2 * count : 2, :width] = -horizontal[:count].sin()
    if width % 2 == 0:
        rows[1, :width] = horizontal[width // 2].cos()
    cosines, sines = vertical.cos(), vertical.sin()
    blocks = general.view(2, PLANE, 2, PLANE)[:, :height, :, :height]
    blocks[0, :, 0] = blocks[1, :, 1] = cosines
    blocks[0, :, 1], blocks[1, :, 0] = sines, -sines
    real = cosines.clone()  # real parts up to k_y = height / 2, then the imaginary parts of height - k_y
    real[height // 2 + 1 :] = sines[height // 2 + 1 :]
    blocks = shared.view(2, PLANE, 2, PLANE)[:, :height, :, :height]
    blocks[0, :, 0] = blocks[1, :, 1] = real
    if weighted:
        each = torch.full((height,), 2 / (height * width), **grid)
        general.view(2, PLANE, -1)[:, :height] *= each[:, None]
        each[:: max(height // 2, 1)][: 2 - height % 2] /= 2
        shared.view(2, PLANE, -1)[:, :height] *= each[:, None]
    return torch.cat([rows.flatten(), general.flatten(), shared.flatten()]).float()


_PLANE_SHAPES = (PLANE, PLANE), (2 * PLANE, 2 * PLANE), (2 * PLANE, 2 * PLANE)


def _turns(side: int, device: torch.device) -> Tensor:
    """(side, side): 2 pi k p / side."""
    line = torch.arange(side, device=device)
    return angles(line, line, side)


def _places(device: torch.device, fft_size: Size) -> Tensor:
    (height, width), count = fft_size, count_frequencies(fft_size)
    unique = unique_frequencies(fft_size, device)
    index = torch.arange(count, dtype=torch.int32, device=device)
    whole = torch.full((PLANE, PLANE), -1, dtype=torch.int32, device=device)
    whole[unique[:, 0], unique[:, 1]] = index
    result = torch.full((2, PLANE, PLANE // 2), -1, dtype=torch.int32, device=device)
    pairs, half = (width + 1) // 2, height // 2 + 1
    result[0, :height, 1:pairs] = whole[:height, 1:pairs]
    result[1, :height, 1:pairs] = whole[:height, 1:pairs] + count
    for which, column in enumerate((0, width // 2) if width % 2 == 0 else (0,)):
        result[which, :half, 0] = whole[:half, column]
        result[which, half:height, 0] = whole[1 : (height + 1) // 2, column].flip(0) + count
    return result.flatten(0, 1)
