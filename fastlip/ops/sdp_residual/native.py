"""sdp_residual on the CPU: oneDNN's channels-last convolutions through torch, our passes between them.

The convolutional form, one group (csrc/sdp_residual, and csrc/conv_chain for the MaxMin behind it).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlip.ops import _channels_last as images
from fastlip.ops import _native
from fastlip.ops._padding import Pads
from fastlip.ops.conv_chain import mask_shape
from fastlip.ops.sdp_residual import folded

_native.require()


def supports(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    dilation: tuple[int, int],
    groups: int,
    padding_mode: str,
    pairing: str,
) -> str:
    """Empty, or why these kernels cannot run."""
    if weight.dim() != 4 or x.dim() != 4:
        return "no kernel for dense weights and for images without a batch dimension"
    if groups != 1:
        return f"no kernel for groups={groups}"
    return images.refuse(x, (bias, scale), (weight,), padding_mode, dilation)


def sdp_residual_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    second: Tensor | None,
    recompute: bool,
    dilation: Sequence[int],
    padding_mode: str,
    pairing: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Y, h = relu(W x + b) unless it is to be computed again, and the bits of MaxMin."""
    x = x.contiguous(memory_format=images.LAST)
    frame = images.frame_of(weight, dilation, padding_mode)
    h, framed = _hidden(x, weight, bias, dilation, padding_mode, images.opposite(frame))
    second = folded(weight, scale) if second is None else second
    y = images.convolve(framed, second, dilation, padding_mode)
    mask = torch.empty(mask_shape(x, x.shape[1], pairing), dtype=torch.uint8)
    _subtract(x, y, images.ACTIVATIONS[pairing], mask)
    return y, h.new_empty((0, 0, 0, 0)) if recompute else h, mask


def sdp_residual_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    h: Tensor | None,
    mask: Tensor,
    needs_x: bool,
    needs_weight: bool,
    dilation: Sequence[int],
    padding_mode: str,
    pairing: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x and weight, empty unless needed (each costs convolutions), of bias and scale."""
    frame = images.frame_of(weight, dilation, padding_mode)
    x, gradient = (image.contiguous(memory_format=images.LAST) for image in (x, gradient))
    scale = scale.contiguous()
    if h is None:
        h, _ = _hidden(x, weight, bias, dilation, padding_mode, images.NO_FRAME)
    residual, framed = _swap_back(gradient, mask, frame, pairing)
    v = images.convolve(framed, weight, dilation, padding_mode)
    adjoint = images.adjoint(weight)
    # Σ_n of the gradient of W₂ᵀ; the scale is a factor of its rows.
    second = images.weight_gradient(framed, h, weight, dilation, padding_mode) if needs_weight else None
    u, framed, address = images.outputs_of(v, images.opposite(frame))
    u_sum, product_sum = torch.empty_like(scale), torch.empty_like(scale)
    pointers = v.data_ptr(), h.data_ptr(), scale.data_ptr(), u.data_ptr(), address
    images.launch(
        "sdp_residual_relu_backward", u, *pointers, u_sum.data_ptr(), product_sum.data_ptr(),
        frame=images.opposite(frame),
    )  # fmt: skip
    weight_gradient = x_gradient = x.new_empty(0)
    if second is not None:
        first = images.adjoint_weight_gradient(x, framed, adjoint, dilation, padding_mode)
        weight_gradient = -(first + scale[:, None, None, None] * second)
    if needs_x:
        x_gradient = images.convolve(framed, adjoint, dilation, padding_mode)
        _subtract(residual, x_gradient, 0, mask)
    return x_gradient, weight_gradient, -u_sum, -product_sum


def _hidden(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: Sequence[int], padding_mode: str, frame: Pads
) -> tuple[Tensor, Tensor]:
    """H = relu(W x + b), without and with the frame that the second convolution reads."""
    framed = images.framed(x, images.frame_of(weight, dilation, padding_mode))
    h, framed, address = images.outputs_of(images.convolve(framed, weight, dilation, padding_mode), frame)
    bias = h.new_zeros(h.shape[1]) if bias is None else bias.contiguous()
    images.launch("sdp_residual_relu", h, h.data_ptr(), bias.data_ptr(), h.data_ptr(), address, frame=frame)
    return h, framed


def _subtract(x: Tensor, y: Tensor, activation: int, mask: Tensor) -> None:
    """Y <- maxmin(x - y), in place."""
    addresses = y.data_ptr(), 0, x.data_ptr(), y.data_ptr(), 0, mask.data_ptr(), activation
    images.launch("conv_chain_forward", y, *addresses, frame=images.NO_FRAME)


def _swap_back(gradient: Tensor, mask: Tensor, frame: Pads, pairing: str) -> tuple[Tensor, Tensor]:
    """The gradient before MaxMin, without and with the frame."""
    if pairing == "none":
        return gradient, images.framed(gradient, frame)
    plain, framed, address = images.outputs_of(torch.empty_like(gradient), frame)
    addresses = gradient.data_ptr(), mask.data_ptr(), plain.data_ptr(), address, 0
    images.launch("conv_chain_backward", gradient, *addresses, images.ACTIVATIONS[pairing], frame=frame)
    return plain, framed
