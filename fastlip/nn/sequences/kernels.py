"""One-dimensional convolutions with one kernel: AOC, AOL, BCOP."""

from __future__ import annotations

import torch
from torch import nn

from fastlip.kernels.common.literals import Backend, Device, Padding1d, PaddingMode, Side
from fastlip.nn.aoc import AOCConv2d, build_aoc
from fastlip.nn.aol import AOLConv2d, build_aol
from fastlip.nn.base import LipschitzLayer
from fastlip.nn.bcop import BCOPConv2d, build_bcop
from fastlip.nn.sequences.layer import of_sequences, row_sizes, row_weight


@of_sequences(AOCConv2d)
class AOCConv1d(LipschitzLayer):
    r"""Orthogonal convolution of sequences, also with a stride: a drop-in ``torch.nn.Conv1d``.

    The layer is :class:`AOCConv2d` on images of one row: the kernel, the guarantee and the initial values are those
    of a kernel of 1 x kernel_size taps. Boissin et al., *An Adaptive Orthogonal Convolution Scheme for Efficient and
    Flexible CNN Architectures*, ICML 2025. Orthogonal with circular "same" padding (orthonormal rows or columns where
    in_channels * stride != out_channels), Lipschitz constant at most 1 with zero padding.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: number of taps.
        stride: step between two outputs; default 1.
        padding: ``"same"`` (default), ``"valid"``, or the number of entries added on each side.
        dilation: distance of two taps; default 1.
        groups: number of groups of channels; default 1.
        bias: whether a bias is added; default True.
        padding_mode: ``"circular"`` (default) or ``"zeros"``.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        quasi_residual: s: an identity is added before the weight is made orthogonal, as in :class:`AOCConv2d`; True
            is 1; default False. For in_channels = out_channels and stride 1 only.

    Shapes: (n, in_channels, l) or (in_channels, l) to the shapes of ``torch.nn.Conv1d``; "same" gives ceil(l /
    stride). Parameters: ``raw_matrix`` and ``raw_bases`` as in :class:`AOCConv2d`, ``bias`` (out_channels).
    ``weight`` is the effective kernel (out_channels, in_channels / groups, kernel_size), differentiable in training.

    Raises:
        TypeError: a size that is neither an int nor a tuple of one.
        ValueError: a kernel smaller than the stride, a dilation that shares a divisor with the stride, another
            padding mode, too much circular padding, and, in forward, circular padding of a length that the stride
            does not divide, a quasi_residual of a layer that is not square.

    >>> layer = lip.AOCConv1d(4, 8, 3, stride=2).eval()
    >>> x = torch.rand(1, 4, 8)
    >>> bool(torch.isclose(layer(x).norm(), x.norm())), layer.weight.shape
    (True, torch.Size([8, 4, 3]))
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int]
    stride: tuple[int]
    padding: Padding1d
    dilation: tuple[int]
    groups: int
    padding_mode: PaddingMode
    weight = row_weight

    quasi_residual: float
    raw_matrix: nn.Parameter
    raw_bases: nn.Parameter | None

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
        quasi_residual: bool | float = False,
    ):
        sizes = row_sizes(kernel_size, stride, padding, dilation, groups, padding_mode)
        build_aoc(self, (in_channels, out_channels), sizes, (bias, device, dtype, backend), quasi_residual)


@of_sequences(AOLConv2d)
class AOLConv1d(LipschitzLayer):
    r"""Convolution of sequences with a rescaled kernel, P = W r^{-1/2}: a drop-in ``torch.nn.Conv1d``.

    The layer is :class:`AOLConv2d` on images of one row: r_i sums |sum_{o, t} W[o, i, t] W[o, j, t + d]| over
    channels j and offsets d. Prach, Lampert, *Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz
    Networks*, ECCV 2022. Lipschitz constant at most 1, for every kernel size, stride, dilation and groups, circular
    or zero padding. Initial values: the Dirac kernel (square) or an orthogonal matrix at the kernel's centre; bias 0.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: number of taps.
        stride: step between two outputs; default 1.
        padding: ``"same"`` (default), ``"valid"``, or the number of entries added on each side.
        dilation: distance of two taps; default 1.
        groups: number of groups of channels; default 1.
        bias: whether a bias is added; default True.
        padding_mode: ``"circular"`` (default) or ``"zeros"``.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        epsilon: a number added to r, at least 0; default 0.0.
        quasi_residual: s: an identity is added before the weight is rescaled, as in :class:`AOLConv2d`; True is 1;
            default False. For in_channels = out_channels and stride 1 only.

    Shapes: (n, in_channels, l) or (in_channels, l) to the shapes of ``torch.nn.Conv1d``; "same" keeps l. Parameters:
    ``raw_weight`` (out_channels, in_channels / groups, 1, kernel_size), ``bias`` (out_channels). ``weight`` is P,
    (out_channels, in_channels / groups, kernel_size), differentiable in training.

    Raises:
        TypeError: a size that is neither an int nor a tuple of one.
        ValueError: another padding mode, too much circular padding, groups that do not divide the channels,
            a quasi_residual of a layer that is not square.

    >>> layer = lip.AOLConv1d(3, 8, 5, stride=2, padding=2)
    >>> layer(torch.rand(2, 3, 32)).shape, layer.weight.shape
    (torch.Size([2, 8, 16]), torch.Size([8, 3, 5]))
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int]
    stride: tuple[int]
    padding: Padding1d
    dilation: tuple[int]
    groups: int
    padding_mode: PaddingMode
    weight = row_weight

    epsilon: float
    quasi_residual: float
    raw_weight: nn.Parameter

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
        epsilon: float = 0.0,
        quasi_residual: bool | float = False,
    ):
        sizes = row_sizes(kernel_size, stride, padding, dilation, groups, padding_mode)
        build_aol(self, (in_channels, out_channels), sizes, (bias, device, dtype, backend), epsilon, quasi_residual)


