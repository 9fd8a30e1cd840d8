"""SLL: SDP-based Lipschitz layers (Araujo, Havens, Delattre, Allauzen, Hu, ICLR 2023)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastlip.kernels.common.checks import boolean
from fastlip.kernels.common.geometry import Pair
from fastlip.kernels.common.literals import Backend, Device, Padding, PaddingMode, Sides
from fastlip.kernels.gram_rowsum.api import OPERATOR as GRAM_ROWSUM
from fastlip.nn._earlier import EarlierName
from fastlip.nn._residual import (
    RESIDUAL_CONV_ARGUMENTS,
    RESIDUAL_DENSE_ARGUMENTS,
    begin_residual_conv,
    make_residual_dense,
    reset_kernel,
    show_residual_dense,
)
from fastlip.nn.applications.residual import ResidualConvolution, ResidualDense, safe_scale
from fastlip.nn.arguments import ConvCommon, ConvSizes, make_parameter, nonnegative
from fastlip.nn.base import LipschitzLayer, at_least_float32
from fastlip.nn.initial import zero_
from fastlip.nn.method import Method


def inner_scale(kernel: Tensor, psi: Tensor, groups: int, epsilon: float, backend: Backend) -> Tensor:
    """2 / T of each inner channel, T_i = epsilon + sum_{j, delta} |(W W^T)_ij(delta)| q_j / q_i, q = exp(psi)."""
    weight, psi = at_least_float32(kernel), at_least_float32(psi)
    if groups == 1:
        adjoint = weight.transpose(0, 1)
    else:
        adjoint = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    T = GRAM_ROWSUM(adjoint, psi, groups, backend) + epsilon
    return safe_scale(T, kernel.dtype)


def build_sll(
    layer: Any,
    channels: tuple[int, int],
    sizes: ConvSizes,
    common: ConvCommon,
    inner_channels: Any,
    recompute: Any,
    epsilon: Any,
) -> None:
    """Constructs an SLL convolution along any axes."""
    begin_residual_conv(layer, channels, sizes, common, inner_channels)
    layer.recompute = None if recompute is None else boolean("recompute", recompute)
    layer.epsilon = epsilon
    layer.psi = make_parameter((layer.inner_channels,), *common[1:3])
    layer.reset_parameters()


class SLLConv2d(LipschitzLayer):
    r"""Convolutional residual layer y = x - 2 W^T T^{-1} relu(W x + b), T diagonal.

    .. math:: T_i = \sum_{j,\delta} \Bigl|\sum_{c,\tau} W[i,c,\tau]\, W[j,c,\tau+\delta]\Bigr|\, \frac{q_j}{q_i},
              \qquad q = e^\psi

    Araujo, Havens, Delattre, Allauzen, Hu, *A Unified Algebraic Perspective on Lipschitz Neural Networks*, ICLR
    2023. W is the padded convolution, W^T its exact adjoint; an inner channel with T_i = 0 contributes nothing.

    Guarantee: Lipschitz constant at most 1, for every kernel size, dilation and groups, zero or circular "same"
    padding, any image size. The function does not depend on the image size, nor on train or eval mode; in eval
    mode T is computed once.
    Cost: two convolutions at ``width`` channels, and inner_channels^3 k^4 / 4 multiply-adds for T.
    Initial values: the kernel at a tenth of Xavier normal (at bias 0 the layer does not depend on the kernel's size,
    and learns faster where it is small), psi and bias 0.

    Width: in_channels * stride_h * stride_w or out_channels, the larger. A stride moves patches into channels
    first (position before channel, sizes that it does not divide padded with zeros: the output has
    ceil(h / stride) rows); missing channels are padded with zeros, and the first out_channels of the result are
    kept, each within its group. All are 1-Lipschitz, and where in_channels = out_channels the identity part of
    the layer is the subsampled image.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: number of taps along each axis.
        stride: step between two outputs; default 1.
        padding: ``"same"`` (default).
        dilation: distance of two taps; default 1.
        groups: number of groups of channels; default 1.
        bias: whether a bias is added; default True.
        padding_mode: ``"zeros"`` (default) or ``"circular"``.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        inner_channels: rows of W; None: ``width``.
        recompute: True keeps half as much for the backward, for one more convolution; None (default): for 1x1
            kernels, and on a CPU for 3x3 kernels with up to 64 inner channels.
        epsilon: a number added to T, at least 0 (the published code adds 1e-6); default 0.0.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to out_channels and ceil(h / stride_h).
    Parameters: ``kernel`` (inner_channels, width / groups, *kernel_size), ``bias`` (inner_channels), ``psi``
    (inner_channels).

    Raises:
        ValueError: another padding or padding mode, groups that do not divide the channels.

    >>> layer = lip.SLLConv2d(4, 8, 3, stride=2)
    >>> layer(torch.rand(1, 4, 8, 8)).shape
    torch.Size([1, 8, 4, 4])
    """

    in_channels: int
    out_channels: int
    kernel_size: Pair
    stride: Pair
    padding: Padding
    dilation: Pair
    groups: int
    padding_mode: PaddingMode
    _options = LipschitzLayer._options | {"epsilon": partial(nonnegative, "epsilon")}
    _fixed = RESIDUAL_CONV_ARGUMENTS
    _grouped = True
    _application: ResidualConvolution
    recompute: bool | None
    epsilon: float
    psi: nn.Parameter
    kernel: nn.Parameter
    inner_channels: int
    _width: int
    width = EarlierName()

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sides,
        stride: Sides = 1,
        padding: Padding = "same",
        dilation: Sides = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        backend: Backend = "auto",
        *,
        inner_channels: int | None = None,
        recompute: bool | None = None,
        epsilon: float = 0.0,
    ):
        channels, sizes = (in_channels, out_channels), (kernel_size, stride, padding, dilation, groups, padding_mode)
        build_sll(self, channels, sizes, (bias, device, dtype, backend), inner_channels, recompute, epsilon)

    def reset_parameters(self) -> None:
        """Kernel at a tenth of Xavier normal in each group; bias and psi 0."""
        reset_kernel(self.kernel, self.groups)
        zero_(self.bias, self.psi)

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(2 / T,): the scale of each inner channel."""
        return (inner_scale(self.kernel, self.psi, self.groups, self.epsilon, self.backend),)


