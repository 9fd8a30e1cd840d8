"""One-dimensional convolution exponentials: SOC."""

from __future__ import annotations

import torch
from torch import nn

from fastlip.kernels.common.literals import Backend, Device, Padding1d, PaddingMode, Side
from fastlip.nn.base import LipschitzLayer
from fastlip.nn.sequences.layer import of_sequences, row_sizes
from fastlip.nn.soc import DEFAULT_TERMS, Exponential, SOCConv2d, build_soc


@of_sequences(SOCConv2d)
class SOCConv1d(LipschitzLayer):
    r"""Convolution exponential of a skew kernel for sequences, y = exp(L) x + b.

    The layer is :class:`SOCConv2d` on images of one row; series, spectral form and norms are those of that layer.
    Singla, Feizi, *Skew Orthogonal Convolutions*, ICML 2021. Lipschitz constant at most 1 for odd kernels, every
    dilation, groups and stride, zero or circular padding; the spectral form and kernels of one tap are orthogonal
    where no channels are truncated. Initial values: as :class:`SOCConv2d`.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: number of taps.
        stride: step between two outputs; default 1.
        padding: ``"same"`` (default), or the number of entries that equals it.
        dilation: distance of two taps; default 1.
        groups: number of groups of channels; default 1.
        bias: whether a bias is added; default True.
        padding_mode: ``"zeros"`` or ``"circular"``; default None: zeros, circular with ``"spectral"``.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        exponential: ``"series"`` (default) or ``"spectral"``.
        terms: T, 1 to 16; default 4.
        eval_terms: T in eval mode; None: ``terms``.
        max_norm: the largest norm of L; None: min(0.8 sqrt(kernel_size), 2.8).
        recompute: True keeps x alone for the backward, for more convolutions there; default False.
        quasi_residual: s: an identity is added before the weight is made orthogonal, as in :class:`SOCConv2d`; True
            is 1; default False. For in_channels = out_channels and stride 1 only.

    Shapes: (n, in_channels, l) or (in_channels, l) to the shapes of ``torch.nn.Conv1d``; ceil(l / stride) entries.
    Parameters: ``raw_weight`` (c, c / groups, 1, kernel_size) with c = max(in_channels * stride, out_channels),
    ``bias`` (out_channels).

    Raises:
        TypeError: a size that is neither an int nor a tuple of one.
        ValueError: even kernels, another padding or padding mode, the spectral form with zero padding,
            a quasi_residual of a layer that is not square.

    >>> layer = lip.SOCConv1d(4, 4, 3, exponential="spectral").eval()
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
    terms: int
    recompute: bool
    _quasi_residual: float
    raw_weight: nn.Parameter
    eval_terms: int
    max_norm: float

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
        padding_mode: PaddingMode | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
        backend: Backend = "auto",
        *,
        exponential: Exponential = "series",
        terms: int = DEFAULT_TERMS,
        eval_terms: int | None = None,
        max_norm: float | None = None,
        recompute: bool = False,
        quasi_residual: bool | float = False,
    ):
        sizes = row_sizes(kernel_size, stride, padding, dilation, groups, padding_mode)
        common, options = (
            (bias, device, dtype, backend),
            (exponential, terms, eval_terms, max_norm, recompute, quasi_residual),
        )
        build_soc(self, (in_channels, out_channels), sizes, common, *options)
