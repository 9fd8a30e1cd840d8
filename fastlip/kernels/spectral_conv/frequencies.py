"""The matrices of a kernel at the unique frequencies of real images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastlip.kernels.common.fourier import (
    Size,
    cached_kernel_phases,
    count_frequencies,
    kernel_phases,
    own_frequencies,
    unique_frequencies,
)
from fastlip.kernels.common.gate import is_observed

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
    # The last block of the unique frequencies is in rfft2's list as it is, the one before it with its conjugates.
    own, twice = own_frequencies(size), ((size[0] + 1) // 2 - 1) * (2 - size[1] % 2)
    y, x = unique_frequencies(size, Q.device).unbind(1)
    repeated = slice(own, own + twice)
    y, x = torch.cat((y, size[0] - y[repeated])), torch.cat((x, x[repeated]))
    order = (y * (size[1] // 2 + 1) + x).argsort()
    return torch.cat((Q, Q[repeated].conj()))[order]


def kernel_spectrum(weight: Tensor, size: Size, dilation: Size = (1, 1)) -> Tensor:
    r"""Returns the matrices by which a circular convolution acts on the unique frequencies of an image.

    .. math:: \hat W_k = \sum_\tau W_\tau \exp\bigl(2\pi i\,(k_y p_y(\tau)/h + k_x p_x(\tau)/w)\bigr),
              \qquad p(\tau) = d\tau - \lfloor d (k - 1)/2 \rfloor

    This is the cross-correlation of ``torch.nn.functional.conv2d`` with "same" padding. Taps wrap where the
    kernel is larger than the image.

    Args:
        weight: (cout, cin, kh, kw), float32 or float64.
        size: (h, w) of the image, or the FFT size in which it is embedded.
        dilation: (dh, dw), distances between taps.

    Returns:
        (F, cout, cin), complex, in the order of :func:`unique_frequencies`; real at the self-conjugate ones.

    >>> Q = fastlip.ops.kernel_spectrum(torch.ones(1, 1, 1, 1), (4, 4))
    >>> Q.shape, Q.real.unique()
    (torch.Size([10, 1, 1]), tensor([1.]))
    """
    cout, cin, kh, kw = weight.shape
    make = kernel_phases if is_observed() else cached_kernel_phases
    dtype, size, dilation = COMPLEX[weight.dtype], (size[0], size[1]), (dilation[0], dilation[1])
    phases = make((kh, kw), size, dilation, weight.device, dtype)
    taps = weight.flatten(2).permute(2, 0, 1).flatten(1)
    return (phases @ taps.to(dtype)).view(len(phases), cout, cin)


def kernel_spectrum_adjoint(gradient: Tensor, kernel: tuple[int, ...], size: Size, dilation: Size) -> Tensor:
    """The gradient of a weight of the shape ``kernel`` from that of its spectrum."""
    cout, cin, kh, kw = kernel
    make = kernel_phases if is_observed() else cached_kernel_phases
    size, dilation = (size[0], size[1]), (dilation[0], dilation[1])
    phases = make((kh, kw), size, dilation, gradient.device, gradient.dtype)
    taps = (phases.mH @ gradient.flatten(1)).real.view(kh * kw, cout, cin)
    return taps.permute(1, 2, 0).contiguous().view(kernel)


def per_frequency(function: Callable[[Tensor], Tensor], V: Tensor, size: Size) -> Tensor:
    """Applies a function of matrices at each unique frequency; at self-conjugate ones to real matrices."""
    own = own_frequencies(size)
    return torch.cat((function(V[:own].real).to(V.dtype), function(V[own:])))
