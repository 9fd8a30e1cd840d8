"""spectral_cayley by cayley's kernels in C++ (csrc/cayley), on the CPU: single and double precision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.cayley.native import cayley_backward, cayley_forward
from fastlip.kernels.common import binding
from fastlip.kernels.common.binding import CPU
from fastlip.kernels.common.fourier import Size, cached_kernel_phases
from fastlip.kernels.spectral_conv.frequencies import COMPLEX, kernel_spectrum_adjoint

binding.require()

KERNELS = "cayley_"
_NAMES = {torch.float32: "cayley_forward_complex64", torch.float64: "cayley_forward_complex128"}


def supports(weight: Tensor, *_: Any) -> str:
    """Empty, or why these kernels cannot run."""
    name = _NAMES.get(weight.dtype)
    if name is None:
        return f"no kernel for dtype {weight.dtype}"
    if not weight.is_cpu:
        return "on other devices than the CPU, cayley's kernels transform the spectrum"
    return "" if name in CPU else binding.missing(name, weight.device)


def spectral_cayley_forward(weight: Tensor, fft_size: Size, dilation: Size, groups: int) -> tuple[Tensor, Tensor]:
    """The transforms at each frequency, and B of tall and wide matrices."""
    Q, B = cayley_forward(_spectrum(weight, fft_size, dilation, groups))
    return Q.view(len(Q), *weight.shape[:2]), B


def spectral_cayley_backward(
    gradient: Tensor,
    weight: Tensor,
    Q: Tensor | None,
    B: Tensor | None,
    fft_size: Size,
    dilation: Size,
    groups: int,
) -> Tensor:
    """The gradient of the weight; matrices that are not square are computed again."""
    gradient = gradient.unflatten(1, (groups, -1))
    if Q is None:
        of_spectrum = cayley_backward(gradient, None, _spectrum(weight, fft_size, dilation, groups), B)
    else:
        of_spectrum = cayley_backward(gradient, Q.unflatten(1, (groups, -1)), None, None)
    return kernel_spectrum_adjoint(of_spectrum.flatten(1, 2), weight.shape, fft_size, dilation)


def _spectrum(weight: Tensor, fft_size: Size, dilation: Size, groups: int) -> Tensor:
    """(F, groups, cout / groups, cin / groups): ``kernel_spectrum``, which nothing can follow here."""
    cout, cin, kh, kw = weight.shape
    dtype, size, step = COMPLEX[weight.dtype], (fft_size[0], fft_size[1]), (dilation[0], dilation[1])
    phases = cached_kernel_phases((kh, kw), size, step, weight.device, dtype)
    taps = weight.permute(2, 3, 0, 1).reshape(kh * kw, -1).to(dtype)
    return (phases @ taps).view(len(phases), groups, cout // groups, cin)
