"""Three-dimensional convolutions with one kernel: AOL."""

from __future__ import annotations

import torch
from torch import nn

from fastlip.kernels.common.literals import Backend, Device, Padding3d, PaddingMode, Sides3d
from fastlip.nn.aol import AOLConv2d, build_aol
from fastlip.nn.base import LipschitzLayer, effective_weight
from fastlip.nn.volumes.layer import of_volumes


@of_volumes(AOLConv2d)
class AOLConv3d(LipschitzLayer):
    r"""Convolution of volumes with a rescaled kernel, P = W r^{-1/2}: a drop-in ``torch.nn.Conv3d``.

    The layer is :class:`AOLConv2d` with one more axis: r_i sums |sum_{o, t} W[o, i, t] W[o, j, t + d]| over channels
    j and offsets d of three axes. Prach, Lampert, *Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz
    Networks*, ECCV 2022. Lipschitz constant at most 1, for every kernel size, stride, dilation and groups, circular
    or zero padding. Cost: one ``conv3d``, and c^3 k^6 / 2 multiply-adds for r. Initial values: the Dirac kernel
    (square) or an orthogonal matrix at the kernel's centre; bias 0.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: number of taps along each axis, (depth, height, width).
        stride: step between two outputs; default 1.
        padding: ``"same"`` (default), ``"valid"``, or the number of entries added on each side.
        dilation: distance of two taps; default 1.
        groups: number of groups of channels; default 1.
        bias: whether a bias is added; default True.
        padding_mode: ``"circular"`` (default) or ``"zeros"``.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``: what computes r; the convolution
            is torch's.
        epsilon: a number added to r, at least 0; default 0.0.
        quasi_residual: s: an identity is added before the weight is rescaled, as in :class:`AOLConv2d`; True is 1;
            default False. For in_channels = out_channels and stride 1 only.

    Shapes: (n, in_channels, d, h, w) or (in_channels, d, h, w) to the shapes of ``torch.nn.Conv3d``; "same" keeps the
    sides. Parameters: ``raw_weight`` (out_channels, in_channels / groups, *kernel_size), ``bias`` (out_channels).
    ``weight`` is P, differentiable in training.

    Raises:
        TypeError: a size that is neither an int nor a tuple of three.
        ValueError: another padding mode, too much circular padding, groups that do not divide the channels,
            a quasi_residual of a layer that is not square.

    >>> layer = lip.AOLConv3d(1, 8, 3, stride=2, padding=1)
    >>> layer(torch.rand(2, 1, 8, 16, 16)).shape, layer.weight.shape
    (torch.Size([2, 8, 4, 8, 8]), torch.Size([8, 1, 3, 3, 3]))
    >>> layer.lipschitz_bound((1, 8, 16, 16)) <= 1 + 1e-6
    True
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: Padding3d
    dilation: tuple[int, int, int]
    groups: int
    padding_mode: PaddingMode
    weight = effective_weight
    epsilon: float
    quasi_residual: float
    raw_weight: nn.Parameter

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
        padding_mode: PaddingMode = "circular",
        device: Device = None,
        dtype: torch.dtype | None = None,
        backend: Backend = "auto",
        *,
        epsilon: float = 0.0,
        quasi_residual: bool | float = False,
    ):
        channels, sizes = (in_channels, out_channels), (kernel_size, stride, padding, dilation, groups, padding_mode)
        build_aol(self, channels, sizes, (bias, device, dtype, backend), epsilon, quasi_residual)
