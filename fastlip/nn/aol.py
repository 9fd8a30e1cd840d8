"""AOL: almost-orthogonal layers (Prach, Lampert, ECCV 2022)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.common.geometry import Pair
from fastlip.kernels.common.literals import Backend, Device, Padding, PaddingMode, Sides
from fastlip.kernels.gram_rowsum.api import OPERATOR as GRAM_ROWSUM
from fastlip.nn._quasi_residual import add_gamma, check_quasi_residual, reset_quasi_residual, with_identity
from fastlip.nn.applications.application import CONV_ARGUMENTS, show_conv_arguments
from fastlip.nn.applications.dense import DENSE_ARGUMENTS, Dense
from fastlip.nn.applications.kernel import KernelConvolution
from fastlip.nn.arguments import (
    ConvCommon,
    ConvSizes,
    conv_geometry,
    dense_features,
    make_bias,
    make_parameter,
    nonnegative,
)
from fastlip.nn.base import LipschitzLayer, as_it_runs, at_least_float32, effective_weight
from fastlip.nn.initial import centre_orthogonal_, zero_
from fastlip.nn.method import Method

# r is a sum of products, rounded at each step: enlarged by this many roundings, P stays within norm 1.
# Tensor cores do not round their sums but cut them off, which makes 3xTF32 sums of squares too small.
_ROUNDINGS, _ROUNDINGS_ON_GPU = 2, 8
# r counts the absolute values of noise: quasi-residual weights start at 0, or a deep network would lose its signal.
_NO_NOISE = math.inf


def channel_scale(weight: Tensor, groups: int, epsilon: float, backend: Backend) -> Tensor:
    """(r + epsilon)^{-1/2} of each input channel, r_i = sum_{j, delta} |v_ij(delta)|; 0 where r_i = 0."""
    r = GRAM_ROWSUM(weight, None, groups, backend)
    roundings = _ROUNDINGS_ON_GPU if r.is_cuda else _ROUNDINGS
    r = r * (1 + roundings * torch.finfo(r.dtype).eps) + epsilon
    return torch.where(r > 0, r, 1).rsqrt() * (r > 0)


def rescale(raw_weight: Tensor, groups: int, epsilon: float, backend: Backend) -> Tensor:
    """P = W (r + epsilon)^{-1/2} per input channel; r_i = 0 gives P = 0."""
    weight = at_least_float32(raw_weight)
    scale = channel_scale(weight, groups, epsilon, backend)
    if groups == 1:
        return weight * scale.view(-1, *[1] * (weight.dim() - 2))
    per_group = scale.view(groups, 1, -1, *[1] * (weight.dim() - 2))
    return (weight.unflatten(0, (groups, -1)) * per_group).flatten(0, 1)


def certified_norm(layer: AOLConv2d | AOLLinear, exact: float, groups: int) -> float:
    """The smaller of a bound of P's norm and sqrt(max_i sum_{j, delta} |v_ij(delta)| q_j / q_i), q = r^{1/2}."""
    if exact <= 1:
        return exact
    r = ops.gram_rowsum(layer._unscaled().detach().double(), groups=groups)
    psi = torch.where(r > 0, r, 1).log() / 2
    rows = ops.gram_rowsum(as_it_runs(layer.weight).to(r.device), psi, groups)
    length = layer.raw_weight.numel()
    return min(exact, rows.amax().sqrt().item() * (1 + length * torch.finfo(torch.float64).eps))


