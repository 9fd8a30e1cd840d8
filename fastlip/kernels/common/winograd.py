"""Convolutions of 3 x 3 kernels by Winograd's F(4, 3) in C++ (csrc/winograd), in training.

Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks*, CVPR 2016. A 4 x 4 tile of results takes 36
products where the sums of taps take 144. Its rounding errors are two to three times those of these sums: no output
in evaluation comes from it, as certificates bound the errors of other sums.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.common.binding import CPU
from fastlip.kernels.common.geometry import ConvGeometry

KERNEL = "winograd_float32"
_TILE = 4
_TAPS = 9
# Multiply-adds of a tile and a pair of channels; for the transforms of a tile, per channel; for those of a kernel,
# per pair of channels. The last two are fitted to 16 to 512 channels on images of 32 to 4 pixels, on one core with
# AVX-512.
_PRODUCTS = 36
_TRANSFORM = 700
_KERNEL = 3100
_NO_POINTER = 0


def takes(image: Tensor, geometry: ConvGeometry, size: tuple[int, int], inputs: int, outputs: int) -> bool:
    """Whether the kernel can run for channels-last images, and takes fewer operations than the sums of taps.

    Args:
        image: what is convolved, with the halo of a circular convolution.
        geometry: of stride 1, with padding that keeps the image's size.
        size: height and width of the result.
        inputs: channels of the image.
        outputs: channels of the result.
    """
    batch, (height, width) = image.shape[0], size
    if not type(batch) is type(height) is type(width) is int:  # in a trace they are no numbers
        return False
    return fits(image, geometry) and _is_cheaper(batch, height, width, inputs, outputs)


def fits(image: Tensor, geometry: ConvGeometry) -> bool:
    """Whether the kernel can run for these images at all."""
    if not image.is_cpu or image.dtype != torch.float32:
        return False
    if geometry.kernel_size != (3, 3) or geometry.dilation != (1, 1):
        return False
    return KERNEL in CPU or not binding.missing(KERNEL, image.device)


def operations(batch: int, height: int, width: int, inputs: int, outputs: int) -> int:
    """Multiply-adds that take as long: the same for a layer, its adjoint and the gradient of its kernel."""
    tiles, pairs = batch * -(-height // _TILE) * -(-width // _TILE), inputs * outputs
    return _PRODUCTS * tiles * pairs + _TRANSFORM * tiles * (inputs + outputs) + _KERNEL * pairs


@lru_cache(maxsize=1024)
def _is_cheaper(batch: int, height: int, width: int, inputs: int, outputs: int) -> bool:
    taps = _TAPS * batch * height * width * inputs * outputs
    return operations(batch, height, width, inputs, outputs) < taps


def convolve(
    image: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    size: tuple[int, int],
    bias: Tensor | None = None,
    added: Tensor | None = None,
    factor: float = 1.0,
) -> Tensor:
    """W * image + bias + factor added.

    Args:
        image: (n, cin, h, w), channels-last, with its halo.
        weight: (cout, cin, 3, 3).
        geometry: see :func:`takes`.
        size: height and width of the result.
        bias: (cout,), or None.
        added: (n, cout, h, w), channels-last, or None.
        factor: see above.
    """
    y = _empty(image, weight.shape[0], size)
    _run(image, geometry, y=y, weight=weight, bias=bias, added=added, factor=factor)
    return y


def kernel_gradient(image: Tensor, gradient: Tensor, geometry: ConvGeometry) -> Tensor:
    """The gradient (cout, cin, 3, 3) of a kernel, from the image with its halo and the result's gradient."""
    sums = image.new_empty((gradient.shape[1], image.shape[1], 3, 3))
    _run(image, geometry, other=gradient, sums=sums)
    return sums


def convolve_and_differentiate(
    image: Tensor, other: Tensor | None, weight: Tensor, geometry: ConvGeometry, size: tuple[int, int]
) -> tuple[Tensor, Tensor | None]:
    """W * image, and :func:`kernel_gradient` with ``other`` as the gradient, of the same transformed patches."""
    y = _empty(image, weight.shape[0], size)
    sums = None if other is None else torch.empty_like(weight, memory_format=torch.contiguous_format)
    _run(image, geometry, y=y, weight=weight, other=other, sums=sums)
    return y, sums


def gradients(
    x: Tensor,
    gradient: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    needs_x: bool,
    needs_weight: bool,
    added: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of a layer's input and kernel from that of its result, with the halo of the adjoint.

    Both take the same transformed patches of the result's gradient. That of the input has ``added`` added to it.
    """
    if not (needs_x or needs_weight):
        return None, None
    x_gradient = _empty(gradient, weight.shape[1], (x.shape[2], x.shape[3])) if needs_x else None
    sums = torch.empty_like(weight, memory_format=torch.contiguous_format) if needs_weight else None
    other = x if needs_weight else None
    _run(gradient, geometry, y=x_gradient, weight=weight, added=added, other=other, sums=sums, adjoint=True)
    return x_gradient, sums


def _empty(image: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    shape = image.shape[0], channels, *size
    return torch.empty(shape, dtype=image.dtype, memory_format=torch.channels_last)


def _run(
    image: Tensor,
    geometry: ConvGeometry,
    y: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    other: Tensor | None = None,
    sums: Tensor | None = None,
    factor: float = 1.0,
    adjoint: bool = False,
) -> None:
    """Calls the kernel: y from the image and the weight, and sums from the image and the other one, if wanted."""
    result = other if y is None else y
    if result is None:
        return
    n, _, height, width = result.shape
    padding = 0 if geometry.padding_mode == "circular" else 1
    weight = None if weight is None else weight.contiguous()
    tensors = image, weight, bias if bias is None else bias.contiguous(), added, y, other, sums
    addresses = [_NO_POINTER if tensor is None else tensor.data_ptr() for tensor in tensors]
    sizes = n, height, width, image.shape[2], image.shape[3], padding, padding
    channels = [0 if tensor is None else tensor.shape[1] for tensor in (image, y, other)]
    CPU[KERNEL](*addresses, factor, *sizes, *channels, adjoint, adjoint)
