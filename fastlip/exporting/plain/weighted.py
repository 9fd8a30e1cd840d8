"""Modules with a kernel or a matrix: convolutions, residual layers and exponentials."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.exporting.plain._module import PASSES, Plain, Shape
from fastlip.inspection.geometry import norm_of_convolution
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.literals import PaddingMode
from fastlip.kernels.conv_exp.truncation import largest_modulus
from fastlip.nn.applications.residual import effective_norms, residual_bound
from fastlip.nn.base import as_it_runs


class PlainConvolution(Plain):
    """Geometry and padding of the convolutions below. ``image`` is the size for which they were exported."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    padding_mode: PaddingMode
    image: tuple[int, int] | None

    def make_tables(self) -> None:
        """The geometry, and indices where circular padding exceeds the image, which F.pad refuses."""
        kernel_size = self.kernel_of_module().shape[2:]
        self.geometry = ConvGeometry(
            (kernel_size[0], kernel_size[1]),
            self.stride,
            self.pads,
            self.dilation,
            self.groups,
            self.padding_mode,
        )
        self.wraps = False
        if self.padding_mode == "circular" and self.image is not None:
            (height, width), (left, right, top, bottom) = self.image, self.pads
            self.wraps = max(top, bottom) > height or max(left, right) > width
            if self.wraps:
                # "after": the adjoint of a padding before the image pads after it.
                self.register_buffer("rows", torch.arange(-top, height + bottom) % height)
                self.register_buffer("columns", torch.arange(-left, width + right) % width)
                self.register_buffer("rows_after", torch.arange(-bottom, height + top) % height)
                self.register_buffer("columns_after", torch.arange(-right, width + left) % width)

    def pad(self, x: Tensor, after: str = "") -> Tensor:
        """x, padded as the convolution pads it, or with "_after" as its adjoint does."""
        left, right, top, bottom = self.pads
        pads = (right, left, bottom, top) if after else self.pads
        if not any(pads):
            return x
        if self.padding_mode == "zeros":
            return F.pad(x, pads)
        if self.wraps:
            # The tables hold for one size: at another the output would be cropped, repeated, or of another map.
            for axis, side in ((-2, self.image[0]), (-1, self.image[1])) if self.image else ():
                torch._assert(x.shape[axis] == side, f"exported for images of {self.image} (after its stride)")
            return x[..., self.get_buffer(f"rows{after}"), :][..., self.get_buffer(f"columns{after}")]
        return F.pad(x, pads, mode="circular")

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The padded convolution."""
        left, right, top, bottom = self.pads
        if self.padding_mode == "zeros" and left == right and top == bottom:
            return F.conv2d(x, weight, bias, self.stride, (top, left), self.dilation, self.groups)
        return F.conv2d(self.pad(x), weight, bias, self.stride, 0, self.dilation, self.groups)

    def kernel_of_module(self) -> Tensor:
        """The kernel, whose first axes are (outputs, inputs of a group)."""
        return self.get_parameter(self.TENSORS[0])

    def roundings(self, input_shape: Shape) -> float:
        """Sums over the taps of all channels, each pixel in as many windows."""
        return PASSES * math.sqrt(input_shape[0]) * self.geometry.taps


def config_of(geometry: ConvGeometry) -> dict[str, Any]:
    """A geometry as a configuration: plain values under the names that exported files have."""
    return {
        "stride": geometry.stride,
        "pads": geometry.pads,
        "dilation": geometry.dilation,
        "groups": geometry.groups,
        "padding_mode": geometry.padding_mode,
    }


def _norm(kernel: Tensor, geometry: ConvGeometry, input_shape: Shape) -> float:
    """An upper bound of the norm of the convolution on images of this shape."""
    return norm_of_convolution(as_it_runs(kernel), geometry, (input_shape[-2], input_shape[-1]))


class Convolution(PlainConvolution):
    """A convolution whose padding ``torch.nn.Conv2d`` does not have."""

    TENSORS = ("weight", "bias")

    def forward(self, x: Tensor) -> Tensor:
        """weight * x + bias."""
        return self.convolve(x, self.weight, self.bias)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """The norm on images of this shape."""
        return _norm(self.weight, self.geometry, input_shape)


class ResidualConvolution(PlainConvolution):
    """x - W^T diag(scale) relu(W x + b), for the kernel W and its exact adjoint (SLL, CPL)."""

    TENSORS = ("kernel", "bias", "scale")
    kernel: Tensor
    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """The residual map of x."""
        hidden = self.convolve(x, self.kernel, self.bias).relu()
        second = self.scale.view(-1, 1, 1, 1) * self.kernel
        left, right, top, bottom = self.pads
        reach: tuple[int, int] = (top, left)
        if self.padding_mode == "circular" or left != right or top != bottom:
            hidden, reach = self.pad(hidden, "_after"), (top + bottom, left + right)
        return x - F.conv_transpose2d(hidden, second, None, 1, reach, 0, self.groups, self.dilation)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """From the norm of the scaled kernel on images of this shape."""
        image, geometry = (input_shape[-2], input_shape[-1]), self.geometry
        options = {"pads": geometry.pads, "dilation": geometry.dilation, "groups": geometry.groups}
        norms = effective_norms(self.kernel, self.scale, image, **options, padding_mode=geometry.padding_mode)
        return residual_bound(*norms)


class ResidualDense(Plain):
    """x - W^T diag(scale) relu(W x + b) for a matrix W."""

    TENSORS = ("kernel", "bias", "scale")
    kernel: Tensor
    bias: Tensor | None
    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """The residual map of x."""
        hidden = F.linear(x, self.kernel, self.bias).relu()
        return x - F.linear(hidden, (self.scale.view(-1, 1) * self.kernel).t())

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """From the norm of the scaled matrix."""
        return residual_bound(*effective_norms(self.kernel, self.scale))

    def roundings(self, input_shape: Shape) -> float:
        """Sums over the inputs, and over the inner features."""
        return PASSES * math.sqrt(max(self.kernel.shape))


class Exponential(PlainConvolution):
    """gain sum_{t <= terms} K^t x / t! + bias for a skew kernel K (SOC)."""

    TENSORS = ("kernel", "bias")
    kernel: Tensor
    terms: int
    gain: float

    def forward(self, x: Tensor) -> Tensor:
        """x + K(x + K(x + ...)/2)/1, innermost first."""
        y = x
        for t in range(self.terms, 0, -1):
            y = x + self.convolve(y, self.kernel / t, None)
        y = y if self.gain == 1 else y * self.gain
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """The largest |p_T(i theta)| up to the norm of K; of a kernel that is not skew, sum_t |K|^t / t!."""
        norm = _norm(self.kernel, self.geometry, input_shape)
        grouped = self.kernel.detach().unflatten(0, (self.groups, -1))
        if torch.equal(grouped, -grouped.transpose(1, 2).flip(3, 4)):
            return largest_modulus(self.terms, norm) * self.gain
        return self.gain * sum(norm**t / math.factorial(t) for t in range(self.terms + 1))
