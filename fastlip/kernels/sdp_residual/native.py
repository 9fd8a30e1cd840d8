"""sdp_residual on the CPU: channels-last convolutions of oneDNN or Winograd, our passes between them.

The convolutional form, one group (csrc/sdp_residual, and csrc/conv_chain for the MaxMin after it).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common import binding, winograd
from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common.geometry import NO_PADS, ConvGeometry
from fastlip.kernels.common.padding import Pads
from fastlip.kernels.common.winograd import Finish, Tile
from fastlip.kernels.conv_chain import native as conv_chain
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

    def refuses_matrix(self, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, pairing: str) -> str:
        """Why these kernels cannot run with a matrix; empty if they can."""
        return dense.refusal(x, weight, bias, scale, pairing) or self.missing(x)


_kernels = layer.Kernels(Passes())
supports, unprofitable = _kernels.supports, reference.faster
sdp_residual_forward, sdp_residual_backward = _kernels.forward, _kernels.backward