class SLLLinear(LipschitzLayer):
    r"""Dense residual layer y = x - 2 W^T T^{-1} relu(W x + b), T_i = sum_j |(W W^T)_ij| q_j / q_i, q = e^psi.

    Araujo, Havens, Delattre, Allauzen, Hu, *A Unified Algebraic Perspective on Lipschitz Neural Networks*, ICLR
    2023. Lipschitz constant at most 1; the Jacobian is 1-Lipschitz for every mask of the relu, whichever rows of W
    vanish. Initial values: the kernel at a tenth of Xavier normal, bias and psi 0.

    Inputs of fewer than out_features features are padded with zeros to ``width`` = max(in_features,
    out_features); the first out_features of the result are kept. Both are 1-Lipschitz.

    Args:
        in_features: number of input features.
        out_features: number of output features.
        bias: whether a bias is added; default True.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        inner_features: rows of W; None: ``width``.

    Shapes: (*, in_features) to (*, out_features). Parameters: ``kernel`` (inner_features, width), ``bias`` and
    ``psi`` (inner_features).

    >>> layer = lip.SLLLinear(4, 3)
    >>> layer(torch.rand(2, 4)).shape
    torch.Size([2, 3])
    """

    _fixed = RESIDUAL_DENSE_ARGUMENTS
    _application: ResidualDense
    kernel: nn.Parameter
    in_features: int
    out_features: int
    inner_features: int
    _width: int
    width = EarlierName()

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        backend: Backend = "auto",
        *,
        inner_features: int | None = None,
    ):
        super().__init__(make_residual_dense(in_features, out_features, inner_features), backend)
        show_residual_dense(self, in_features, out_features, bias, device, dtype)
        self.psi = make_parameter((self.inner_features,), device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kernel at a tenth of Xavier normal; bias and psi 0."""
        reset_kernel(self.kernel)
        zero_(self.bias, self.psi)

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(2 / T,): the scale of each inner feature."""
        return (inner_scale(self.kernel, self.psi, 1, 0.0, self.backend),)


METHOD = Method("sll", SLLConv2d, SLLLinear, networks=("sll_net",), settings={"digits": {"optimizer.lr": 1.5}})
