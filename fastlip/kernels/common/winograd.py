"""Convolutions of 3 x 3 kernels by Winograd's F(4, 3) and F(2, 3) in C++ (csrc/winograd).

Lavin and Gray, *Fast Algorithms for Convolutional Neural Networks*, CVPR 2016. A tile of 4 x 4 results takes 36
products where the sums of taps take 144, and one of 2 x 2 takes 16 in place of 36. The worst case of rounding errors
of F(4, 3) is 4 to 8 times that of the sums of taps, so it runs in training only. That of F(2, 3) is below it where
kernels are dense: ``certification/rounding/winograd.py`` bounds it, and outputs in evaluation may come from it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.common.binding import CPU
from fastlip.kernels.common.geometry import ConvGeometry

Tile = Literal[2, 4]
TRAINING: Tile = 4
EVALUATION: Tile = 2
KERNELS: dict[Tile, str] = {tile: f"winograd{tile}_float32" for tile in (EVALUATION, TRAINING)}
_TAPS = 9
_KERNEL_SIZE = (3, 3)
_NO_POINTER = 0


class _Costs(NamedTuple):
    """Multiply-adds of a tile and a pair of channels; for transforms of a tile, per channel; of a kernel, per pair.

    All but the first of F(4, 3) are fitted to 16 to 512 channels on images of 32 to 4 pixels, with AVX-512.
    """

    products: int
    transform: int
    kernel: int


_COSTS: dict[Tile, _Costs] = {2: _Costs(18, 110, 1500), 4: _Costs(36, 700, 3100)}


class Finish(NamedTuple):
    """The steps after a convolution z = W * image: activation(gain (z + bias) + factor added).

    Attributes:
        bias: (cout,), or None.
        added: (n, cout, h, w), channels-last, or None.
        factor: see above.
        gain: see above.
        activation: ``"none"``, ``"relu"``, or ``"adjacent"``: MaxMin of neighbours.
        bits: where MaxMin's are written, those of eight pairs in a byte, or None. See ``PAIRED``.
    """

    bias: Tensor | None = None
    added: Tensor | None = None
    factor: float = 1.0
    gain: float = 1.0
    activation: str = "none"
    bits: Tensor | None = None


_ACTIVATIONS = {"none": 0, "adjacent": 1, "relu": 2}
_NOTHING = Finish()
PAIRED = 16  # channels whose bits fill a byte: bits are written for multiples of it


def takes(
    image: Tensor, geometry: ConvGeometry, size: tuple[int, int], inputs: int, outputs: int, tile: Tile = TRAINING
) -> bool:
    """Whether the kernel can run for channels-last images, and takes fewer operations than the sums of taps.

    Args:
        image: what is convolved, with the halo of a circular convolution.
        geometry: of stride 1, with padding that keeps the image's size.
        size: height and width of the result.
        inputs: channels of the image.
        outputs: channels of the result.
        tile: results along one side of a tile.
    """
    if geometry.kernel_size != _KERNEL_SIZE:
        return False
    batch, (height, width) = image.shape[0], size
    if not type(batch) is type(height) is type(width) is int:  # in a trace they are no numbers
        return False
    return _is_cheaper(batch, height, width, inputs, outputs, tile) and fits(image, geometry)


def fits(image: Tensor, geometry: ConvGeometry) -> bool:
    """Whether the kernel can run for these images at all."""
    if not image.is_cpu or image.dtype != torch.float32:
        return False
    if geometry.kernel_size != _KERNEL_SIZE or geometry.dilation != (1, 1) or not geometry.symmetric:
        return False
    name = KERNELS[TRAINING]
    return name in CPU or not binding.missing(name, image.device)


def operations(batch: int, height: int, width: int, inputs: int, outputs: int, tile: Tile = TRAINING) -> int:
    """Multiply-adds that take as long: the same for a layer, its adjoint and the gradient of its kernel."""
    costs, pairs = _COSTS[tile], inputs * outputs
    tiles = batch * -(-height // tile) * -(-width // tile)
    return costs.products * tiles * pairs + costs.transform * tiles * (inputs + outputs) + costs.kernel * pairs


@lru_cache(maxsize=1024)
def pays(inputs: int, outputs: int, tile: Tile) -> bool:
    """Whether the kernel is cheaper than the sums of taps for any batch and image."""
    costs, pairs = _COSTS[tile], inputs * outputs
    return costs.products * pairs + costs.transform * (inputs + outputs) < _TAPS * tile * tile * pairs


@lru_cache(maxsize=1024)
def _is_cheaper(batch: int, height: int, width: int, inputs: int, outputs: int, tile: Tile) -> bool:
    taps = _TAPS * batch * height * width * inputs * outputs
    return operations(batch, height, width, inputs, outputs, tile) < taps


def convolve(
    image: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    size: tuple[int, int],
    finish: Finish = _NOTHING,
    tile: Tile = TRAINING,
) -> Tensor:
    """W * image and what follows it.

    Args:
        image: (n, cin, h, w), channels-last; circular ones with their halo or without.
        weight: (cout, cin, 3, 3).
        geometry: see :func:`takes`.
        size: height and width of the result.
        finish: see there.
        tile: results along one side of a tile.
    """
    y = _empty(image, weight.shape[0], size)
    _run(image, geometry, finish, tile, y=y, weight=weight)
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
    _run(gradient, geometry, Finish(added=added), y=x_gradient, weight=weight, other=other, sums=sums, adjoint=True)
    return x_gradient, sums


def _empty(image: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    shape = image.shape[0], channels, *size
    return torch.empty(shape, dtype=image.dtype, memory_format=torch.channels_last)


def _run(
    image: Tensor,
    geometry: ConvGeometry,
    finish: Finish = _NOTHING,
    tile: Tile = TRAINING,
    y: Tensor | None = None,
    weight: Tensor | None = None,
    other: Tensor | None = None,
    sums: Tensor | None = None,
    adjoint: bool = False,
) -> None:
    """Calls the kernel: y from the image and the weight, and sums from the image and the other one, if wanted."""
    result = other if y is None else y
    if result is None:
        return
    n, _, height, width = result.shape
    # A circular image comes with its halo or without; then the kernel reads the other side.
    wrap = geometry.padding_mode == "circular" and (image.shape[2], image.shape[3]) == (height, width)
    padding = 1 if wrap or geometry.padding_mode == "zeros" else 0
    weight = None if weight is None else weight.contiguous()
    bias = None if finish.bias is None else finish.bias.contiguous()
    tensors = image, weight, bias, finish.added, y, other, sums, finish.bits
    addresses: list[int] = []  # loops: a comprehension would be a call of its own
    for tensor in tensors:
        addresses.append(_NO_POINTER if tensor is None else tensor.data_ptr())
    sizes = n, height, width, image.shape[2], image.shape[3], padding, padding, wrap
    channels = image.shape[1], 0 if y is None else y.shape[1], 0 if other is None else other.shape[1]
    numbers = finish.factor, finish.gain, _ACTIVATIONS[finish.activation]
    CPU[KERNELS[tile]](*addresses, *numbers, *sizes, *channels, adjoint, adjoint)
