"""Convolutions through their spectrum: where that is cheaper, and the spectra that evaluation keeps."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastlip import ops
from fastlip.kernels.common import winograd
from fastlip.kernels.common.gate import is_observed, refusal
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.spectral_conv import costs
from fastlip.kernels.spectral_conv.api import OP, FixedSpectrum, fix_spectrum, kernel_spectrum, spectral_conv_fixed
from fastlip.nn._cache import may_cache

if TYPE_CHECKING:
    from fastlip.nn.base import LipschitzLayer

_is_compiling = torch.compiler.is_compiling
Size = tuple[int, ...]

_DTYPES = (torch.float32, torch.float64)
_LARGEST_SPECTRUM = 32 << 20  # bytes


def fft_size_for(layer: LipschitzLayer, geometry: ConvGeometry, channels: Size, x: Tensor) -> Size | None:
    """FFT size to use for x, for a kernel of (inputs, outputs) channels; None if ``conv2d`` is cheaper.

    Only on a CPU, whose times :func:`is_cheaper` knows, where the kernel moves on by one pixel and x has its dtype.
    In evaluation also only where nothing is differentiated, so that the spectrum is kept. Training computes the
    spectrum in each step.
    """
    if not geometry.has_spectrum or x.dim() != 4 or _is_compiling() or not x.is_cpu or layer.backend == "triton":
        return None
    # Sizes decide first, as their answers are kept; in a trace they are no numbers.
    batch, image = x.shape[0], (x.shape[-2], x.shape[-1])
    if not type(batch) is type(image[0]) is type(image[1]) is int:
        return None
    fft_size = _fast_fft_size(geometry, image)
    training, sizes = layer.training, (batch, channels, image, fft_size, geometry.taps, x.element_size())
    if not is_cheaper(*sizes, training):
        return None
    tile = winograd.TRAINING if training else winograd.EVALUATION
    if winograd.fits(x, geometry) and not is_cheaper(*sizes, training, tile):
        return None
    fits = not is_observed() and _kernels_run(layer, x) if training else is_kept(layer, x)
    return fft_size if fits else None


@cache
def _fast_fft_size(geometry: ConvGeometry, image: Size) -> Size:
    return geometry.fast_fft_size(image)


def trains_by_kernels(layer: LipschitzLayer, x: Tensor) -> bool:
    """Whether the kernels in C++ apply matrices per frequency to x in training, without an operator around them."""
    if not layer.training or not x.is_cpu or _is_compiling() or is_observed():
        return False
    return layer.backend != "triton" and _kernels_run(layer, x)


def is_kept(layer: LipschitzLayer, x: Tensor) -> bool:
    """Whether kernels may apply a kept spectrum to the images x: nothing is differentiated. One group is assumed."""
    if (torch.is_grad_enabled() and x.requires_grad) or not may_cache(layer):
        return False
    return _kernels_run(layer, x)


def kernels_for(layer: Any, tensor: Tensor) -> str:
    """The backend whose kernels read kept matrices on this tensor's device: C++ on a CPU, Triton elsewhere."""
    return "native" if tensor.is_cpu and layer.backend != "triton" else "triton"


def _kernels_run(layer: LipschitzLayer, x: Tensor) -> bool:
    """Whether kernels of ``spectral_conv`` can apply kept matrices to the images x with this layer's parameters."""
    backend = kernels_for(layer, x)
    if layer.backend not in ("auto", backend) or x.dim() != 4:
        return False
    reference = layer._reference()
    if x.dtype != reference.dtype or x.dtype not in _DTYPES or reference.device != x.device:
        return False
    if torch.is_autocast_enabled(x.device.type):
        return False
    if OP.status(backend) or refusal((x, *layer.parameters(), *layer.buffers())):
        return False
    return backend == "native" or not OP.modules[backend].supports_fixed(x)


def is_small(channels: Size, fft_size: Size, itemsize: int, convolutions: int = 1) -> bool:
    """Whether a spectrum takes up at most 32 MiB for each convolution that it stands for."""
    return fft_size[0] * fft_size[1] * channels[0] * channels[1] * itemsize <= convolutions * _LARGEST_SPECTRUM


@lru_cache(maxsize=1024)
def is_cheaper(
    batch: int,
    channels: Size,
    image: Size,
    fft_size: Size,
    taps: int,
    itemsize: int,
    training: bool = False,
    tile: winograd.Tile | None = None,
) -> bool:
    """Whether the spectrum is small and saves multiply-adds, by the count of ``spectral_conv.costs``."""
    if 0 in image or not is_small(channels, fft_size, itemsize):
        return False
    spectral = costs.spectral_convolution(batch, channels, fft_size, training)
    return spectral < costs.convolution(batch, channels, image, taps, tile)


def spectra_of(
    kernel: Tensor, fft_size: Size, dilation: Size, scale: Tensor | None = None
) -> tuple[FixedSpectrum, ...]:
    """The kernel's spectrum on a CPU, and with a scale that of W^T diag(scale); rounded once, from float64."""
    dtype = torch.complex64 if kernel.dtype == torch.float32 else torch.complex128
    Q = kernel_spectrum(kernel.double(), fft_size, dilation)
    matrices = [Q] if scale is None else [Q, (scale.double()[:, None] * Q).mH]
    return tuple(fix_spectrum(matrix.to(dtype), fft_size, "native") for matrix in matrices)


def fix(layer: Any, Q: Tensor, fft_size: Size) -> FixedSpectrum:
    """A layer's Q, (F, cout, cin), as its kernels read it."""
    return fix_spectrum(Q, fft_size, kernels_for(layer, Q))


def apply(
    x: Tensor, spectrum: FixedSpectrum, bias: Tensor | None, pairing: str = "none", residual: Tensor | None = None
) -> Tensor:
    """maxmin(Q * x + bias), or maxmin(residual - Q * x), in channels-last; without pairing in the format of x."""
    activation = "maxmin" if pairing == "adjacent" else "none"
    memory_format = None if pairing == "none" else torch.channels_last
    y = spectral_conv_fixed(x, spectrum, bias, residual, activation, memory_format)
    return ops.maxmin(y, pairing, 1) if pairing == "halves" else y
