"""One-dimensional convolutions by one orthogonal matrix per frequency: BRO, Cayley, LOT."""

from __future__ import annotations

import torch
from torch import nn

from fastlip.kernels.common.literals import Backend, Device, Padding1d, PaddingMode, Side
from fastlip.nn.base import LipschitzLayer
from fastlip.nn.bro import BROConv2d, build_bro
from fastlip.nn.cayley import CayleyConv2d, build_cayley
from fastlip.nn.lot import LOTConv2d, build_lot
from fastlip.nn.sequences.layer import of_sequences, row_sizes


@of_sequences(BROConv2d)
class BROConv1d(LipschitzLayer):
    r"""Orthogonal convolution of sequences: at each frequency a reflection that negates n columns given by a kernel.

    The layer is :class:`BROConv2d` on images of one row. Lai, Huang, Kung, Chien, *Enhancing Certified Robustness via
    Block Reflector Orthogonal Layers and Logit Annealing Loss*, ICML 2025. Circular padding: orthogonal (orthonormal
    rows or columns at every frequency where in_channels * stride != out_channels); zero padding: Lipschitz constant
    at most 1. A stride makes channels of patches first. Initial values: normal numbers; bias 0.

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
        rank: n, an int from 1 to m, or a fraction of m; default 0.125.
        quasi_residual: s: an identity is added before the weight is made orthogonal, as in :class:`BROConv2d`; True
            is 1; default False. For in_channels = out_channels and stride 1 only.

    Shapes: (n, in_channels, l) or (in_channels, l) to the shapes of ``torch.nn.Conv1d``; ceil(l / stride) entries.
    Parameters: ``raw_weight`` (groups * m, n, 1, ceil(kernel_size / stride)) with m = max(out_channels, in_channels *
    stride) / groups, ``bias`` (out_channels).

    Raises:
        TypeError: a size that is neither an int nor a tuple of one.
        ValueError: another padding or padding mode, a dilated stride, groups that do not divide the channels, a rank
            out of range, a quasi_residual of a layer that is not square.

    >>> layer = lip.BROConv1d(4, 4, 3).eval()
    >>> x = torch.rand(1, 4, 8)
    >>> bool(torch.isclose(layer(x).norm(), x.norm()))
    True
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int]
    stride: tuple[int]
    padding: Padding1d
    dilation: tuple[int]
    groups: int
    padding_mode: PaddingMode
    rank: float
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
        rank: float = 0.125,
        quasi_residual: bool | float = False,
    ):
        sizes = row_sizes(kernel_size, stride, padding, dilation, groups, padding_mode)
        build_bro(self, (in_channels, out_channels), sizes, (bias, device, dtype, backend), rank, quasi_residual)


@of_sequences(CayleyConv2d)
class CayleyConv1d(LipschitzLayer):
    r"""Orthogonal convolution of sequences: at each frequency the Cayley transform of the kernel's matrix.

    The layer is :class:`CayleyConv2d` on images of one row. Trockman, Kolter, *Orthogonalizing Convolutional Layers
    with the Cayley Transform*, ICLR 2021. Circular padding: orthogonal (orthonormal rows or columns at every
    frequency where in_channels * stride != out_channels); zero padding: Lipschitz constant at most 1. A stride makes
    channels of patches first. Initial values: those of ``torch.nn``, alpha at the norm of the weight, bias 0.

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
        quasi_residual: s: an identity is added before the weight is made orthogonal, as in :class:`CayleyConv2d`;
            True is 1; default False. For in_channels = out_channels and stride 1 only.

    Shapes: (n, in_channels, l) or (in_channels, l) to the shapes of ``torch.nn.Conv1d``; ceil(l / stride) entries.
    Parameters: ``raw_weight`` (out_channels, in_channels / groups * stride, 1, ceil(kernel_size / stride)), ``alpha``
    (1), ``bias`` (out_channels).

    Raises:
        TypeError: a size that is neither an int nor a tuple of one.
        ValueError: another padding or padding mode, a dilated stride, groups that do not divide the channels,
            a quasi_residual of a layer that is not square.

    >>> layer = lip.CayleyConv1d(4, 4, 3).eval()
    >>> x = torch.rand(1, 4, 8)
    >>> bool(torch.isclose(layer(x).norm(), x.norm()))
    True
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int]
    stride: tuple[int]
    padding: Padding1d
    dilation: tuple[int]
    groups: int
    padding_mode: PaddingMode
    quasi_residual: float
    raw_weight: nn.Parameter
    alpha: nn.Parameter

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
        build_cayley(self, (in_channels, out_channels), sizes, (bias, device, dtype, backend), quasi_residual)


@of_sequences(LOTConv2d)
class LOTConv1d(LipschitzLayer):
    r"""Orthogonal convolution of sequences: at each frequency the polar factor of the kernel's matrix.

    The layer is :class:`LOTConv2d` on images of one row. Xu, Li, Li, *LOT: Layer-wise Orthogonal Training on
    Improving l2 Certified Robustness*, NeurIPS 2022. Circular padding: orthogonal (orthonormal rows or columns at
    every frequency where in_channels * stride != out_channels); zero padding: Lipschitz constant at most 1. A stride
    makes channels of patches first. Initial values: the Dirac kernel (square) or an orthogonal matrix at the kernel's
    centre; bias 0.

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
        ridge: with ``steps``, the published code's function, see :class:`LOTConv2d`; None: exact.
        steps: number of its Newton steps; None if ``ridge`` is None.
        quasi_residual: s: an identity is added before the weight is made orthogonal, as in :class:`LOTConv2d`; True
            is 1; default False. For in_channels = out_channels and stride 1 only.

    Shapes: (n, in_channels, l) or (in_channels, l) to the shapes of ``torch.nn.Conv1d``; ceil(l / stride) entries.
    Parameters: ``raw_weight`` (out_channels, in_channels / groups * stride, 1, ceil(kernel_size / stride)), ``bias``
    (out_channels).

    Raises:
        TypeError: a size that is neither an int nor a tuple of one.
        ValueError: another padding or padding mode, a dilated stride, groups that do not divide the channels,
            a quasi_residual of a layer that is not square.

    >>> layer = lip.LOTConv1d(4, 4, 3).eval()
    >>> x = torch.rand(1, 4, 8)
    >>> bool(torch.isclose(layer(x).norm(), x.norm()))
    True
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int]
    stride: tuple[int]
    padding: Padding1d
    dilation: tuple[int]
    groups: int
    padding_mode: PaddingMode
    ridge: float | None
    steps: int | None
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
        ridge: float | None = None,
        steps: int | None = None,
        quasi_residual: bool | float = False,
    ):
        sizes = row_sizes(kernel_size, stride, padding, dilation, groups, padding_mode)
        common, options = (bias, device, dtype, backend), (ridge, steps, quasi_residual)
        build_lot(self, (in_channels, out_channels), sizes, common, *options)
