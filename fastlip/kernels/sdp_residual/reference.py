"""The residual map of SLL and CPL layers, as their papers write it; autograd differentiates it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.common.padding import pad
from fastlip.kernels.common.precision import widens
from fastlip.kernels.common.products import few
from fastlip.kernels.maxmin.api import maxmin


def dense(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor) -> Tensor:
    """x − Wᵀ (scale ∘ relu(W x + b)): activations are scaled, so that no call passes over the matrix."""
    hidden = F.linear(x, weight, bias).relu() * scale
    return x - F.linear(hidden, weight.T)


def sdp_residual(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    geometry: ConvGeometry | None,
    pairing: Any,
    backend: Backend,
) -> Tensor:
    """The residual map, dense without a geometry, and MaxMin of the backend after it if a pairing is given."""
    if geometry is None:
        y, channels = dense(x, weight, bias, scale), -1
    else:
        y, channels = convolutional(x, weight, bias, scale, geometry), -1 - geometry.axes
    return y if pairing == "none" else maxmin(y, pairing, channels, backend=backend)


def faster(x: Tensor, weight: Tensor, bias: Any, scale: Any, geometry: ConvGeometry | None, pairing: Any) -> str:
    """Why this reference is faster than kernels; empty with 1x1 kernels and circular padding, at any size."""
    if geometry is None:
        return few(x, weight) or ("torch multiplies in the lower precision that is set" if widens(x.device) else "")
    if geometry.padding_mode == "circular" or geometry.kernel_size == (1, 1) or x.dim() != 4:
        return ""
    channels = weight.shape[0] + weight.shape[1]
    if torch.compiler.is_compiling():
        return images.too_small(x, channels, geometry)
    numbers = x.shape[0] * x.shape[2] * x.shape[3] * channels
    return images.FEW if numbers < images.WORTHWHILE[geometry.padding_mode] else ""


def convolutional(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, geometry: ConvGeometry) -> Tensor:
    """x − W₂ relu(W x + b), W the convolution that keeps the image's size and W₂ = Wᵀ diag(scale)."""
    if geometry.padding_mode == "zeros" and geometry.symmetric:
        convolution = F.conv2d if geometry.axes == 2 else F.conv3d
        hidden = convolution(x, weight, bias, 1, geometry.around, geometry.dilation, geometry.groups).relu()
    else:
        hidden = geometry.convolve(x, weight, bias).relu()
    return x - adjoint(hidden, scale.view(-1, *[1] * (weight.dim() - 1)) * weight, geometry)


def adjoint(y: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """The transpose of the padded convolution: what it pads before an image, its transpose pads after it."""
    transposed = F.conv_transpose2d if geometry.axes == 2 else F.conv_transpose3d
    if geometry.padding_mode == "zeros" and geometry.symmetric:
        return transposed(y, weight, None, 1, geometry.around, 0, geometry.groups, geometry.dilation)
    y = pad(y, geometry.opposite_pads, geometry.padding_mode)
    return transposed(y, weight, None, 1, geometry.totals, 0, geometry.groups, geometry.dilation)
