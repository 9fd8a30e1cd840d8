"""The dense layer on the CPU: torch's products of matrices, and few passes between them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common.channels_last import NAMES
from fastlip.kernels.common.precision import autocasts


def refuse(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, pairing: str) -> str:
    """Empty, or why these products cannot run."""
    if not x.is_cpu:
        return "no kernel for dense weights on other devices than the CPU"
    if pairing != "none":
        return "no kernel for dense weights and a MaxMin"
    if {x.dtype, weight.dtype, scale.dtype, x.dtype if bias is None else bias.dtype} - {x.dtype}:
        return "the kernels need one dtype for all tensors"
    if x.dtype not in NAMES:
        return f"no kernel for dtype {x.dtype}"
    return "under autocast products run in another dtype" if autocasts(x.device) else ""


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor) -> tuple[Tensor, Tensor]:
    """y, and h = relu(W x + b). The scale is a factor of h, which is smaller than W."""
    rows = x.reshape(-1, x.shape[-1])
    h = (rows @ weight.mT if bias is None else torch.addmm(bias, rows, weight.mT)).relu_()
    return torch.addmm(rows, h * scale, weight, alpha=-1).view(x.shape), h


def backward(
    gradient: Tensor, x: Tensor, weight: Tensor, scale: Tensor, h: Tensor | None, needs_x: bool, needs_weight: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x and weight, empty unless needed, of bias and scale. No h was saved of an empty batch."""
    h = x.new_empty(0, len(weight)) if h is None else h
    g, rows = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
    v = g @ weight.mT
    of_scale = torch.linalg.vecdot(v, h, dim=0).neg_()
    u = torch.where(h > 0, v, 0).mul_(scale)
    of_x = of_weight = x.new_empty(0)
    if needs_x:
        of_x = torch.addmm(g, u, weight, alpha=-1).view(x.shape)
    if needs_weight:
        of_weight = torch.addmm(u.mT @ rows, (h * scale).mT, g, beta=-1, alpha=-1)
    return of_x, of_weight, u.sum(0).neg_(), of_scale
