"""The matrices of a kernel at the unique frequencies of real images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fastlip.kernels.common.capture import kept
from fastlip.kernels.common.fourier import (
    Size,
    cached_kernel_phases,
    count_frequencies,
    kernel_phases,
    own_frequencies,
    unique_frequencies,
)
from fastlip.kernels.common.gate import is_observed, is_only_captured
from fastlip.kernels.common.one_step import in_full_precision

__all__ = [
    "COMPLEX",
    "Size",
    "count_frequencies",
    "half_plane",
    "kernel_spectrum",
    "kernel_spectrum_adjoint",
    "own_frequencies",
    "per_frequency",
    "unique_frequencies",
]

COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def half_plane(Q: Tensor, size: Size) -> Tensor:
    """Extends (F, ...) at the unique frequencies by conjugate symmetry to the h (w // 2 + 1) frequencies of rfft2."""
    # The last block of the unique frequencies is in rfft2's list as it is, what is before it with its conjugates.
    own, last = own_frequencies(size), math.prod(size[:-1]) * ((size[-1] + 1) // 2 - 1)
    repeated = slice(own, len(Q) - last)
    lengths, strides = [*size[:-1], size[-1] // 2 + 1], [1]
    for length in lengths[:0:-1]:
        strides.insert(0, strides[0] * length)
    axes = zip(unique_frequencies(size, Q.device).unbind(1), size, strides, strict=True)
    places = [torch.cat((k, -k[repeated] % length)) * stride for k, length, stride in axes]
    return torch.cat((Q, Q[repeated].conj()))[torch.stack(places).sum(0).argsort()]


def kernel_spectrum(weight: Tensor, size: Size, dilation: Size | None = None) -> Tensor:
    r"""Returns the matrices by which a circular convolution acts on the unique frequencies of an image.

    .. math:: \hat W_k = \sum_\tau W_\tau \exp\bigl(2\pi i\,(k_y p_y(\tau)/h + k_x p_x(\tau)/w)\bigr),
              \qquad p(\tau) = d\tau - \lfloor d (k - 1)/2 \rfloor

    This is the cross-correlation of ``torch.nn.functional.conv2d`` with "same" padding. Taps wrap where the
    kernel is larger than the image.

    Args:
        weight: (cout, cin, kh, kw), float32 or float64; of volumes (cout, cin, kd, kh, kw).
        size: (h, w) of the image, or the FFT size in which it is embedded; of volumes (d, h, w).
        dilation: (dh, dw), distances between taps; default None: 1 along each axis.

    Returns:
        (F, cout, cin), complex, in the order of :func:`unique_frequencies`; real at the self-conjugate ones.

    >>> Q = fastlip.ops.kernel_spectrum(torch.ones(1, 1, 1, 1), (4, 4))
    >>> Q.shape, Q.real.unique()
    (torch.Size([10, 1, 1]), tensor([1.]))
    """
    cout, cin, *kernel = weight.shape
    dtype, dilation = COMPLEX[weight.dtype], tuple(dilation or (1,) * len(kernel))
    arguments = tuple(kernel), tuple(size), dilation, weight.device, dtype
    taps = weight.flatten(2).permute(2, 0, 1).flatten(1).to(dtype)
    if weight.is_cpu and not is_observed():  # where no setting lowers complex products
        spectrum = cached_kernel_phases(*arguments) @ taps
    else:
        spectrum = in_full_precision(torch.matmul, _phases(*arguments), taps)
    return spectrum.view(len(spectrum), cout, cin)


def kernel_spectrum_adjoint(gradient: Tensor, kernel: tuple[int, ...], size: Size, dilation: Size) -> Tensor:
    """The gradient of a weight of the shape ``kernel`` from that of its spectrum."""
    cout, cin, *taps_along = kernel
    phases = _phases(tuple(taps_along), tuple(size), tuple(dilation), gradient.device, gradient.dtype)
    taps = in_full_precision(torch.matmul, phases.mH, gradient.flatten(1)).real
    taps = taps.view(math.prod(taps_along), cout, cin)
    return taps.permute(1, 2, 0).contiguous().view(kernel)


def _phases(kernel: Size, size: Size, dilation: Size, device: torch.device, dtype: torch.dtype) -> Tensor:
    if is_observed() and not is_only_captured():
        return kernel_phases(kernel, size, dilation, device, dtype)
    return kept(cached_kernel_phases, kernel_phases, device, kernel, size, dilation, device, dtype)


def per_frequency(function: Callable[[Tensor], Tensor], V: Tensor, size: Size) -> Tensor:
    """Applies a function of matrices at each unique frequency; at self-conjugate ones to real matrices."""
    own = own_frequencies(size)
    return torch.cat((function(V[:own].real).to(V.dtype), function(V[own:])))
