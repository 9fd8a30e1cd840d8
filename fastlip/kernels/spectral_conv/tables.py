"""What a transform of real images needs besides the images, kept between calls: it depends on sizes only.

:func:`prepare` makes the tables before a kernel is called. torch.compile calls it while it traces, so that no table
is made in the memory of a CUDA graph, where the next replay would overwrite it. A table that is needed while a graph
is captured all the same is filled on the device, and not kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.capture import is_capturing
from fastlip.kernels.common.fourier import Size, count_frequencies, own_frequencies, plane_angles, unique_frequencies
from fastlip.kernels.spectral_conv.frequencies import half_plane

SMALL = 400  # entries of an FFT size whose transform is one matrix product: 16 x 16 with its zero padding


@torch.compiler.assume_constant_result
def prepare(fft_size: Size, image: Size, dtype: torch.dtype, device: torch.device) -> None:
    """Makes the tables that the forward and the backward of a convolution need."""
    if fft_size[0] * fft_size[1] <= SMALL:
        for weighted in (False, True):
            transform(fft_size, image, weighted, dtype, device)
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


def _kept(make: Callable[..., Tensor], device: torch.device, *arguments: Any) -> Tensor:
    if is_capturing(device):
        return make(device, *arguments)
    return _keep(make, device, *arguments)


@lru_cache(maxsize=256)
def _keep(make: Callable[..., Tensor], device: torch.device, *arguments: Any) -> Tensor:
    with torch.inference_mode(False):
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
    angles = plane_angles(unique_frequencies(fft_size, device), grid, fft_size)
    sines = -angles.sin()
    sines[: own_frequencies(fft_size)] = 0
    parts = torch.stack((angles.cos(), sines))
    if weighted:
        parts *= _weights(device, fft_size, torch.float64)[:, None]
    return parts.flatten(0, 1).to(dtype)
