"""One-dimensional layers with an activation inside: CPL, SLL, Sandwich."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastlip.kernels.common.literals import Backend, Device, Padding1d, PaddingMode, Side
from fastlip.nn.applications.sandwich import SandwichActivation
from fastlip.nn.base import LipschitzLayer
from fastlip.nn.cpl import CPLConv2d, TrainingSigma, build_cpl
from fastlip.nn.sandwich import SandwichConv2d, build_sandwich
from fastlip.nn.sequences.layer import of_sequences, row_sizes
from fastlip.nn.sll import SLLConv2d, build_sll


@of_sequences(CPLConv2d)
class CPLConv1d(LipschitzLayer):
    r"""Residual layer of sequences, y = x - (2 / sigma^2) W^T relu(W x + b), sigma an upper bound of the norm of W.

    The layer is :class:`CPLConv2d` on images of one row; width, stride and padding of channels are those of that
    layer. Meunier, Delattre, Araujo, Allauzen, *A Dynamical System Perspective for Lipschitz Neural Networks*, ICML
    2022. Lipschitz constant at most 1, for every kernel size, dilation and groups, zero or circular "same" padding.
    With ``training_sigma="power"`` that holds in eval mode only. Initial values: as :class:`CPLConv2d`.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: number of taps.
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
        recompute: True keeps half as much for the backward; None: only for kernels of one tap.
        training_sigma: ``"bound"`` (default), or ``"power"``: a power iteration in train mode.

    Shapes: (n, in_channels, l) or (in_channels, l) to the shapes of ``torch.nn.Conv1d``; ceil(l / stride) entries.
    Parameters: ``kernel`` (inner_channels, width / groups, 1, kernel_size) with width = max(in_channels * stride,
    out_channels), ``bias`` (inner_channels). Buffers: as :class:`CPLConv2d`.

    Raises:
        TypeError: a size that is neither an int nor a tuple of one.
        ValueError: another padding, padding mode or value of training_sigma, groups that do not divide the channels.

    >>> layer = lip.CPLConv1d(4, 8, 3, stride=2)
    >>> layer(torch.rand(1, 4, 8)).shape
    torch.Size([1, 8, 4])
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int]
    stride: tuple[int]
    padding: Padding1d
    dilation: tuple[int]
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
        kernel_size: Side,
        stride: Side = 1,
        padding: Padding1d = "same",
        dilation: Side = 1,
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
        sizes = row_sizes(kernel_size, stride, padding, dilation, groups, padding_mode)
        common, options = (bias, device, dtype, backend), (inner_channels, recompute, training_sigma)
        build_cpl(self, (in_channels, out_channels), sizes, common, *options)


@of_sequences(SLLConv2d)
class SLLConv1d(LipschitzLayer):
    r"""Residual layer of sequences, y = x - 2 W^T T^{-1} relu(W x + b), T diagonal.

    The layer is :class:`SLLConv2d` on images of one row; T, width, stride and padding of channels are those of that
    layer. Araujo, Havens, Delattre, Allauzen, Hu, *A Unified Algebraic Perspective on Lipschitz Neural Networks*,
    ICLR 2023. Lipschitz constant at most 1, for every kernel size, dilation and groups, zero or circular "same"
    padding. Initial values: the kernel at a tenth of Xavier normal, psi and bias 0.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: number of taps.
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
        recompute: True keeps half as much for the backward; None: only for kernels of one tap.
        epsilon: a number added to T, at least 0; default 0.0.

    Shapes: (n, in_channels, l) or (in_channels, l) to the shapes of ``torch.nn.Conv1d``; ceil(l / stride) entries.
    Parameters: ``kernel`` (inner_channels, width / groups, 1, kernel_size) with width = max(in_channels * stride,
    out_channels), ``bias`` and ``psi`` (inner_channels).

    Raises:
        TypeError: a size that is neither an int nor a tuple of one.
        ValueError: another padding or padding mode, groups that do not divide the channels.

    >>> layer = lip.SLLConv1d(4, 8, 3, stride=2)
    >>> layer(torch.rand(1, 4, 8)).shape
    torch.Size([1, 8, 4])
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int]
    stride: tuple[int]
    padding: Padding1d
    dilation: tuple[int]
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
        kernel_size: Side,
        stride: Side = 1,
        padding: Padding1d = "same",
        dilation: Side = 1,
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
        sizes = row_sizes(kernel_size, stride, padding, dilation, groups, padding_mode)
        common, options = (bias, device, dtype, backend), (inner_channels, recompute, epsilon)
        build_sll(self, (in_channels, out_channels), sizes, common, *options)


@of_sequences(SandwichConv2d)
class SandwichConv1d(LipschitzLayer):
    r"""Sandwich layer of sequences, y = sqrt(2) A^T Psi sigma(sqrt(2) Psi^{-1} B x + b), A A^T + B B^T = I.

    The layer is :class:`SandwichConv2d` on images of one row. Wang, Manchester, *Direct Parameterization of
    Lipschitz-Bounded Deep Networks*, ICML 2023. Lipschitz constant at most 1, for every length, kernel size, dilation
    and groups, circular or zero padding. A stride makes channels of patches first. Initial values: as
    :class:`SandwichConv2d`.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: number of taps.
        stride: step between two outputs; default 1.
        padding: ``"same"`` (default), or the number of entries that equals it.
        dilation: distance of two taps; 1 where stride exceeds 1; default 1.
        groups: number of groups of channels; default 1.
        bias: whether a bias is added; default True.
        padding_mode: ``"circular"`` (default) or ``"zeros"``.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        activation: sigma: ``"relu"`` (default), ``"softplus"`` or ``"tanh"``.

    Shapes: (n, in_channels, l) or (in_channels, l) to the shapes of ``torch.nn.Conv1d``; ceil(l / stride) entries.
    Parameters: ``raw_weight`` (out_channels, (out_channels + in_channels * stride) / groups, 1, ceil(kernel_size /
    stride)), ``alpha`` (1), ``bias`` (out_channels), ``psi`` (out_channels; None for relu without a bias).

    Raises:
        TypeError: a size that is neither an int nor a tuple of one.
        ValueError: another activation, padding or padding mode, a dilated stride, groups that do not divide the
            channels.

    >>> layer = lip.SandwichConv1d(4, 8, 3, stride=2)
    >>> layer(torch.rand(1, 4, 8)).shape
    torch.Size([1, 8, 4])
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int]
    stride: tuple[int]
    padding: Padding1d
    dilation: tuple[int]
    groups: int
    padding_mode: PaddingMode
    activation: SandwichActivation
    raw_weight: nn.Parameter
    alpha: nn.Parameter
    psi: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Side,
        stride: Side = 1,
        padding: Padding1d = "same",
        dilation: Side = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "circular",
        device: Device = None,
        dtype: torch.dtype | None = None,
        backend: Backend = "auto",
        *,
        activation: SandwichActivation = "relu",
    ):
        sizes = row_sizes(kernel_size, stride, padding, dilation, groups, padding_mode)
        build_sandwich(self, (in_channels, out_channels), sizes, (bias, device, dtype, backend), activation)
