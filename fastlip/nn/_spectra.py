"""Fixed convolutions through their spectrum: where evaluation does that, and the spectra that it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastlip import ops
from fastlip.ops._padding import same_pads
from fastlip.ops.spectral_conv import OP, FixedSpectrum, fix_spectrum, kernel_spectrum, spectral_conv_fixed

if TYPE_CHECKING:
    from fastlip.nn._conv import LipschitzConv2d

Size = tuple[int, int]

_DTYPES = (torch.float32, torch.float64)
# What else a convolution through its spectrum costs, in multiply-adds: the transforms, for each pixel of the torus in
# each channel, and reading a number of the spectrum. Fitted to (c, side) = (32, 32), (64, 16), (128, 8), (256, 4) at
# batch 64, on the image's torus and on the next larger one, on two cores with AVX-512.
_TRANSFORM = 130
_READ = 30
_LARGEST_SPECTRUM = 32 << 20  # bytes
_LARGEST_FACTOR = 17  # of a side of the torus: transforms of larger primes are slow


def torus_for(layer: LipschitzConv2d, x: Tensor, channels: Size) -> Size | None:
    """The torus on which evaluation applies the layer's kernel of (inputs, outputs) channels to x, or None: conv2d.

    Only where nothing is differentiated, the kernel is fixed and moves on by one pixel, x has its dtype, and
    :func:`is_cheaper`. The torus is the image's with circular padding; zero padding needs only as many zeros behind
    the image as the kernel reads before or after it.
    """
    simple = layer.groups == 1 and layer.stride == (1, 1) and layer.backend in ("auto", "native")
    if not simple or layer.kernel_size == (1, 1) or x.dim() != 4 or x.device.type != "cpu" or not layer.may_cache():
        return None
    reference = next(layer.parameters())
    if x.dtype != reference.dtype or x.dtype not in _DTYPES or reference.device != x.device:
        return None
    if (torch.is_grad_enabled() and x.requires_grad) or torch.is_autocast_enabled("cpu"):
        return None
    if layer.pads != same_pads(layer.kernel_size, layer.dilation) or OP.status("native"):
        return None
    image = x.shape[-2], x.shape[-1]
    torus = image
    if layer.padding_mode == "zeros":
        left, right, top, bottom = layer.pads
        torus = _enlarged(image[0], max(top, bottom)), _enlarged(image[1], max(left, right))
    taps = layer.kernel_size[0] * layer.kernel_size[1]
    return torus if is_cheaper(x.shape[0], channels, image, torus, taps, x.element_size()) else None


def is_cheaper(batch: int, channels: Size, image: Size, torus: Size, taps: int, itemsize: int) -> bool:
    """Whether the spectrum fits its limit of 32 MiB and saves time, by a count of multiply-adds.

    Per image, a kernel of k taps takes k h w cin cout. Its spectrum on a torus of N pixels, g of its frequencies
    their own conjugates, takes (2 N - g) cin cout, and the transforms as much as 130 N (cin + cout); the N cin cout
    numbers of the spectrum are read once for the whole batch.
    """
    inputs, outputs = channels
    area, pixels = torus[0] * torus[1], image[0] * image[1]
    own = (2 - torus[0] % 2) * (2 - torus[1] % 2)
    entries = area * inputs * outputs
    if pixels == 0 or entries * itemsize > _LARGEST_SPECTRUM:
        return False
    products = batch * (2 * area - own) * inputs * outputs
    transforms = batch * area * (inputs + outputs) * _TRANSFORM
    return products + transforms + _READ * entries < batch * pixels * taps * inputs * outputs


def spectra_of(kernel: Tensor, torus: Size, dilation: Size, scale: Tensor | None = None) -> tuple[FixedSpectrum, ...]:
    """The kernel's spectrum, and with a scale that of W^T diag(scale) as well; rounded once, from float64."""
    dtype = torch.complex64 if kernel.dtype == torch.float32 else torch.complex128
    Q = kernel_spectrum(kernel.double(), torus, dilation)
    matrices = [Q] if scale is None else [Q, (scale.double()[:, None] * Q).mH]
    lanes = OP.modules["native"].lanes(kernel.dtype)
    return tuple(fix_spectrum(matrix.to(dtype), torus, lanes) for matrix in matrices)


def _enlarged(side: int, reach: int) -> int:
    length = side + reach
    while _largest_factor(length) > _LARGEST_FACTOR:
        length += 1
    return length


def _largest_factor(number: int) -> int:
    factor = 2
    while factor * factor <= number:
        if number % factor:
            factor += 1
        else:
            number //= factor
    return number


def apply(
    x: Tensor, spectrum: FixedSpectrum, bias: Tensor | None, pairing: str = "none", residual: Tensor | None = None
) -> Tensor:
    """maxmin(Q * x + bias), or maxmin(residual - Q * x)."""
    activation = "maxmin" if pairing == "adjacent" else "none"
    y = spectral_conv_fixed(x, spectrum, bias, residual, activation)
    return ops.maxmin(y, pairing, 1) if pairing == "halves" else y
