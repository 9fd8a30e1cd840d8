"""Modules with a kernel or a matrix: convolutions, residual layers and exponentials."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.exporting.plain._module import PASSES, Plain, Shape
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.literals import PaddingMode
from fastlip.kernels.conv_exp.truncation import largest_modulus
from fastlip.kernels.spectral_norm.api import convolution_norm
from fastlip.nn.applications.residual import effective_norms, residual_bound
from fastlip.nn.base import as_it_runs

_NAMES = "planes", "rows", "columns"  # of the tables of indices along each axis


class PlainConvolution(Plain):
    """Geometry and padding of the convolutions below. ``image`` is the size for which they were exported."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...] = ()
    pads: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: PaddingMode
    image: tuple[int, ...] | None

    def make_tables(self) -> None:
        """The geometry, and indices where circular padding exceeds the image, which F.pad refuses."""
        kernel_size = tuple(self.kernel_of_module().shape[2:])
        stride = self.stride or (1,) * len(kernel_size)
        self.geometry = ConvGeometry(kernel_size, stride, self.pads, self.dilation, self.groups, self.padding_mode)
        self.wraps = False
        if self.padding_mode == "circular" and self.image is not None:
            before, after = self.pads[-2::-2], self.pads[::-2]
            axes = list(zip(_NAMES[-len(kernel_size) :], self.image, before, after, strict=True))
            self.wraps = any(max(start, end) > side for _, side, start, end in axes)
            if self.wraps:
                # "after": the adjoint of a padding before the image pads after it.
                for name, side, start, end in axes:
                    self.register_buffer(name, torch.arange(-start, side + end) % side)
                    self.register_buffer(f"{name}_after", torch.arange(-end, side + start) % side)

    def pad(self, x: Tensor, after: str = "") -> Tensor:
        """x, padded as the convolution pads it, or with "_after" as its adjoint does."""
        pads = self.geometry.opposite_pads if after else self.pads
        if not any(pads):
            return x
        if self.padding_mode == "zeros":
            return F.pad(x, pads)
        if not self.wraps:
            return F.pad(x, pads, mode="circular")
        axes = range(-self.geometry.axes, 0)
        # The tables hold for one size: at another the output would be cropped, repeated, or of another map.
        for axis, side in zip(axes, self.image, strict=True) if self.image else ():
            torch._assert(x.shape[axis] == side, f"exported for images of {self.image} (after its stride)")
        for axis, name in zip(axes, _NAMES[-self.geometry.axes :], strict=True):
            x = x[(..., self.get_buffer(f"{name}{after}"), *[slice(None)] * (-1 - axis))]
        return x

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The padded convolution."""
        geometry = self.geometry
        stride, dilation, groups = geometry.stride, geometry.dilation, geometry.groups
        convolution = F.conv2d if geometry.axes == 2 else F.conv3d
        if self.padding_mode == "zeros" and geometry.symmetric:
            return convolution(x, weight, bias, stride, geometry.around, dilation, groups)
        return convolution(self.pad(x), weight, bias, stride, 0, dilation, groups)

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
    return convolution_norm(as_it_runs(kernel), input_shape[-geometry.axes :], geometry).item()


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
        geometry = self.geometry
        second = self.scale.view(-1, *[1] * (1 + geometry.axes)) * self.kernel
        reach = geometry.around
        if self.padding_mode == "circular" or not geometry.symmetric:
            hidden, reach = self.pad(hidden, "_after"), geometry.totals
        transposed = F.conv_transpose2d if geometry.axes == 2 else F.conv_transpose3d
        return x - transposed(hidden, second, None, 1, reach, 0, self.groups, self.dilation)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """From the norm of the scaled kernel on images of this shape."""
        geometry = self.geometry
        image = input_shape[-geometry.axes :]
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