@of_sequences(BCOPConv2d)
class BCOPConv1d(LipschitzLayer):
    r"""Convolution of sequences with an orthogonal kernel, O (P_1 + (I - P_1) z)(P_2 + (I - P_2) z)...

    The layer is :class:`BCOPConv2d` on images of one row, with kernel_size - 1 projectors. Li, Haque, Anil, Lucas,
    Grosse, Jacobsen, *Preventing Gradient Attenuation in Lipschitz Constrained Convolutional Networks*, NeurIPS 2019.
    Orthogonal with circular padding, stride 1 and in_channels = out_channels; Lipschitz constant at most 1 in every
    other case that is accepted. Initial values: as :class:`BCOPConv2d`.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: number of taps.
        stride: step between two outputs; default 1.
        padding: ``"same"`` (default), ``"valid"``, or the number of entries added on each side.
        dilation: distance of two taps; default 1.
        groups: number of groups of channels; default 1.
        bias: whether a bias is added; default True.
        padding_mode: ``"circular"`` (default) or ``"zeros"``.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        quasi_residual: s: an identity is added before the weight is made orthogonal, as in :class:`BCOPConv2d`; True
            is 1; default False. For in_channels = out_channels and stride 1 only.

    Shapes: (n, in_channels, l) or (in_channels, l) to the shapes of ``torch.nn.Conv1d``; "same" keeps l. Parameters:
    ``raw_matrices`` (groups, kernel_size, c, c) with c = max(in_channels, out_channels) / groups, ``bias``
    (out_channels). ``weight`` is the effective kernel (out_channels, in_channels / groups, kernel_size),
    differentiable in training.

    Raises:
        TypeError: a size that is neither an int nor a tuple of one.
        ValueError: another padding mode, too much circular padding, groups that do not divide the channels,
            a quasi_residual of a layer that is not square.

    >>> layer = lip.BCOPConv1d(4, 4, 3)
    >>> layer.weight.shape, round(layer.lipschitz_bound((4, 8)), 4)
    (torch.Size([4, 4, 3]), 1.0)
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int]
    stride: tuple[int]
    padding: Padding1d
    dilation: tuple[int]
    groups: int
    padding_mode: PaddingMode
    weight = row_weight

    quasi_residual: float
    raw_matrices: nn.Parameter

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
        quasi_residual: bool | float = False,
    ):
        sizes = row_sizes(kernel_size, stride, padding, dilation, groups, padding_mode)
        build_bcop(self, (in_channels, out_channels), sizes, (bias, device, dtype, backend), quasi_residual)
