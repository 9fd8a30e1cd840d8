"""The convolutional layer's algorithm, written once: torch's convolutions, between them the passes of a backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common.checks import VOLUMES
from fastlip.kernels.common.geometry import NO_PADS, ConvGeometry, from_numbers
from fastlip.kernels.common.padding import Pads
from fastlip.kernels.common.winograd import Tile
from fastlip.kernels.conv_chain import layers
from fastlip.kernels.sdp_residual import dense


class Passes(layers.Passes, Protocol):
    """The passes over channels-last images between the two convolutions."""

    def refuses_matrix(self, x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, pairing: str, /) -> str:
        """Why the kernels cannot run with a matrix; empty if they can."""
        ...

    def hidden(
        self,
        image: Tensor,
        weight: Tensor,
        bias: Tensor,
        geometry: ConvGeometry,
        tile: Tile | None,
        halo: Pads,
        keep: bool,
        /,
    ) -> tuple[Tensor, Tensor]:
        """h = relu(W * image + bias), only if it is to be kept, and h with a halo."""
        ...

    def relu_backward(self, v: Tensor, h: Tensor, scale: Tensor, halo: Pads, /) -> tuple[Tensor, Tensor, Tensor]:
        """u = -scale v where h > 0, with its halo, and per channel the sums of u and of -v h."""
        ...

    def second(
        self,
        h: Tensor,
        weight: Tensor,
        scale: Tensor,
        residual: Tensor,
        geometry: ConvGeometry,
        pairing: str,
        tile: Tile | None,
        /,
    ) -> tuple[Tensor, Tensor]:
        """maxmin(residual - z), z being the adjoint convolution of diag(scale) W of h with its halo, and the bits."""
        ...


@dataclass(frozen=True)
class Kernels:
    """The op's functions on one backend."""

    passes: Passes

    def supports(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor,
        geometry: ConvGeometry | None,
        pairing: str,
    ) -> str:
        """Empty, or why these kernels cannot run."""
        if geometry is not None and geometry.axes != 2:
            return VOLUMES
        if geometry is None:
            return self.passes.refuses_matrix(x, weight, bias, scale, pairing)
        if x.dim() != 4:
            return "no kernel for images without a batch dimension"
        if geometry.groups != 1:
            return f"no kernel for groups={geometry.groups}"
        return images.refuse(x, (weight, bias, scale), (geometry,), self.passes.dtypes) or self.passes.missing(x)

    def forward(
        self,
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
        (geometry,) = from_numbers(tuple(numbers))
        x = x.contiguous(memory_format=images.LAST)
        size, turned = (x.shape[2], x.shape[3]), weight.transpose(0, 1)
        tile = images.tile_for(x, turned, geometry, size, training)
        halo = images.halo_for(geometry, tile, adjoint=True)
        h, extended = self._hidden(x, weight, bias, geometry, halo, not recompute, training)
        if second is None:
            y, mask = self.passes.second(extended, weight, scale, x, geometry, pairing, tile)
        else:
            y, _, mask = self.passes.layer(extended, second, None, x, geometry, pairing, tile, NO_PADS, True)
        return y, h.new_empty((0, 0, 0, 0)) if recompute else h, mask

    def backward(
        self,
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
        """The gradients of x and weight, empty unless needed (each costs convolutions), of bias and scale."""
        if not numbers:
            h = x.new_empty((0, len(weight))) if h is None else h  # of no vectors
            return dense.backward(gradient, x, weight, scale, h, (needs_x, needs_weight), self.passes)
        (geometry,) = from_numbers(tuple(numbers))
        size = x.shape[2], x.shape[3]
        halo = images.halo_for(geometry, images.tile_for(x, weight, geometry, size, True))
        x, gradient = (image.contiguous(memory_format=images.LAST) for image in (x, gradient))
        if h is None:
            h, _ = self._hidden(x, weight, bias, geometry, NO_PADS, True, True)
        residual, extended = gradient, self.passes.with_halo(gradient, halo) if pairing == "none" else gradient
        if pairing != "none":
            residual, extended, _ = self.passes.deactivate(gradient, mask, pairing, halo, keep=True, sums=False)
        # The other: Σ_n of the gradient of W₂ᵀ; the scale is a factor of its rows.
        v, second = images.convolve_and_differentiate(extended, h if needs_weight else None, weight, geometry, size)
        tile = images.tile_for(x, weight.transpose(0, 1), geometry, size, True)
        halo = images.halo_for(geometry, tile, adjoint=True)
        extended, u_sum, product_sum = self.passes.relu_backward(v, h, scale.contiguous(), halo)
        z, first = self.passes.gradients(x, extended, weight, geometry, needs_x, needs_weight, residual)
        weight_gradient = x_gradient = x.new_empty(0)
        if first is not None and second is not None:
            weight_gradient = torch.addcmul(first, scale[:, None, None, None], second, value=-1)
        if z is not None:
            x_gradient = z
        return x_gradient, weight_gradient, u_sum.to(scale.dtype), product_sum.to(scale.dtype)

    def _hidden(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: ConvGeometry,
        halo: Pads,
        keep: bool,
        training: bool,
    ) -> tuple[Tensor, Tensor]:
        """h = relu(W x + b), without (only if it is to be kept) and with the halo of the second convolution."""
        tile = images.tile_for(x, weight, geometry, (x.shape[2], x.shape[3]), training)
        extended = self.passes.with_halo(x, images.halo_for(geometry, tile))
        bias = weight.new_zeros(weight.shape[0]) if bias is None else bias.contiguous()
        return self.passes.hidden(extended, weight, bias, geometry, tile, halo, keep)
