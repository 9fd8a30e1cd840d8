"""The frequencies of real images: which are unique, and a kernel's matrices there."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.gate import is_observed

Size = tuple[int, int]

COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def _count(size: Size) -> tuple[int, int]:
    """How many unique frequencies are self-conjugate, and how many others rfft2 lists with their conjugate."""
    height, width = size
    ends = 2 - width % 2
    return (2 - height % 2) * ends, ((height + 1) // 2 - 1) * ends


def own_frequencies(size: Size) -> int:
    """g, how many unique frequencies are self-conjugate: the matrices of real kernels are real there."""
    return _count(size)[0]


def count_frequencies(size: Size) -> int:
    """F, how many unique frequencies there are."""
    return (size[0] * size[1] + own_frequencies(size)) // 2


def unique_frequencies(size: Size, device: torch.device | None = None) -> Tensor:
    """(F, 2): one (k_y, k_x) of each conjugate pair, F = (h w + g) / 2; the g self-conjugate ones come first."""
    ends, halves, everything = [], [], []
    for length in size:
        line = torch.arange(length, device=device)
        ends.append(line[:: max(length // 2, 1)][: 2 - length % 2])  # 0 and, of an even length, its half
        halves.append(line[1 : (length + 1) // 2])
        everything.append(line)
    blocks = ((ends[0], ends[1]), (halves[0], ends[1]), (everything[0], halves[1]))
    return torch.cat([torch.cartesian_prod(*block) for block in blocks])


def half_plane(Q: Tensor, size: Size) -> Tensor:
    """(F, ...) at the unique frequencies, repeated by conjugate symmetry for rfft2's h (w // 2 + 1)."""
    own, twice = _count(size)
    y, x = unique_frequencies(size, Q.device).unbind(1)
    repeated = slice(own, own + twice)
    y, x = torch.cat((y, size[0] - y[repeated])), torch.cat((x, x[repeated]))
    order = (y * (size[1] // 2 + 1) + x).argsort()
    return torch.cat((Q, Q[repeated].conj()))[order]


def kernel_spectrum(weight: Tensor, size: Size, dilation: Size = (1, 1)) -> Tensor:
    r"""The matrices by which a circular convolution acts on the unique frequencies of an image.

    .. math:: \hat W_k = \sum_\tau W_\tau \exp\bigl(2\pi i\,(k_y p_y(\tau)/h + k_x p_x(\tau)/w)\bigr),
              \qquad p(\tau) = d\tau - \lfloor d (k - 1)/2 \rfloor

    This is the cross-correlation of ``torch.nn.functional.conv2d`` with "same" padding. Taps wrap where the
    kernel is larger than the image.

    Args:
        weight: (cout, cin, kh, kw), float32 or float64.
        size: (h, w) of the image.
        dilation: (dh, dw).

    Returns:
        (F, cout, cin), complex, in the order of :func:`unique_frequencies`; real at the self-conjugate ones.
    """
    cout, cin, *kernel = weight.shape
    taps = weight.flatten(2).permute(2, 0, 1).flatten(1)
    phases = _phases((kernel[0], kernel[1]), size, dilation, weight.device, COMPLEX[weight.dtype])
    return (phases @ taps.to(phases.dtype)).unflatten(1, (cout, cin))


def kernel_spectrum_adjoint(gradient: Tensor, kernel: tuple[int, ...], size: Size, dilation: Size) -> Tensor:
    """The gradient of a weight of the shape ``kernel`` from that of its spectrum."""
    cout, cin, *taps = kernel
    phases = _phases((taps[0], taps[1]), size, dilation, gradient.device, gradient.dtype)
    return (phases.mH @ gradient.flatten(1)).real.unflatten(1, (cout, cin)).permute(1, 2, 0).contiguous().view(kernel)


def _phases(kernel: Size, size: Size, dilation: Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(F, kh kw) phases, kept between calls unless they belong to a trace, a transform, or a CUDA graph."""
    arguments = kernel, (size[0], size[1]), (dilation[0], dilation[1]), device, dtype
    if torch.compiler.is_compiling() or is_observed():
        return _make_phases(*arguments)
    return _keep_phases(*arguments)


@lru_cache(maxsize=32)
def _keep_phases(*arguments: Any) -> Tensor:
    with torch.inference_mode(False):  # autograd saves the table, also if inference needed it first
        return _make_phases(*arguments)


def _make_phases(kernel: Size, size: Size, dilation: Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Computed in float64, of turns that are reduced as integers, so that no phase loses digits."""
    frequencies = unique_frequencies(size, device)
    turns = []
    for axis, k in enumerate(kernel):
        length, d = size[axis], dilation[axis]
        position = d * torch.arange(k, device=device) - d * (k - 1) // 2
        turns.append((frequencies[:, axis, None] * position % length).double() / length)
    angles = 2 * math.pi * (turns[0][:, :, None] + turns[1][:, None, :]).flatten(1)
    sines = angles.sin()
    sines[: own_frequencies(size)] = 0
    return torch.complex(angles.cos(), sines).to(dtype)


def per_frequency(function: Callable[[Tensor], Tensor], V: Tensor, size: Size) -> Tensor:
    """function at each unique frequency, at self-conjugate ones of real matrices: the result is real there."""
    own = own_frequencies(size)
    return torch.cat((function(V[:own].real).to(V.dtype), function(V[own:])))
