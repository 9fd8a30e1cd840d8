"""sdp_residual on the CPU: channels-last convolutions of oneDNN or Winograd, our passes between them.

The convolutional form, one group (csrc/sdp_residual, and csrc/conv_chain for the MaxMin after it).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlip.kernels.common import binding, winograd
from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common.geometry import NO_PADS, ConvGeometry
from fastlip.kernels.common.padding import Pads
from fastlip.kernels.common.winograd import Finish, Tile
from fastlip.kernels.conv_chain import native as conv_chain
from fastlip.kernels.linear import native as linear
from fastlip.kernels.sdp_residual import dense, layer, reference
from fastlip.kernels.sdp_residual.api import folded

binding.require()


class Passes(conv_chain.Passes):
    """The passes in C++."""

    def hidden(
        self,
        image: Tensor,
        weight: Tensor,
        bias: Tensor,
        geometry: ConvGeometry,
        tile: Tile | None,
        halo: Pads,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        """h = relu(W * image + bias) and h with a halo: in one pass by ``winograd``, or in two."""
        if tile is not None:
            size, finish = (image.shape[2], image.shape[3]), Finish(bias, activation="relu")
            h = winograd.convolve(image, weight, geometry, size, finish, tile)
            return h, images.with_halo(h, halo)
        z = images.convolve(image, weight, geometry)
        h, extended, address = images.outputs_of(z, halo)
        addresses = z.data_ptr(), bias.data_ptr(), h.data_ptr(), address
        images.launch("sdp_residual_relu", z, *addresses, halo=halo)
        return h, extended

    def relu_backward(self, v: Tensor, h: Tensor, scale: Tensor, halo: Pads) -> tuple[Tensor, Tensor, Tensor]:
        """u = -scale v where h > 0, with its halo, and per channel the sums of u and of -v h."""
        scale = -scale
        u, extended, address = images.outputs_of(v, halo)
        sums = torch.empty_like(scale), torch.empty_like(scale)
        pointers = v.data_ptr(), h.data_ptr(), scale.data_ptr(), u.data_ptr(), address
        images.launch("sdp_residual_relu_backward", u, *pointers, *(s.data_ptr() for s in sums), halo=halo)
        return extended, sums[0], sums[1].neg_()

    def second(
        self,
        h: Tensor,
        weight: Tensor,
        scale: Tensor,
        residual: Tensor,
        geometry: ConvGeometry,
        pairing: str,
        tile: Tile | None,
    ) -> tuple[Tensor, Tensor]:
        """maxmin(residual - z), z being the adjoint convolution of diag(scale) W of h with its halo, and the bits."""
        weight = folded(weight, scale)
        y, _, mask = self.layer(h, weight, None, residual, geometry, pairing, tile, NO_PADS, True)
        return y, mask


_passes = Passes()
_kernels = layer.Kernels(_passes)


def supports(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, geometry: ConvGeometry | None, pairing: str
) -> str:
    """Empty, or why these kernels cannot run."""
    if geometry is None:
        return dense.supports(x, weight, bias, scale, pairing) or _passes.missing(x)
    return _kernels.supports(x, weight, bias, scale, geometry, pairing)


def unprofitable(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, geometry: ConvGeometry | None, pairing: str
) -> str:
    """Empty, or why the reference is faster."""
    if geometry is None:
        return linear.unprofitable(x, weight, bias)
    return reference.faster(x, weight, bias, scale, geometry, pairing)


def sdp_residual_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    second: Tensor | None,
    recompute: bool,
    training: bool,
    numbers: Sequence[int],
    pairing: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, h = relu(W x + b) unless it is to be computed again, and the bits of MaxMin."""
    if not numbers:
        return dense.forward(x, weight, bias, scale)
    return _kernels.forward(x, weight, bias, scale, second, recompute, training, numbers, pairing)


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
    numbers: Sequence[int],
    pairing: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x and weight, empty unless needed, of bias and scale."""
    if not numbers:
        h = x.new_empty((0, len(weight))) if h is None else h  # of no vectors
        return dense.backward(gradient, x, weight, scale, h, (needs_x, needs_weight), _passes)
    return _kernels.backward(gradient, x, weight, bias, scale, h, mask, needs_x, needs_weight, numbers, pairing)