def build_aol(
    layer: Any, channels: tuple[int, int], sizes: ConvSizes, common: ConvCommon, epsilon: Any, quasi_residual: Any
) -> None:
    """Constructs an AOL convolution along any axes."""
    (cin, cout), (bias, device, dtype, backend) = channels, common
    geometry = conv_geometry(channels, *sizes, axes=layer._axes)
    LipschitzLayer.__init__(layer, KernelConvolution(geometry), backend)
    show_conv_arguments(layer, *channels, sizes[2])
    layer.epsilon = epsilon
    layer.bias = make_bias(cout, bias, device, dtype)
    shape = (cout, cin // geometry.groups, *geometry.kernel_size)
    layer.raw_weight = make_parameter(shape, device, dtype)
    layer.quasi_residual = check_quasi_residual(quasi_residual, channels, geometry.stride)
    add_gamma(layer, shape[:1], device, dtype)
    layer.reset_parameters()


class AOLConv2d(LipschitzLayer):
    r"""Convolution with a rescaled kernel, P = W diag(r)^{-1/2}: a drop-in ``torch.nn.Conv2d``.

    .. math:: r_i = \sum_{j,\delta} \Bigl|\sum_{o,\tau} W[o,i,\tau]\, W[o,j,\tau+\delta]\Bigr|, \qquad
              P[o,i,\tau] = W[o,i,\tau] / \sqrt{r_i}

    Prach, Lampert, *Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz Networks*, ECCV 2022.

    Guarantee: Lipschitz constant at most 1, for every kernel size, stride, dilation and groups, circular or zero
    padding (any amount of zeros; circular up to dilation * (kernel_size - 1) in total per axis).
    Cost: one convolution, and c^3 k^4 / 4 multiply-adds for r; in eval mode r is computed once.
    Initial values: the Dirac kernel (square) or an orthogonal matrix at the kernel's centre; bias 0.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: number of taps along each axis.
        stride: step between two outputs; default 1.
        padding: ``"same"`` (default), ``"valid"``, or the number of pixels added on each side.
        dilation: distance of two taps; default 1.
        groups: number of groups of channels; default 1.
        bias: whether a bias is added; default True.
        padding_mode: ``"circular"`` (default) or ``"zeros"``.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        epsilon: a number added to r, at least 0 (the published code adds 1e-6); default 0.0.
        quasi_residual: s: V = I + s gamma W takes the place of the weight W, with the identity at the centre tap and
            a learnt factor gamma for each row; True is 1; default False. For in_channels = out_channels and stride 1
            only. Then W starts at 0.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to the shapes of ``torch.nn.Conv2d``; "same" keeps h, w.
    Parameters: ``raw_weight`` (out_channels, in_channels / groups, *kernel_size), ``bias`` (out_channels), with
    ``quasi_residual`` also ``gamma`` (out_channels). ``weight`` is P, differentiable in training.

    Raises:
        ValueError: another padding mode, too much circular padding, groups that do not divide the channels, a
            quasi_residual of a layer that is not square.

    >>> layer = lip.AOLConv2d(3, 8, 3, stride=2)
    >>> layer(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 8, 16, 16])
    >>> layer.lipschitz_bound((3, 32, 32)) <= 1 + 1e-6
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
    _options = LipschitzLayer._options | {"epsilon": partial(nonnegative, "epsilon")}
    _fixed = (*CONV_ARGUMENTS, "quasi_residual")
    _grouped = True
    _application: KernelConvolution
    epsilon: float
    quasi_residual: float
    raw_weight: nn.Parameter
    weight = effective_weight

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
        epsilon: float = 0.0,
        quasi_residual: bool | float = False,
    ):
        channels, sizes = (in_channels, out_channels), (kernel_size, stride, padding, dilation, groups, padding_mode)
        build_aol(self, channels, sizes, (bias, device, dtype, backend), epsilon, quasi_residual)

    def reset_parameters(self) -> None:
        """Each group: identity (square) or orthogonal matrix at the kernel's centre; bias 0."""
        if not reset_quasi_residual(self, self.raw_weight, _NO_NOISE):
            centre_orthogonal_(self.raw_weight, self.groups)
        zero_(self.bias)

    def _unscaled(self) -> Tensor:
        """W, or V with ``quasi_residual``, in at least float32."""
        return with_identity(self, at_least_float32(self.raw_weight))

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(P,): the rescaled kernel."""
        weight = self._unscaled() if self.quasi_residual else self.raw_weight
        return (rescale(weight, self.groups, self.epsilon, self.backend),)

    def _factors(self) -> tuple[Tensor, Tensor | None]:
        """In training W and r^{-1/2}, so that the backward need not keep P as well."""
        if self.groups > 1 or self.raw_weight.dtype not in (torch.float32, torch.float64):
            return self._effective()[0], None
        weight = with_identity(self, self.raw_weight)
        scale = channel_scale(at_least_float32(weight), 1, self.epsilon, self.backend)
        return weight, scale.to(weight.dtype)

    @torch.no_grad()
    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """The norm of P on images of this shape, or the Gram row sums of P where they are smaller."""
        return certified_norm(self, self._application.bound(self, input_shape), self.groups)


class AOLLinear(LipschitzLayer):
    r"""Dense layer y = P x + b with P = W diag(r)^{-1/2}, r_i = sum_j |(W^T W)_ij|. Lipschitz constant at most 1.

    Prach, Lampert, *Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz Networks*, ECCV 2022.
    Initial values: an orthogonal matrix (the identity if square); bias 0.

    Args:
        in_features: number of input features.
        out_features: number of output features.
        bias: whether a bias is added; default True.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        quasi_residual: s: V = I + s gamma W takes the place of the weight W, with a learnt factor gamma for each row;
            True is 1; default False. For in_features = out_features only. Then W starts at 0.

    Shapes: (*, in_features) to (*, out_features). Parameters: ``raw_weight`` (out_features, in_features), ``bias``,
    with ``quasi_residual`` also ``gamma`` (out_features). ``weight`` is P.

    >>> layer = lip.AOLLinear(4, 3)
    >>> layer(torch.rand(2, 4)).shape
    torch.Size([2, 3])
    """

    _fixed = (*DENSE_ARGUMENTS, "quasi_residual")
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
        quasi_residual: bool | float = False,
    ):
        super().__init__(Dense(), backend)
        self.in_features, self.out_features = dense_features(in_features, out_features)
        self.bias = make_bias(out_features, bias, device, dtype)
        self.raw_weight = make_parameter((out_features, in_features), device, dtype)
        self.quasi_residual = check_quasi_residual(quasi_residual, (in_features, out_features))
        add_gamma(self, (out_features,), device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Identity (square) or an orthogonal matrix; bias 0."""
        if not reset_quasi_residual(self, self.raw_weight, _NO_NOISE):
            centre_orthogonal_(self.raw_weight)
        zero_(self.bias)

    def _unscaled(self) -> Tensor:
        """W, or V with ``quasi_residual``, in at least float32."""
        return with_identity(self, at_least_float32(self.raw_weight))

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(P,): the rescaled matrix."""
        weight = self._unscaled() if self.quasi_residual else self.raw_weight
        return (rescale(weight, 1, 0.0, self.backend),)

    @torch.no_grad()
    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """The norm of P, or its Gram row sums where they are smaller."""
        return certified_norm(self, super().lipschitz_bound(input_shape), 1)


METHOD = Method(
    "aol",
    AOLConv2d,
    AOLLinear,
    # As published: between layers that start as the identity, the ends of a network mix the channels.
    orthogonal_ends="raw_weight",
    peers={"orthogonium": "orthogonium.layers.conv.AOL.aol:AOLConv2D"},
)
