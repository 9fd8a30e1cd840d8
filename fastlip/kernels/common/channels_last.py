"""Channels-last images between convolutions: halos, convolutions, and the passes in C++ (csrc/common/halo.h).

A pass writes an image together with the halo that the next circular convolution reads, four widths as in ``Pads``.
The geometries here are of stride 1 and keep an image's size.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.common import binding, winograd
from fastlip.kernels.common.binding import CPU
from fastlip.kernels.common.geometry import NO_PADS, ConvGeometry
from fastlip.kernels.common.padding import Pads
from fastlip.kernels.common.products import LEAST, product
from fastlip.kernels.common.sizes import surely_below

LAST = torch.channels_last
NAMES = {torch.float32: "float32", torch.float64: "float64"}
ACTIVATIONS = {"none": 0, "adjacent": 1, "halves": 2}
_convolution_backward = torch.ops.aten.convolution_backward.default


def refuse(
    x: Tensor,
    others: Sequence[Tensor | None],
    geometries: Sequence[ConvGeometry],
    allowed: Collection[torch.dtype] = tuple(NAMES),
) -> str:
    """Returns why these convolutions cannot run on channels-last images with halos; empty if they can.

    ``others`` are the weights and all further tensors that must have the dtype of x, which must be allowed.
    """
    dtypes = [x.dtype]
    for tensor in others:
        if tensor is not None and tensor.dtype not in dtypes:
            dtypes.append(tensor.dtype)
    if len(dtypes) > 1 or x.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        return f"the kernels need one dtype for all tensors, of {names}, not {', '.join(map(str, dtypes))}"
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):  # as autocasts
        return "under autocast convolutions run in another dtype"
    for geometry in geometries:
        if geometry.padding_mode == "zeros" and not geometry.symmetric:
            return "zero padding that differs before and after the image"
    return ""


def missing(x: Tensor) -> str:
    """Returns why the passes in C++ cannot run on the device of x; empty if they can."""
    name = "conv_chain_forward_float32"
    return "" if x.is_cpu and name in CPU else binding.missing(name, x.device)


# From this number of outputs on the passes in C++ win: below, torch's own padding and activations take less time
# than the calls between them (README.md of conv_chain).
WORTHWHILE = {"zeros": 1 << 15, "circular": 1 << 14}


FEW = "torch takes less time for this small number of entries than launches"


def too_small(x: Tensor, channels: int, geometry: ConvGeometry) -> str:
    """Returns why the reference is faster: convolutions of x to few channels in all; empty if it is not."""
    n, _, height, width = x.shape
    numbers, limit = n * height * width * channels, WORTHWHILE[geometry.padding_mode]
    little = surely_below(numbers, limit) if torch.compiler.is_compiling() else numbers < limit
    return FEW if little else ""


def halo_of(geometry: ConvGeometry) -> Pads:
    """The halo that a convolution reads around the image: none with zero padding, which oneDNN adds itself."""
    return geometry.pads if geometry.padding_mode == "circular" else NO_PADS


def adjoint_halo_of(geometry: ConvGeometry) -> Pads:
    """The halo that the adjoint convolution reads."""
    return geometry.opposite_pads if geometry.padding_mode == "circular" else NO_PADS


def adjoint(weight: Tensor) -> Tensor:
    """The kernel of the adjoint convolution, which reads the halo of :func:`adjoint_halo_of`."""
    return (weight if is_matrix(weight) else weight.flip(2, 3)).transpose(0, 1)


def with_halo(x: Tensor, halo: Pads) -> Tensor:
    """A channels-last image with its circular halo; the image itself if the halo is empty."""
    if not any(halo):
        return x
    result = empty_with_halo(x, halo)
    launch("conv_chain_forward", x, x.data_ptr(), 0, 0, 0, result.data_ptr(), 0, 0, halo=halo)
    return result


def empty_with_halo(x: Tensor, halo: Pads) -> Tensor:
    """Memory for an image of the shape of x with its halo."""
    left, right, top, bottom = halo
    n, channels, height, width = x.shape
    size = n, channels, top + height + bottom, left + width + right
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=LAST)


def outputs_of(x: Tensor, halo: Pads) -> tuple[Tensor, Tensor, int]:
    """For a pass that works on x in place: x, its copy with the halo, and the address of that copy.

    Without a halo there is no copy: x twice, and 0.
    """
    if not any(halo):
        return x, x, 0
    result = empty_with_halo(x, halo)
    return x, result, result.data_ptr()


def tile_for(
    x: Tensor, weight: Tensor, geometry: ConvGeometry, size: tuple[int, int], training: bool
) -> winograd.Tile | None:
    """The tile by which ``winograd`` applies a kernel to such images; None where the sums of taps are faster.

    In evaluation it is that whose rounding errors certificates count. ``size``: height and width of the result.
    """
    tile = winograd.TRAINING if training else winograd.EVALUATION
    return tile if winograd.takes(x, geometry, size, weight.shape[1], weight.shape[0], tile) else None


def halo_for(geometry: ConvGeometry, tile: winograd.Tile | None, adjoint: bool = False) -> Pads:
    """The halo that the convolution, or the adjoint one, reads with this tile: ``winograd`` reads none."""
    if tile is not None or geometry.padding_mode == "zeros":
        return NO_PADS
    return geometry.opposite_pads if adjoint else geometry.pads


def convolve(
    image: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    bias: Tensor | None = None,
    tile: winograd.Tile | None = None,
) -> Tensor:
    """The convolution of a channels-last image that has the halo of :func:`halo_for`."""
    if tile is not None:
        return winograd.convolve(
            image, weight, geometry, (image.shape[2], image.shape[3]), winograd.Finish(bias), tile
        )
    if weight.shape[2] == weight.shape[3] == 1:
        pixels = image.permute(0, 2, 3, 1)
        if image.numel() * len(weight) < LEAST:
            return F.linear(pixels, weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
        y = product(pixels.flatten(0, 2), weight[:, :, 0, 0].T, bias=bias)
        return y.view(*pixels.shape[:3], len(weight)).permute(0, 3, 1, 2)
    weight = weight.contiguous(memory_format=LAST)
    left, _, top, _ = (0, 0, 0, 0) if geometry.padding_mode == "circular" else geometry.pads
    y = torch.conv2d(image, weight, bias, 1, (top, left), geometry.dilation)
    return y.contiguous(memory_format=LAST)


def weight_gradient(image: Tensor, gradient: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """The gradient of a kernel from the layer's input, with its halo, and the output's gradient."""
    if is_matrix(weight):
        pixels, gradients = (tensor.permute(0, 2, 3, 1).flatten(0, 2) for tensor in (image, gradient))
        return product(gradients.T, pixels)[:, :, None, None]
    size = gradient.shape[2], gradient.shape[3]
    if winograd.takes(image, geometry, size, image.shape[1], gradient.shape[1]):
        return winograd.kernel_gradient(image, gradient, geometry)
    arguments = [1, 1], _padding(geometry), list(geometry.dilation), False, [0, 0], 1
    return _convolution_backward(gradient, image, weight, None, *arguments, [False, True, False])[1].contiguous()


def convolve_and_differentiate(
    image: Tensor, other: Tensor | None, weight: Tensor, geometry: ConvGeometry, size: tuple[int, int]
) -> tuple[Tensor, Tensor | None]:
    """W * image in a backward, and the kernel's gradient if ``other`` is the gradient of such a result.

    The image has the halo of :func:`halo_for` for a result of that size.
    """
    if winograd.takes(image, geometry, size, weight.shape[1], weight.shape[0]):
        return winograd.convolve_and_differentiate(image, other, weight, geometry, size)
    gradient = None if other is None else weight_gradient(image, other, weight, geometry)
    return convolve(image, weight, geometry), gradient


def adjoint_convolve(image: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """The adjoint convolution of a channels-last image that has its halo, without a copy of the kernel flipped."""
    if is_matrix(weight):
        return convolve(image, weight.transpose(0, 1), geometry)
    weight, padding = weight.contiguous(memory_format=LAST), _adjoint_padding(geometry)
    y = torch.conv_transpose2d(image, weight, None, 1, padding, 0, 1, geometry.dilation)
    return y.contiguous(memory_format=LAST)


def adjoint_gradients(
    x: Tensor,
    gradient: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    needs_x: bool,
    needs_weight: bool,
    added: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of a layer's input and kernel (None unless needed) from that of its output, with its halo.

    The first has ``added`` added to it.
    With a halo all around the output's gradient, it is that of a larger output: of x padded by the kernel's reach.
    """
    if is_matrix(weight):
        x_gradient = _plus(adjoint_convolve(gradient, weight, geometry), added) if needs_x else None
        return x_gradient, weight_gradient(x, gradient, weight, geometry) if needs_weight else None
    if not (needs_x or needs_weight):
        return None, None
    weight, padding = weight.contiguous(memory_format=LAST), _adjoint_padding(geometry)
    arguments = [1, 1], padding, list(geometry.dilation), False, [0, 0], 1, [needs_x, needs_weight, False]
    x_gradient, kernel_gradient, _ = _convolution_backward(gradient, x, weight, None, *arguments)
    return (
        _plus(x_gradient.contiguous(memory_format=LAST), added) if needs_x else None,
        kernel_gradient.contiguous(memory_format=LAST) if needs_weight else None,
    )


