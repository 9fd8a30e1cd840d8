"""Discrete Fourier transforms: the phases, and the unique frequencies of real images.

One of each pair of conjugate frequencies (k_y, k_x) and (-k_y, -k_x) is unique. The self-conjugate ones, at which
the matrices of real kernels are real, come first. Volumes have three frequencies (k_z, k_y, k_x), and so on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

Size = tuple[int, ...]  # (height, width), or of volumes (depth, height, width)


def own_frequencies(size: Size) -> int:
    """Returns g, the number of self-conjugate frequencies, at which the matrices of real kernels are real.

    Args:
        size: (h, w), the FFT size; of volumes (d, h, w).

    >>> fastlip.ops.own_frequencies((8, 8)), fastlip.ops.own_frequencies((8, 7)), fastlip.ops.own_frequencies((7, 7))
    (4, 2, 1)
    """
    count = 1
    for side in size:
        count *= 2 - side % 2
    return count


def count_frequencies(size: Size) -> int:
    """F, the number of unique frequencies."""
    return (math.prod(size) + own_frequencies(size)) // 2


def unique_frequencies(size: Size, device: torch.device | None = None) -> Tensor:
    """(F, axes): one (k_y, k_x) of each conjugate pair, F = (h w + g) / 2; the g self-conjugate ones come first."""
    ends, halves, everything = [], [], []
    for length in size:
        line = torch.arange(length, device=device)
        ends.append(line[:: max(length // 2, 1)][: 2 - length % 2])  # 0 and, of an even length, its half
        halves.append(line[1 : (length + 1) // 2])
        everything.append(line)
    blocks = [ends]
    for axis in range(len(size)):  # the last one whose frequency is not its own conjugate
        blocks.append([*everything[:axis], halves[axis], *ends[axis + 1 :]])
    return torch.cat([torch.cartesian_prod(*block) for block in blocks])


def angles(frequencies: Tensor, positions: Tensor, length: int) -> Tensor:
    """(F, P): 2 pi k p / length in float64 for integer frequencies k (F,) and positions p (P,).

    k p is reduced modulo the length as an integer, so that no phase loses digits.
    """
    turns = frequencies[:, None] * positions % length
    return 2 * math.pi * (turns.double() / length)


def plane_angles(frequencies: Tensor, positions: Sequence[Tensor], size: Size) -> Tensor:
    """(F, Py Px): the sum of the :func:`angles` of all axes for frequencies (F, axes) and a grid of positions."""
    along = [angles(frequencies[:, axis], positions[axis], length) for axis, length in enumerate(size)]
    total = along[0]
    for more in along[1:]:
        total = (total[:, :, None] + more[:, None, :]).flatten(1)
    return total


def kernel_phases(kernel: Size, size: Size, dilation: Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(F, taps): exp(i angle) at the unique frequencies for the taps of a kernel; computed in float64.

    Taps lie at d tau - floor(d (k - 1) / 2). The phases of self-conjugate frequencies are real.
    """
    frequencies = unique_frequencies(size, device)
    positions = [d * torch.arange(k, device=device) - d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    found = plane_angles(frequencies, positions, size)
    sines = found.sin()
    sines[: own_frequencies(size)] = 0
    return torch.complex(found.cos(), sines).to(dtype)


@lru_cache(maxsize=32)
def cached_kernel_phases(
    kernel: Size, size: Size, dilation: Size, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """:func:`kernel_phases`, kept between calls; not for use where something follows torch's operations."""
    with torch.inference_mode(False):  # autograd saves the table, also if inference needed it first
        return kernel_phases(kernel, size, dilation, device, dtype)
