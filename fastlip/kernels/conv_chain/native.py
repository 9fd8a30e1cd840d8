"""conv_chain on the CPU: convolutions of oneDNN or Winograd, our passes between them (csrc/conv_chain)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common import binding, winograd
from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.padding import Pads
from fastlip.kernels.conv_chain import layers
from fastlip.kernels.conv_chain.api import bits_shape

binding.require()


class Passes:
    """The passes in C++: of z or the gradient, the plain result is written in place."""

    dtypes = tuple(images.NAMES)
    on_cpu = not images.missing(torch.empty(0, device="cpu"))
    missing = staticmethod(images.missing)
    with_halo = staticmethod(images.with_halo)
    gradients = staticmethod(images.flipped_gradients)

    def activate(
        self, z: Tensor, bias: Tensor | None, residual: Tensor | None, pairing: str, halo: Pads, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y = maxmin(z + bias) or maxmin(residual - z), y with its halo, and the bits; y only if it is kept."""
        y, extended, address = images.outputs_of(z, halo)
        n, channels, height, width = z.shape
        mask = torch.empty(bits_shape((n, height, width), channels, pairing, "native"), dtype=torch.uint8)
        plain = y.data_ptr() if keep or not address else 0
        others = bias.data_ptr() if bias is not None else 0, residual.data_ptr() if residual is not None else 0
        addresses = z.data_ptr(), *others, plain, address, mask.data_ptr()
        images.launch("conv_chain_forward", z, *addresses, images.ACTIVATIONS[pairing], halo=halo)
        return y, extended, mask

    def layer(
        self,
        image: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        geometry: ConvGeometry,
        pairing: str,
        tile: winograd.Tile | None,
        halo: Pads,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A convolution, by tiles or with the image's halo, and :meth:`activate` after it; by tiles in one pass."""
        channels = weight.shape[0]
        finished = pairing == "none" or (pairing == "adjacent" and not (keep and channels % winograd.PAIRED))
        if tile is None or not finished:
            z = images.convolve(image, weight, geometry, tile=tile)
            return self.activate(z, bias, residual, pairing, halo, keep)
        n, _, *size = image.shape
        mask = torch.empty(0, dtype=torch.uint8)
        if keep:
            mask = torch.empty(bits_shape((n, size[0], size[1]), channels, pairing, "native"), dtype=torch.uint8)
        bits = mask if keep and pairing != "none" else None
        finish = winograd.Finish(bias, residual, 1.0, 1.0 if residual is None else -1.0, pairing, bits)
        y = winograd.convolve(image, weight, geometry, (size[0], size[1]), finish, tile)
        return y, images.with_halo(y, halo) if any(halo) else y, mask

    def deactivate(
        self, gradient: Tensor, mask: Tensor, pairing: str, halo: Pads, keep: bool, sums: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient before MaxMin (only if kept), the same with its halo, its sums per channel (if wanted)."""
        if any(halo):
            extended = images.empty_with_halo(gradient, halo)
            plain = torch.empty_like(gradient) if keep else gradient
            addresses = plain.data_ptr() if keep else 0, extended.data_ptr()
        else:
            plain = extended = torch.empty_like(gradient)
            addresses = plain.data_ptr(), 0
        total = gradient.new_empty(gradient.shape[1] if sums else 0)
        addresses = gradient.data_ptr(), mask.data_ptr(), *addresses, total.data_ptr() if sums else 0
        images.launch("conv_chain_backward", gradient, *addresses, images.ACTIVATIONS[pairing], halo=halo)
        return plain, extended, total


_kernels = layers.Kernels(Passes())
supports, unprofitable = _kernels.supports, _kernels.unprofitable
conv_chain_forward, conv_chain_backward = _kernels.forward, _kernels.backward
