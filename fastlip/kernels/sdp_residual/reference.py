"""The residual map of SLL and CPL layers, as their papers write it; autograd differentiates it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.padding import pad


def dense(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor) -> Tensor:
    """x − W₂ relu(W x + b), W₂ = Wᵀ diag(scale)."""
    hidden = F.linear(x, weight, bias).relu()
    return x - F.linear(hidden, (scale[:, None] * weight).T)


def convolutional(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, geometry: ConvGeometry) -> Tensor:
    """x − W₂ relu(W x + b), W the convolution that keeps the image's size and W₂ = Wᵀ diag(scale)."""
    hidden = geometry.convolve(x, weight, bias).relu()
    return x - adjoint(hidden, scale[:, None, None, None] * weight, geometry)


def adjoint(y: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """The transpose of the padded convolution: what it pads before an image, its transpose pads after it."""
    left, right, top, bottom = geometry.pads
    if geometry.padding_mode == "zeros" and geometry.symmetric:
        return F.conv_transpose2d(y, weight, None, 1, (top, left), 0, geometry.groups, geometry.dilation)
    y, padding = pad(y, geometry.opposite_pads, geometry.padding_mode), (top + bottom, left + right)
    return F.conv_transpose2d(y, weight, None, 1, padding, 0, geometry.groups, geometry.dilation)
