"""SLL: SDP-based Lipschitz layers (Araujo, Havens, Delattre, Allauzen, Hu, ICLR 2023)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.common.literals import Backend
from fastlip.nn._base import at_least_float32, check_nonnegative
from fastlip.nn._residual import ResidualConv2d, ResidualLinear, safe_scale
from fastlip.nn.method import Method


def inner_scale(kernel: Tensor, psi: Tensor, groups: int, epsilon: float, backend: Backend) -> Tensor:
    """2 / T of each inner channel, T_i = epsilon + sum_{j, delta} |(W W^T)_ij(delta)| q_j / q_i, q = exp(psi)."""
    weight, psi = at_least_float32(kernel), at_least_float32(psi)
    adjoint = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    T = ops.gram_rowsum(adjoint, psi, groups, backend=backend) + epsilon
    return safe_scale(T, kernel.dtype)


class SLLConv2d(ResidualConv2d):
    r"""Convolutional residual layer y = x - 2 W^T T^{-1} relu(W x + b), T diagonal.

    .. math:: T_i = \sum_{j,\delta} \Bigl|\sum_{c,\tau} W[i,c,\tau]\, W[j,c,\tau+\delta]\Bigr|\, \frac{q_j}{q_i},
              \qquad q = e^\psi

    Araujo, Havens, Delattre, Allauzen, Hu, *A Unified Algebraic Perspective on Lipschitz Neural Networks*, ICLR
    2023. W is the padded convolution, W^T its exact adjoint; an inner channel with T_i = 0 contributes nothing.

    Guarantee: Lipschitz constant at most 1, for every kernel size, dilation and groups, zero or circular "same"
    padding, any image size. The function does not depend on the image size, nor on train or eval mode; in eval
    mode T is computed once.
    Cost: two convolutions at ``width`` channels, and inner_channels^3 k^4 / 4 multiply-adds for T.

    Width: in_channels * stride_h * stride_w or out_channels, the larger. A stride moves patches into channels
    first (position before channel, sizes that it does not divide padded with zeros: the output has
    ceil(h / stride) rows); missing channels are padded with zeros, and the first out_channels of the result are
    kept, each within its group. All are 1-Lipschitz, and where in_channels = out_channels the identity part of
    the layer is the subsampled image.

    Args: as ``torch.nn.Conv2d`` with ``padding="same"`` only and ``padding_mode`` "zeros" or "circular";
    ``inner_channels`` (the rows of W, default width); ``recompute`` (True keeps half as much for the backward, for
    one more convolution; default only for 1x1 kernels); ``epsilon`` is added to T (default 0; the published code
    adds 1e-6); ``backend``. Initialised at a tenth of Xavier normal (at bias 0
    the layer does not depend on the kernel's size, and learns faster where it is small), psi and bias 0.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to out_channels and ceil(h / stride_h).
    Parameters: ``kernel`` (inner_channels, width / groups, *kernel_size), ``bias`` (inner_channels), ``psi``
    (inner_channels). Raises ValueError for other paddings and padding modes.
    """

    options = ResidualConv2d.options | {"epsilon": partial(check_nonnegative, "epsilon")}

    def __init__(self, *args: Any, epsilon: float = 0.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.epsilon = epsilon

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """Kernel, bias and psi."""
        super().make_parameters(device, dtype)
        self.psi = nn.Parameter(torch.empty(self.inner_channels, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Kernel at a tenth of Xavier normal in each group; bias and psi 0."""
        super().reset_parameters()
        nn.init.zeros_(self.psi)

    def parametrize(self) -> tuple[Tensor, ...]:
        """(2 / T,): the scale of each inner channel."""
        return (inner_scale(self.kernel, self.psi, self.groups, self.epsilon, self.backend),)


class SLLLinear(ResidualLinear):
    r"""Dense residual layer y = x - 2 W^T T^{-1} relu(W x + b), T_i = sum_j |(W W^T)_ij| q_j / q_i, q = e^psi.

    Araujo, Havens, Delattre, Allauzen, Hu, ICLR 2023. Lipschitz constant at most 1; the Jacobian is 1-Lipschitz
    for every mask of the relu, whichever rows of W vanish.

    Inputs of fewer than out_features features are padded with zeros to ``width`` = max(in_features,
    out_features); the first out_features of the result are kept. Both are 1-Lipschitz.

    Args: as ``torch.nn.Linear``; ``inner_features`` (the rows of W, default width); ``backend``.
    Shapes: (*, in_features) to (*, out_features). Parameters: ``kernel`` (inner_features, width), a tenth of
    Xavier normal; ``bias`` and ``psi`` (inner_features), 0.
    """

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """Kernel, bias and psi."""
        super().make_parameters(device, dtype)
        self.psi = nn.Parameter(torch.empty(self.inner_features, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Kernel at a tenth of Xavier normal; bias and psi 0."""
        super().reset_parameters()
        nn.init.zeros_(self.psi)

    def parametrize(self) -> tuple[Tensor, ...]:
        """(2 / T,): the scale of each inner feature."""
        return (inner_scale(self.kernel, self.psi, 1, 0.0, self.backend),)


METHOD = Method("sll", SLLConv2d, SLLLinear, networks=("sll_net",), settings={"digits": {"optimizer.lr": 1.5}})