def _plus(x: Tensor, added: Tensor | None) -> Tensor:
    return x if added is None else x.add_(added)


def flipped_gradients(
    x: Tensor,
    gradient: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    needs_x: bool,
    needs_weight: bool,
    added: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """As :func:`adjoint_gradients`: by ``winograd`` where it is faster, or oneDNN with the flipped kernel."""
    if winograd.takes(gradient, geometry, (x.shape[2], x.shape[3]), weight.shape[0], weight.shape[1]):
        return winograd.gradients(x, gradient, weight, geometry, needs_x, needs_weight, added)
    flipped = adjoint(weight)
    kernel_gradient = adjoint_weight_gradient(x, gradient, flipped, geometry) if needs_weight else None
    return _plus(convolve(gradient, flipped, geometry), added) if needs_x else None, kernel_gradient


def adjoint_weight_gradient(x: Tensor, gradient: Tensor, weight_adjoint: Tensor, geometry: ConvGeometry) -> Tensor:
    """The gradient of a kernel from the layer's input x and the output's gradient with its halo.

    The roles are exchanged, as in the adjoint convolution: the halo is around the output's gradient, and the layer's
    input needs none.
    """
    return adjoint(weight_gradient(gradient, x, weight_adjoint, geometry)).contiguous()


def is_matrix(weight: Tensor) -> bool:
    """Whether a kernel has one tap: then channels-last images are the rows of a matrix, and nothing is copied."""
    return weight.shape[2] == weight.shape[3] == 1


def launch(name: str, image: Tensor, *arguments: int, halo: Pads) -> None:
    """Runs a pass over an image of this shape, on the CPU."""
    n, channels, height, width = image.shape
    CPU[f"{name}_{NAMES[image.dtype]}"](*arguments, n, height, width, channels, *halo)


def _adjoint_padding(geometry: ConvGeometry) -> list[int]:
    """The padding of a convolution whose output's gradient has its halo around it."""
    return list(geometry.halo) if geometry.padding_mode == "circular" else _padding(geometry)


def _padding(geometry: ConvGeometry) -> list[int]:
    """The padding of the convolution itself: none where the image has its halo."""
    left, _, top, _ = geometry.pads
    return [0, 0] if geometry.padding_mode == "circular" else [top, left]
