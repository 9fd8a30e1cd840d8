"""sdp_residual on the CPU: channels-last convolutions of oneDNN or Winograd, our passes between them.

The convolutional form, one group (csrc/sdp_residual, and csrc/conv_chain for the MaxMin behind it).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.padding import Pads
from fastlip.kernels.conv_chain import native as conv_chain
from fastlip.kernels.sdp_residual import layer, reference
from fastlip.kernels.sdp_residual.api import folded

binding.require()


class Passes(conv_chain.Passes):
    """The passes in C++."""

    def relu(self, z: Tensor, bias: Tensor, halo: Pads, keep: bool) -> tuple[Tensor, Tensor]:
        """h = relu(z + bias), in place, and h with its halo."""
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

    def second(self, h: Tensor, weight: Tensor, scale: Tensor, geometry: ConvGeometry, training: bool) -> Tensor:
        """The second convolution of h, which has its halo: the adjoint of diag(scale) W."""
        return images.convolve(h, folded(weight, scale), geometry, training=training)


_kernels = layer.Kernels(Passes())
supports, unprofitable = _kernels.supports, reference.faster
sdp_residual_forward, sdp_residual_backward = _kernels.forward, _kernels.backward
