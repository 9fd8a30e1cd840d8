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
from fastlip.ops.conv_chain import native as conv_chain
from fastlip.ops.sdp_residual import layer

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
    if reason := layer.refuse(x, weight, groups):
        return reason
    return images.refuse(x, (bias, scale), (weight,), padding_mode, dilation) or images.missing(x)


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
    return layer.forward(Passes(), x, weight, bias, scale, second, recompute, dilation, padding_mode, pairing)


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
    kept = x, weight, bias, scale, h, mask
    return layer.backward(Passes(), gradient, *kept, needs_x, needs_weight, dilation, padding_mode, pairing)


class Passes(conv_chain.Passes):
    """The passes in C++."""

    def relu(self, z: Tensor, bias: Tensor, frame: Pads, keep: bool) -> tuple[Tensor, Tensor]:
        """h = relu(z + bias), in place, and h with its frame."""
        h, framed, address = images.outputs_of(z, frame)
        addresses = z.data_ptr(), bias.data_ptr(), h.data_ptr(), address
        images.launch("sdp_residual_relu", z, *addresses, frame=frame)
        return h, framed

    def relu_backward(self, v: Tensor, h: Tensor, scale: Tensor, frame: Pads) -> tuple[Tensor, Tensor, Tensor]:
        """u = scale v where h > 0, with its frame, and per channel the sums of u and of v h."""
        u, framed, address = images.outputs_of(v, frame)
        sums = torch.empty_like(scale), torch.empty_like(scale)
        pointers = v.data_ptr(), h.data_ptr(), scale.data_ptr(), u.data_ptr(), address
        images.launch("sdp_residual_relu_backward", u, *pointers, *(s.data_ptr() for s in sums), frame=frame)
        return framed, *sums
