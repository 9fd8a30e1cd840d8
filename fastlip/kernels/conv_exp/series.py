"""The series that the three forms of conv_exp apply, and what no kernel of it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common.geometry import ConvGeometry


def refuse(x: Tensor, kernel: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> str:
    """Why the series cannot run on channels-last images, on any device; empty if it can."""
    if x.dim() != 4:
        return "no kernel for images without a batch dimension"
    if geometry.groups != 1:
        return f"no kernel for groups={geometry.groups}"
    return images.refuse(x, (kernel, bias), (geometry,))


class Series(NamedTuple):
    """sum_t c_t K^t, K the convolution with this kernel that keeps an image's size.

    A form is a module with two functions of channels-last images. ``forward(series, x, bias, keep)`` returns y and,
    if they are to be kept, the sums of Horner's rule that are neither x nor y, innermost first. ``backward(series,
    gradient, x, sums)`` returns the gradients of x, of the kernel (None where x is None) and of the bias.
    """

    kernel: Tensor
    coefficients: Sequence[float]
    geometry: ConvGeometry
