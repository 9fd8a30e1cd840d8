"""Transposed convolutions with one kernel as effective weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.common.geometry import Pair
from fastlip.kernels.spectral_norm.api import convolution_norm
from fastlip.nn.applications.application import ConvApplication
from fastlip.nn.base import as_it_runs


@dataclass(frozen=True)
class TransposedConvolution(ConvApplication):
    """The adjoint of the convolution of this geometry, and bias; ``output_padding`` enlarges its output."""

    output_padding: Pair = (0, 0)

    def __call__(self, layer: Any, x: Tensor, output_padding: Pair | None = None) -> Tensor:
        """The transposed convolution of x, and bias."""
        layer._check_input(x, layer.in_channels, self.geometry.axes)
        geometry, extra = self.geometry, self.output_padding if output_padding is None else output_padding
        padding = geometry.pads[2], geometry.pads[0]
        (weight,) = layer._effective()
        return F.conv_transpose2d(
            x, weight, layer.bias, geometry.stride, padding, extra, geometry.groups, geometry.dilation
        )

    def output_size(self, shape: tuple[int, ...], extra: Pair) -> Pair:
        """Height and width of the output for an image (..., h, w)."""
        _, across, _, down = self.geometry.pads
        height, width = (
            (side - 1) * step - 2 * padding + halo + more + 1
            for side, step, padding, halo, more in zip(
                shape[-2:], self.geometry.stride, (down, across), self.geometry.halo, extra, strict=True
            )
        )
        return height, width

    @torch.no_grad()
    def bound(self, layer: Any, input_shape: tuple[int, ...]) -> float:
        """The norm of the convolution of this kernel on images of the output's size, whose adjoint this is."""
        geometry, size = self.geometry, self.output_size(input_shape, self.output_padding)
        return convolution_norm(as_it_runs(layer._effective()[0]), size, geometry).item()

    def describe(self, layer: Any) -> str:
        """The arguments of ``torch.nn.ConvTranspose2d``, and the backend."""
        text = f"{layer.in_channels}, {layer.out_channels}, kernel_size={layer.kernel_size}, stride={layer.stride}"
        text += f", padding={layer.padding}, output_padding={layer.output_padding}, groups={layer.groups}"
        return f"{text}, bias={layer.bias is not None}, dilation={layer.dilation}, backend={layer.backend!r}"
