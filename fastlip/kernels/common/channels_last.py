"""Channels-last images between convolutions: frames, convolutions, and the passes in C++ (csrc/common/frames.h)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.common.padding import Pads, same_pads
from fastlip.kernels.common.precision import autocasts
from fastlip.kernels.common.sizes import surely_below

LAST = torch.channels_last
NAMES = {torch.float32: "float32", torch.float64: "float64"}
ACTIVATIONS = {"none": 0, "adjacent": 1, "halves": 2}
NO_FRAME = (0, 0, 0, 0)
_convolution_backward = torch.ops.aten.convolution_backward.default


def refuse(
    x: Tensor, others: Sequence[Tensor | None], weights: Sequence[Tensor], mode: str, dilation: Sequence[int]
) -> str:
    """Why "same" convolutions of x by these weights cannot run on framed channels-last images; empty if they can."""
    dtypes = {tensor.dtype for tensor in (x, *others, *weights) if tensor is not None}
    if len(dtypes) > 1 or x.dtype not in NAMES:
        return f"the kernels need one dtype for all tensors, float32 or float64, not {', '.join(map(str, dtypes))}"
    if autocasts(x.device):
        return "under autocast convolutions run in another dtype"
    for weight in weights:
        left, right, top, bottom = same_pads(weight.shape[2:], tuple(dilation))
        if mode == "zeros" and (left, top) != (right, bottom):
            return "zero padding that differs before and after the image"
    return ""


def missing(x: Tensor) -> str:
    """Why the passes in C++ cannot run on the device of x; empty if they can."""
    return binding.missing("conv_chain_forward_float32", x.device)


# Numbers that the convolutions write from which the passes in C++ win: below, torch's own padding and activations
# take less time than the calls between them (README.md of conv_chain).
WORTHWHILE = {"zeros": 1 << 15, "circular": 1 << 14}


def too_small(x: Tensor, channels: int, mode: str) -> str:
    """Empty, or why the reference is faster: convolutions of x to so many channels in all leave little between."""
    n, _, height, width = x.shape
    little = surely_below(n * height * width * channels, WORTHWHILE[mode])
    return "torch takes less time for so few numbers than launches" if little else ""


def frame_of(weight: Tensor, dilation: Sequence[int], mode: str) -> Pads:
    """What a convolution reads around the image: nothing with zero padding, which oneDNN does itself."""
    return same_pads(weight.shape[2:], tuple(dilation)) if mode == "circular" else NO_FRAME


def opposite(frame: Pads) -> Pads:
    """The frame of the adjoint convolution."""
    left, right, top, bottom = frame
    return right, left, bottom, top


def adjoint(weight: Tensor) -> Tensor:
    """The kernel of the adjoint convolution, by the opposite frame."""
    return (weight if is_matrix(weight) else weight.flip(2, 3)).transpose(0, 1)


def framed(x: Tensor, frame: Pads) -> Tensor:
    """A channels-last image with its circular frame; the image itself without one."""
    if not any(frame):
        return x
    result = empty_frame(x, frame)
    launch("conv_chain_forward", x, x.data_ptr(), 0, 0, 0, result.data_ptr(), 0, 0, frame=frame)
    return result


def empty_frame(x: Tensor, frame: Pads) -> Tensor:
    """Memory for an image of the shape of x with its frame."""
    left, right, top, bottom = frame
    n, channels, height, width = x.shape
    size = n, channels, top + height + bottom, left + width + right
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=LAST)


def outputs_of(x: Tensor, frame: Pads) -> tuple[Tensor, Tensor, int]:
    """For a pass that works on x in place and also frames it: x, its framed copy, and the latter's address or 0."""
    if not any(frame):
        return x, x, 0
    result = empty_frame(x, frame)
    return x, result, result.data_ptr()


def convolve(image: Tensor, weight: Tensor, dilation: Sequence[int], mode: str, bias: Tensor | None = None) -> Tensor:
    """The "same" convolution of an image that has its frame, channels-last."""
    if is_matrix(weight):
        return F.linear(image.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
    weight = weight.contiguous(memory_format=LAST)
    y = torch.conv2d(image, weight, bias, 1, _padding(weight, dilation, mode), dilation)
    return y.contiguous(memory_format=LAST)


def weight_gradient(image: Tensor, gradient: Tensor, weight: Tensor, dilation: Sequence[int], mode: str) -> Tensor:
    """The gradient of a kernel from the layer's input, with its frame, and the output's gradient."""
    if is_matrix(weight):
        pixels, gradients = (tensor.permute(0, 2, 3, 1).flatten(0, 2) for tensor in (image, gradient))
        return (gradients.T @ pixels)[:, :, None, None]
    arguments = [1, 1], _padding(weight, dilation, mode), list(dilation), False, [0, 0], 1
    return _convolution_backward(gradient, image, weight, None, *arguments, [False, True, False])[1].contiguous()


def adjoint_weight_gradient(
    x: Tensor, gradient: Tensor, weight_adjoint: Tensor, dilation: Sequence[int], mode: str
) -> Tensor:
    """The gradient of a kernel from the layer's input x and the output's framed gradient.

    The roles are exchanged, as if of the adjoint convolution: where the frame is around the output's gradient, the
    layer's input needs none.
    """
    return adjoint(weight_gradient(gradient, x, weight_adjoint, dilation, mode)).contiguous()


def is_matrix(weight: Tensor) -> bool:
    """Whether a kernel has one tap: then channels-last images are the rows of a matrix, and nothing is copied."""
    return weight.shape[2] == weight.shape[3] == 1


def launch(name: str, image: Tensor, *arguments: int, frame: Pads) -> None:
    """Runs a pass over an image of this shape."""
    n, channels, height, width = image.shape
    binding.launch(f"{name}_{NAMES[image.dtype]}", image.device, *arguments, n, height, width, channels, *frame)


def _padding(weight: Tensor, dilation: Sequence[int], mode: str) -> list[int]:
    """What the convolution itself pads: nothing where the image has its frame."""
    if mode == "circular":
        return [0, 0]
    left, _, top, _ = same_pads(weight.shape[2:], tuple(dilation))
    return [top, left]
