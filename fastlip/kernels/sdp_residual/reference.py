"""The residual map of SLL and CPL layers, as their papers write it; autograd differentiates it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.common.literals import PaddingMode
from fastlip.kernels.common.padding import pad, same_pads


def dense(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor) -> Tensor:
    """X − W₂ relu(W x + b), W₂ = Wᵀ diag(scale)."""
    hidden = F.linear(x, weight, bias).relu()
    return x - F.linear(hidden, (scale[:, None] * weight).T)


def convolutional(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    dilation: tuple[int, int],
    groups: int,
    padding_mode: PaddingMode,
) -> Tensor:
    """X − W₂ relu(W x + b), W the "same" padded convolution and W₂ = Wᵀ diag(scale) its scaled adjoint."""
    pads = same_pads(weight.shape[2:], dilation)
    hidden = F.conv2d(pad(x, pads, padding_mode), weight, bias, 1, 0, dilation, groups).relu()
    return x - adjoint(hidden, scale[:, None, None, None] * weight, dilation, groups, padding_mode)


def adjoint(y: Tensor, weight: Tensor, dilation: tuple[int, int], groups: int, padding_mode: PaddingMode) -> Tensor:
    """The transpose of the padded convolution: what it padded before an image, its transpose pads after."""
    left, right, top, bottom = same_pads(weight.shape[2:], dilation)
    if padding_mode == "zeros" and left == right and top == bottom:
        return F.conv_transpose2d(y, weight, None, 1, (top, left), 0, groups, dilation)
    y = pad(y, (right, left, bottom, top), padding_mode)
    return F.conv_transpose2d(y, weight, None, 1, (top + bottom, left + right), 0, groups, dilation)
