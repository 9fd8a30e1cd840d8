"""BRO: block reflector orthogonal layers (Lai et al., ICML 2025)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.block_reflector.api import OPERATOR as BLOCK_REFLECTOR
from fastlip.kernels.common.geometry import Pair
from fastlip.kernels.common.literals import Backend, Device, Padding, PaddingMode, Sides
from fastlip.nn._manifold import MANIFOLD, Parametrization, begin_on_manifold, on_manifold, start_on_manifold
from fastlip.nn._quasi_residual import add_gamma, check_quasi_residual, reset_quasi_residual, with_identity
from fastlip.nn.applications.application import CONV_ARGUMENTS, show_conv_arguments
from fastlip.nn.applications.dense import DENSE_ARGUMENTS, Dense
from fastlip.nn.applications.frequency import FrequencyConvolution, check_patches
from fastlip.nn.arguments import ConvCommon, ConvSizes, conv_geometry, dense_features, make_bias, make_parameter
from fastlip.nn.base import LipschitzLayer, at_least_float32, effective_weight
from fastlip.nn.initial import zero_
from fastlip.nn.method import Method


def columns_of_rank(rank: float, size: int) -> int:
    """n, the number of columns of V: a number as it is, a fraction of the size rounded to at least 1.

    Raises:
        TypeError: rank is not a number.
        ValueError: it is an int outside 1 to size, or a float outside (0, 1].
    """
    if isinstance(rank, bool) or not isinstance(rank, (int, float)):
        raise TypeError(f"rank={rank!r}: expected an int or a fraction, got {type(rank).__name__}")
    if isinstance(rank, int):
        if not 1 <= rank <= size:
            raise ValueError(f"rank={rank}: expected an int from 1 to {size}, or a fraction of that")
        return rank
    if not 0 < rank <= 1:
        raise ValueError(f"rank={rank}: expected a fraction above 0 and at most 1, or an int")
    return max(1, round(rank * size))


def reset(layer: BROConv2d | BROLinear) -> None:
    """Normal numbers of variance 1 / (m taps), so that columns of V have norm 1 in the mean; bias 0."""
    raw_weight, groups = layer.raw_weight, getattr(layer, "groups", 1)
    entries = raw_weight.numel() // (groups * raw_weight.shape[1])
    if not reset_quasi_residual(layer, raw_weight, entries):
        nn.init.normal_(raw_weight, std=1 / math.sqrt(entries))
    zero_(layer.bias)


def build_bro(
    layer: Any, channels: tuple[int, int], sizes: ConvSizes, common: ConvCommon, rank: Any, quasi_residual: Any
) -> None:
    """Constructs a BRO convolution along any axes."""
    bias, device, dtype, backend = common
    geometry = conv_geometry(channels, *sizes, axes=layer._axes)
    check_patches(sizes[2], geometry)
    LipschitzLayer.__init__(layer, FrequencyConvolution(geometry, orthogonal=True), backend)
    show_conv_arguments(layer, *channels, sizes[2])
    size, taps = max(layer._sides()), layer._application.taps
    shape = (geometry.groups * size, columns_of_rank(rank, size), *taps)
    layer.rank = rank
    layer.quasi_residual = check_quasi_residual(quasi_residual, channels, geometry.stride)
    layer.bias = make_bias(channels[1], bias, device, dtype)
    layer.raw_weight = make_parameter(shape, device, dtype)
    add_gamma(layer, shape[:1], device, dtype)
    layer.reset_parameters()


class BROConv2d(LipschitzLayer):
    r"""Orthogonal convolution: at each frequency k, the reflection that negates n columns given by a kernel.

    .. math:: Q_k = I - 2 \hat V_k (\hat V_k^H \hat V_k)^{-1} \hat V_k^H

    with matrices V_k of m rows and n columns, where m is the larger number of channels (of a group, after
    space-to-depth) and n the rank. If the numbers of channels differ, Q_k is the first rows or columns of the square
    matrix. It does not depend on the scale of V. A V_k without full rank gives the reflection at what it spans.
    Lai, Huang, Kung, Chien, *Enhancing Certified Robustness via Block Reflector Orthogonal Layers and Logit Annealing
    Loss*, ICML 2025.

    Guarantee: circular padding, orthogonal (all singular values 1; with in_channels != out_channels, orthonormal
    rows or columns at every frequency), for every image size, kernel size, dilation and groups. Zero padding:
    Lipschitz constant at most 1 (the image is embedded in zeros at an FFT size that is larger by dilation *
    (kernel_size - 1), convolved there, and cropped). With a stride, the image's stride x stride patches become
    channels, then follows a convolution of ceil(kernel_size / stride) taps; an image whose side the stride does not
    divide is padded with zeros.
    Cost: in training m^2 n multiply-adds and an n x n Cholesky factor per unique frequency (h w / 2 of them) and two
    Fourier transforms; in eval mode the matrices are computed once per image size. A kernel of one tap has one
    real matrix and no transform.
    Initial values: normal numbers; bias 0.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: number of taps along each axis.
        stride: step between two outputs; default 1.
        padding: ``"same"`` (default), or the numbers of pixels that equal it.
        dilation: distance of two taps; 1 where stride exceeds 1; default 1.
        groups: number of groups of channels; default 1.
        bias: whether a bias is added; default True.
        padding_mode: ``"circular"`` (default) or ``"zeros"``.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        rank: n, an int from 1 to m, or a fraction of m (published: 1/8 and 1/2); default 0.125. A rank of m gives -I.
        quasi_residual: s: V = I + s gamma W takes the place of the weight W, with the identity at the centre tap and
            a learnt factor gamma for each row; True is 1; default False. For in_channels = out_channels and stride 1
            only.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride)).
    Parameters: ``raw_weight`` (groups * m, n, *ceil(kernel_size / stride)) with m = max(out_channels,
    in_channels * stride^2) / groups, ``bias`` (out_channels), with ``quasi_residual`` also ``gamma`` (groups * m).

    Raises:
        TypeError: rank or quasi_residual is not a number.
        ValueError: another padding or padding mode, a dilated stride, groups that do not divide the channels, a rank
            out of range, a quasi_residual of a layer that is not square.

    >>> layer = lip.BROConv2d(4, 4, 3).eval()
    >>> x = torch.rand(1, 4, 8, 8)
    >>> bool(torch.isclose(layer(x).norm(), x.norm()))
    True
    """

    in_channels: int
    out_channels: int
    kernel_size: Pair
    stride: Pair
    padding: Padding
    dilation: Pair
    groups: int
    padding_mode: PaddingMode
    _fixed = (*CONV_ARGUMENTS, "rank", "quasi_residual")
    _application: FrequencyConvolution
    rank: float
    quasi_residual: float
    raw_weight: nn.Parameter

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
        padding_mode: PaddingMode = "circular",
        device: Device = None,
        dtype: torch.dtype | None = None,
        backend: Backend = "auto",
        *,
        rank: float = 0.125,
        quasi_residual: bool | float = False,
    ):
        channels, sizes = (in_channels, out_channels), (kernel_size, stride, padding, dilation, groups, padding_mode)
        build_bro(self, channels, sizes, (bias, device, dtype, backend), rank, quasi_residual)

    def _sides(self) -> tuple[int, int]:
        """Rows and columns of the matrix of one group."""
        outputs, inputs, *_ = self._application.weight_shape(self)
        return outputs // self.groups, inputs

    def reset_parameters(self) -> None:
        """Normal numbers for which the columns of V have norm 1 in the mean; bias 0."""
        reset(self)

    def _parametrize(self, *fft_size: int) -> tuple[Tensor, ...]:
        """(Q,): (F, cout, cin / groups) at the unique frequencies; (cout, cin / groups, 1, 1) for one tap."""
        V, (rows, columns) = with_identity(self, at_least_float32(self.raw_weight)), self._sides()
        if fft_size:
            V = ops.kernel_spectrum(V, fft_size, self._application.geometry.dilation)
            V = V.unflatten(1, (self.groups, -1))
            return (BLOCK_REFLECTOR(V, rows, columns, self.backend).flatten(1, 2),)
        V = V.flatten(1).unflatten(0, (self.groups, -1))
        Q = ops.block_reflector(V, rows, columns, backend=self.backend)
        return (Q.flatten(0, 1)[(..., *[None] * self._application.geometry.axes)],)

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        return f"{LipschitzLayer.extra_repr(self)}, rank={self.rank}"


class BROLinear(LipschitzLayer):
    r"""Dense layer y = Q x + b with Q = I - 2 V (V^T V)^{-1} V^T: orthogonal, or orthonormal rows or columns.

    V has n columns, the rank. With in_features != out_features, Q is the first rows or columns of the larger square
    matrix. Lai, Huang, Kung, Chien, *Enhancing Certified Robustness via Block Reflector Orthogonal Layers and Logit
    Annealing Loss*, ICML 2025. Lipschitz constant 1. Initial values: normal numbers; bias 0.

    Args:
        in_features: number of input features.
        out_features: number of output features.
        bias: whether a bias is added; default True.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        rank: n, an int from 1 to the larger number of features, or a fraction of that; default 0.125.
        quasi_residual: s: V = I + s gamma W takes the place of the weight W, with a learnt factor gamma for each row;
            True is 1; default False. For in_features = out_features only.
        parametrization: ``"unconstrained"`` (default), or ``"manifold"``: the parameter is the orthogonal matrix
            itself. It starts where the unconstrained layer starts, and :class:`fastlip.optim.ManifoldOptimizer`
            trains it. Not with ``quasi_residual``.

    Shapes: (*, in_features) to (*, out_features). Parameters: ``raw_weight`` (max(in_features, out_features), n),
    ``bias`` (out_features), with ``quasi_residual`` also ``gamma`` (out_features); on the
    manifold ``orthogonal_weight`` (out_features, in_features) and ``bias`` alone. ``weight`` is Q; in eval mode it
    is computed once.

    >>> layer = lip.BROLinear(4, 4)
    >>> torch.allclose(layer.weight @ layer.weight, torch.eye(4), atol=1e-5)
    True
    """

    _fixed = (*DENSE_ARGUMENTS, "rank", "quasi_residual", "parametrization")
    _application: Dense
    weight = effective_weight

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        backend: Backend = "auto",
        *,
        rank: float = 0.125,
        quasi_residual: bool | float = False,
        parametrization: Parametrization = "unconstrained",
    ):
        super().__init__(Dense(orthogonal=True), backend)
        self.in_features, self.out_features = dense_features(in_features, out_features)
        size = max(in_features, out_features)
        shape = size, columns_of_rank(rank, size)
        self.rank = rank
        self.quasi_residual = check_quasi_residual(quasi_residual, (in_features, out_features))
        self.bias = make_bias(out_features, bias, device, dtype)
        if not begin_on_manifold(self, parametrization, device, dtype, {"quasi_residual": quasi_residual}):
            self.raw_weight = make_parameter(shape, device, dtype)
            add_gamma(self, shape[:1], device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal numbers for which the columns of V have norm 1 in the mean; bias 0."""
        if self.parametrization == MANIFOLD:
            return start_on_manifold(self, partial(BROLinear, rank=self.rank))
        reset(self)

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(Q,): the reflection, or its first rows or columns."""
        if self.parametrization == MANIFOLD:
            return (on_manifold(self),)
        V = with_identity(self, at_least_float32(self.raw_weight))
        return (ops.block_reflector(V, self.out_features, self.in_features, backend=self.backend),)

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        return f"{LipschitzLayer.extra_repr(self)}, rank={self.rank}"


METHOD = Method(
    "bro",
    BROConv2d,
    BROLinear,
    dense_head=True,
    networks=("bro_net", "lip_next"),
    settings={"digits": {"optimizer.lr": 0.05, "loss.temperature": 0.1}},
)
