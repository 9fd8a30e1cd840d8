"""The residual map with a matrix on a CPU: six products (common/products.py) and passes over the activations."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common.geometry import NO_PADS
from fastlip.kernels.common.padding import Pads
from fastlip.kernels.common.precision import autocasts
from fastlip.kernels.common.products import NAMES, product


class Passes(Protocol):
    """The part of the convolutional map's passes that a matrix shares."""

    def relu_backward(self, v: Tensor, h: Tensor, scale: Tensor, halo: Pads, /) -> tuple[Tensor, Tensor, Tensor]:
        """u = -scale v where h > 0, and per channel the sums of u and of -v h."""
        ...


def refusal(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor, pairing: str) -> str:
    """Why these kernels cannot run; empty if they can."""
    if pairing != "none":
        return "no kernel for MaxMin after a matrix"
    dtypes = {tensor.dtype for tensor in (x, weight, bias, scale) if tensor is not None}
    if len(dtypes) > 1 or x.dtype not in NAMES:
        return f"no kernel for dtypes {', '.join(map(str, sorted(dtypes, key=str)))} and a matrix"
    if autocasts(x.device):
        return "under autocast products run in another dtype"
    inner, columns = weight.shape
    if x.shape[-1] != columns or scale.shape != (inner,) or (bias is not None and bias.shape != (inner,)):
        return "shapes do not fit"
    return ""


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, h = relu(W x + b), and no bits."""
    rows = x.reshape(-1, x.shape[-1])
    h = product(rows, weight.T, least=0)
    offset = weight.new_zeros(len(weight)) if bias is None else bias.contiguous()
    images.launch("sdp_residual_relu", _pixels(h), h.data_ptr(), offset.data_ptr(), h.data_ptr(), 0, halo=NO_PADS)
    y = rows.clone(memory_format=torch.contiguous_format)
    product(h, scale[:, None] * weight, out=y, alpha=-1, add=True, least=0)
    return y.view(x.shape), h.view(*x.shape[:-1], len(weight)), x.new_empty(0, dtype=torch.uint8)


def backward(
    gradient: Tensor, x: Tensor, weight: Tensor, scale: Tensor, h: Tensor, wanted: tuple[bool, bool], passes: Passes
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x and weight, empty unless wanted, of bias and scale."""
    rows, g, h = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (x, gradient, h))
    v = product(g, weight.T, least=0)  # and then u: without a halo the pass writes over it
    _, of_bias, of_scale = passes.relu_backward(_pixels(v), _pixels(h), scale.contiguous(), NO_PADS)
    of_x = of_weight = x.new_empty(0)
    if wanted[0]:
        of_x = g.clone(memory_format=torch.contiguous_format)
        product(v, weight, out=of_x, add=True, least=0)
        of_x = of_x.view(x.shape)
    if wanted[1]:
        of_weight, other = product(v.T, rows, least=0), product(h.T, g, least=0)
        of_weight.addcmul_(scale[:, None], other, value=-1)
    return of_x, of_weight, of_bias, of_scale


def _pixels(rows: Tensor) -> Tensor:
    """Vectors as the pixels of one image."""
    return rows.view(1, len(rows), 1, rows.shape[1]).permute(0, 3, 1, 2)
