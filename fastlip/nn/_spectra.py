"""Fixed convolutions through their spectrum: where evaluation does that, and the spectra that it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastlip import ops
from fastlip.kernels.common.gate import refusal
from fastlip.kernels.common.padding import same_pads
from fastlip.kernels.spectral_conv import costs
from fastlip.kernels.spectral_conv.api import OP, FixedSpectrum, fix_spectrum, kernel_spectrum, spectral_conv_fixed

if TYPE_CHECKING:
    from fastlip.nn._conv import LipschitzConv2d

Size = tuple[int, int]

_DTYPES = (torch.float32, torch.float64)
_LARGEST_SPECTRUM = 32 << 20  # bytes


def torus_for(layer: LipschitzConv2d, x: Tensor, channels: Size) -> Size | None:
    """The torus on which evaluation applies the layer's kernel of (inputs, outputs) channels to x, or None: conv2d.

    Only where nothing is differentiated, the kernel is fixed and moves on by one pixel, x has its dtype, and
    :func:`is_cheaper`.
    """
    if layer.stride != (1, 1) or layer.kernel_size == (1, 1) or not is_fixed(layer, x):
        return None
    if layer.pads != same_pads(layer.kernel_size, layer.dilation):
        return None
    image = x.shape[-2], x.shape[-1]
    torus = costs.torus_of(image, layer.pads, layer.padding_mode)
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    return torus if is_cheaper(x.shape[0], channels, image, torus, taps, x.element_size()) else None


def is_fixed(layer: LipschitzConv2d, x: Tensor) -> bool:
    """Whether kernels may apply a spectrum that is kept to the images x: nothing is differentiated, one group."""
    if layer.groups != 1 or layer.backend not in ("auto", "native"):
        return False
    if x.dim() != 4 or x.device.type != "cpu" or not layer.may_cache():
        return False
    reference = layer.reference()
    if x.dtype != reference.dtype or x.dtype not in _DTYPES or reference.device != x.device:
        return False
    if (torch.is_grad_enabled() and x.requires_grad) or torch.is_autocast_enabled("cpu"):
        return False
    return not (OP.status("native") or refusal((x, *layer.parameters(), *layer.buffers())))


def is_small(channels: Size, torus: Size, itemsize: int, convolutions: int = 1) -> bool:
    """Whether a spectrum takes up at most 32 MiB for each convolution that it stands for."""
    return torus[0] * torus[1] * channels[0] * channels[1] * itemsize <= convolutions * _LARGEST_SPECTRUM


def is_cheaper(batch: int, channels: Size, image: Size, torus: Size, taps: int, itemsize: int) -> bool:
    """Whether the spectrum is small and saves multiply-adds, by the count of ``spectral_conv.costs``."""
    if 0 in image or not is_small(channels, torus, itemsize):
        return False
    return costs.spectral_convolution(batch, channels, torus) < costs.convolution(batch, channels, image, taps)


def spectra_of(kernel: Tensor, torus: Size, dilation: Size, scale: Tensor | None = None) -> tuple[FixedSpectrum, ...]:
    """The kernel's spectrum, and with a scale that of W^T diag(scale) as well; rounded once, from float64."""
    dtype = torch.complex64 if kernel.dtype == torch.float32 else torch.complex128
    Q = kernel_spectrum(kernel.double(), torus, dilation)
    matrices = [Q] if scale is None else [Q, (scale.double()[:, None] * Q).mH]
    return tuple(fix(matrix.to(dtype), torus) for matrix in matrices)


def fix(Q: Tensor, torus: Size) -> FixedSpectrum:
    """Q, (F, cout, cin), as the kernels of this machine read it."""
    return fix_spectrum(Q, torus, OP.modules["native"].lanes(Q.real.dtype))


def apply(
    x: Tensor, spectrum: FixedSpectrum, bias: Tensor | None, pairing: str = "none", residual: Tensor | None = None
) -> Tensor:
    """maxmin(Q * x + bias), or maxmin(residual - Q * x), in channels-last; without pairing in the format of x."""
    activation = "maxmin" if pairing == "adjacent" else "none"
    memory_format = None if pairing == "none" else torch.channels_last
    y = spectral_conv_fixed(x, spectrum, bias, residual, activation, memory_format)
    return ops.maxmin(y, pairing, 1) if pairing == "halves" else y
