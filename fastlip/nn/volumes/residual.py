"""Three-dimensional layers with an activation inside: CPL, SLL."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlip.kernels.common.literals import Backend, Device, Padding3d, PaddingMode, Sides3d
from fastlip.nn.base import LipschitzLayer
from fastlip.nn.cpl import CPLConv2d, TrainingSigma, build_cpl
from fastlip.nn.sll import SLLConv2d, build_sll
from fastlip.nn.volumes.layer import of_volumes


@of_volumes(CPLConv2d)
class CPLConv3d(LipschitzLayer):
    r"""Residual layer of volumes, y = x - (2 / sigma^2) W^T relu(W x + b), sigma an upper bound of the norm of W.

    The layer is :class:`CPLConv2d` with one more axis; width, stride and padding of channels are those of that layer,
    with patches of stride^3 entries. Meunier, Delattre, Araujo, Allauzen, *A Dynamical System Perspective for
    Lipschitz Neural Networks*, ICML 2022. Lipschitz constant at most 1, for every kernel size, dilation and groups,
    zero or circular "same" padding. With ``training_sigma="power"`` that holds in eval mode only, and training is
    much cheaper: sigma looks at up to (17 (kernel_size - 1))^3 / 2 frequencies. Initial values: as
    :class:`CPLConv2d`.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: number of taps along each axis, (depth, height, width).
        stride: step between two outputs; default 1.
        padding: ``"same"`` (default).
        dilation: distance of two taps; default 1.
        groups: number of groups of channels; default 1.
        bias: whether a bias is added; default True.
        padding_mode: ``"zeros"`` (default) or ``"circular"``.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default) or ``"reference"``, which are the same: ``"native"`` and ``"triton"`` raise
            ValueError in forward.
        inner_channels: rows of W; None: ``width``.
        recompute: as in :class:`CPLConv2d`; without effect here.
        training_sigma: ``"bound"`` (default), or ``"power"``: a power iteration in train mode.

    Shapes: (n, in_channels, d, h, w) or (in_channels, d, h, w) to out_channels and ceil(side / stride).
    Parameters: ``kernel`` (inner_channels, width / groups, *kernel_size) with width = max(in_channels * stride^3,
    out_channels), ``bias`` (inner_channels). Buffers: as :class:`CPLConv2d`.

    Raises:
        TypeError: a size that is neither an int nor a tuple of three.
        ValueError: another padding, padding mode or value of training_sigma, groups that do not divide the channels.

    >>> layer = lip.CPLConv3d(4, 8, 3, stride=2)
    >>> layer(torch.rand(1, 4, 4, 8, 8)).shape
    torch.Size([1, 8, 2, 4, 4])
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: Padding3d
    dilation: tuple[int, int, int]
    groups: int
    padding_mode: PaddingMode
    recompute: bool | None
    _training_sigma: TrainingSigma
    kernel: nn.Parameter
    inner_channels: int
    fixed_scale: Tensor
    power_vector: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sides3d,
        stride: Sides3d = 1,
        padding: Padding3d = "same",
        dilation: Sides3d = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        backend: Backend = "auto",
        *,
        inner_channels: int | None = None,
        recompute: bool | None = None,
        training_sigma: TrainingSigma = "bound",
    ):
        channels, sizes = (in_channels, out_channels), (kernel_size, stride, padding, dilation, groups, padding_mode)
        build_cpl(self, channels, sizes, (bias, device, dtype, backend), inner_channels, recompute, training_sigma)


@of_volumes(SLLConv2d)
class SLLConv3d(LipschitzLayer):
    r"""Residual layer of volumes, y = x - 2 W^T T^{-1} relu(W x + b), T diagonal.

    The layer is :class:`SLLConv2d` with one more axis; T, width, stride and padding of channels are those of that
    layer, with patches of stride^3 entries. Araujo, Havens, Delattre, Allauzen, Hu, *A Unified Algebraic Perspective
    on Lipschitz Neural Networks*, ICLR 2023. Lipschitz constant at most 1, for every kernel size, dilation and
    groups, zero or circular "same" padding, any size. Initial values: as :class:`SLLConv2d`.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: number of taps along each axis, (depth, height, width).
        stride: step between two outputs; default 1.
        padding: ``"same"`` (default).
        dilation: distance of two taps; default 1.
        groups: number of groups of channels; default 1.
        bias: whether a bias is added; default True.
        padding_mode: ``"zeros"`` (default) or ``"circular"``.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default) or ``"reference"``: T has kernels under ``"auto"``, the residual map has none,
            so that ``"native"`` and ``"triton"`` raise ValueError in forward.
        inner_channels: rows of W; None: ``width``.
        recompute: as in :class:`SLLConv2d`; without effect here.
        epsilon: a number added to T, at least 0; default 0.0.

    Shapes: (n, in_channels, d, h, w) or (in_channels, d, h, w) to out_channels and ceil(side / stride).
    Parameters: ``kernel`` (inner_channels, width / groups, *kernel_size) with width = max(in_channels * stride^3,
    out_channels), ``bias`` and ``psi`` (inner_channels).

    Raises:
        TypeError: a size that is neither an int nor a tuple of three.
        ValueError: another padding or padding mode, groups that do not divide the channels.

    >>> layer = lip.SLLConv3d(4, 8, 3, stride=2)
    >>> layer(torch.rand(1, 4, 4, 8, 8)).shape
    torch.Size([1, 8, 2, 4, 4])
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: Padding3d
    dilation: tuple[int, int, int]
    groups: int
    padding_mode: PaddingMode
    recompute: bool | None
    epsilon: float
    psi: nn.Parameter
    kernel: nn.Parameter
    inner_channels: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sides3d,
        stride: Sides3d = 1,
        padding: Padding3d = "same",
        dilation: Sides3d = 1,
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
