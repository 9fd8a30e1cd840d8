"""BCOP: orthogonal convolutions as products of projectors, and Björck's orthogonal dense layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.block_conv.reference import alternating_axes
from fastlip.kernels.common.geometry import Pair
from fastlip.kernels.common.literals import Backend, Device, Padding, PaddingMode, Sides
from fastlip.nn._manifold import MANIFOLD, Parametrization, begin_on_manifold, on_manifold, start_on_manifold
from fastlip.nn._quasi_residual import add_gamma, check_quasi_residual, reset_quasi_residual, with_identity
from fastlip.nn.applications.application import CONV_ARGUMENTS, show_conv_arguments
from fastlip.nn.applications.dense import DENSE_ARGUMENTS, POLAR, Dense
from fastlip.nn.applications.kernel import KernelConvolution
from fastlip.nn.arguments import ConvCommon, ConvSizes, conv_geometry, dense_features, make_bias, make_parameter
from fastlip.nn.base import LipschitzLayer, at_least_float32, effective_weight
from fastlip.nn.initial import centre_orthogonal_, identity_or_orthogonal, zero_
from fastlip.nn.method import Method


def build_bcop(
    layer: Any, channels: tuple[int, int], sizes: ConvSizes, common: ConvCommon, quasi_residual: Any
) -> None:
    """Constructs a BCOP convolution of images, or of sequences as images of one row."""
    bias, device, dtype, backend = common
    geometry = conv_geometry(channels, *sizes)
    LipschitzLayer.__init__(layer, KernelConvolution(geometry, orthogonal=True), backend)
    show_conv_arguments(layer, *channels, sizes[2])
    layer.bias = make_bias(channels[1], bias, device, dtype)
    size = max(channels) // geometry.groups
    shape = geometry.groups, sum(geometry.kernel_size) - 1, size, size
    layer.raw_matrices = make_parameter(shape, device, dtype)
    layer.quasi_residual = check_quasi_residual(quasi_residual, channels, geometry.stride)
    add_gamma(layer, shape[:3], device, dtype)
    layer.reset_parameters()


class BCOPConv2d(LipschitzLayer):
    r"""Convolution with an orthogonal kernel, a product of shifts and projections: a drop-in ``torch.nn.Conv2d``.

    The kernel is O (P_1 + (I - P_1) z_x)(P_2 + (I - P_2) z_y)... with

    .. math:: O = \mathrm{polar}(M_0), \qquad V_i = \mathrm{polar}(M_i)_{:,\,:\lfloor c/2 \rfloor}, \qquad
              P_i = V_i V_i^T

    with c = max(in_channels, out_channels) / groups and 1 + (kh - 1) + (kw - 1) matrices M_i per group; the
    projectors lie along the width and the height in turn. Li, Haque, Anil, Lucas, Grosse, Jacobsen, *Preventing
    Gradient Attenuation in Lipschitz Constrained Convolutional Networks*, NeurIPS 2019. The polar factor is exact,
    the limit of the paper's Björck iteration. A 1 x 1 kernel is O itself.

    Guarantee: orthogonal with circular padding, stride 1 and in_channels = out_channels (all singular values 1);
    rows or columns of an orthogonal convolution if the channels differ; Lipschitz constant at most 1 for every
    kernel size, stride, dilation and groups, circular or zero padding (any amount of zeros; circular up to
    dilation * (kernel_size - 1) in total per axis).
    Cost: one convolution, and the polar factors and 13 products (3 x 3) of c x c matrices; in eval mode the kernel
    is computed once.
    Initial values: O = I (random orthogonal if the channels differ) and one random projector P per group, which
    alternates with I - P along each axis: for odd kernels and even c they cancel to a Dirac kernel in the centre,
    from which deep networks learn faster than from random matrices, the paper's choice. Bias 0.

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
        quasi_residual: s: I + s gamma M_0 takes the place of M_0, and so do the matrices of projectors that cancel in
            pairs plus s gamma M_i, with a learnt factor gamma for each row: M = 0 is the Dirac kernel (odd kernels,
            even c); default False. True is 1. For in_channels = out_channels and stride 1 only.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to the shapes of ``torch.nn.Conv2d``; "same" keeps h, w.
    Parameters: ``raw_matrices`` (groups, kh + kw - 1, c, c), ``bias`` (out_channels), with ``quasi_residual``
    also ``gamma`` (groups, kh + kw - 1, c). ``weight`` is the effective kernel, differentiable in training.

    Raises:
        ValueError: another padding mode, too much circular padding, groups that do not divide the channels, a
            quasi_residual of a layer that is not square.

    >>> layer = lip.BCOPConv2d(4, 4, 3)
    >>> layer.weight.shape, round(layer.lipschitz_bound((4, 8, 8)), 4)
    (torch.Size([4, 4, 3, 3]), 1.0)
    """

    in_channels: int
    out_channels: int
    kernel_size: Pair
    stride: Pair
    padding: Padding
    dilation: Pair
    groups: int
    padding_mode: PaddingMode
    _fixed = (*CONV_ARGUMENTS, "quasi_residual")
    _grouped = True
    _application: KernelConvolution
    quasi_residual: float
    raw_matrices: nn.Parameter
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
        quasi_residual: bool | float = False,
    ):
        channels, sizes = (in_channels, out_channels), (kernel_size, stride, padding, dilation, groups, padding_mode)
        build_bcop(self, channels, sizes, (bias, device, dtype, backend), quasi_residual)

    def reset_parameters(self) -> None:
        """O = I or random orthogonal, projectors that cancel in pairs; bias 0."""
        zero_(self.bias)
        if reset_quasi_residual(self, self.raw_matrices, self.raw_matrices.shape[-1]):
            return
        with torch.no_grad():
            for group in self.raw_matrices:
                group[0] = identity_or_orthogonal(self.in_channels == self.out_channels, group[0])
                group[1:] = self._alternating(identity_or_orthogonal(False, group[0]))

    def _alternating(self, basis: Tensor) -> Tensor:
        """(kh + kw - 2, c, c): bases of projectors P and I - P in turn along each axis, P of a basis's first half."""
        axes, half = alternating_axes(self._application.geometry.kernel_size), basis.shape[-1] // 2
        rolled = [basis.roll(-half * (axes[:i].count(axis) % 2), dims=1) for i, axis in enumerate(axes)]
        return torch.stack(rolled) if rolled else basis.new_empty(0, *basis.shape)

    def _matrices(self) -> Tensor:
        """M: the parameter, or with the option the matrices of the Dirac kernel plus its multiples."""
        raw = at_least_float32(self.raw_matrices)
        if not self.quasi_residual:
            return raw
        identity = torch.eye(raw.shape[-1], dtype=raw.dtype, device=raw.device)
        return with_identity(self, raw, torch.cat((identity[None], self._alternating(identity))))

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(kernel,) in conv2d's layout."""
        Q = ops.polar(self._matrices(), backend=self.backend)
        cin, cout = self.in_channels // self.groups, self.out_channels // self.groups
        if self._application.geometry.kernel_size == (1, 1):
            return (Q[:, 0, :cout, :cin].flatten(0, 1)[:, :, None, None],)
        V = Q[:, 1:, :, : Q.shape[-1] // 2]
        axes = alternating_axes(self._application.geometry.kernel_size)
        K = ops.block_conv(Q[:, 0, :cin], V @ V.mT, axes, backend=self.backend)
        # As published, the products act on output channels: the kernel's matrices are transposed.
        return (K[..., :cout].permute(0, 4, 3, 1, 2).flatten(0, 1),)


class BjorckLinear(LipschitzLayer):
    r"""Dense layer y = Q x + b with orthonormal rows (wide) or columns (tall), Q = polar(W).

    The limit of Björck's iteration Q <- 3/2 Q - 1/2 Q Q^T Q, computed exactly (Anil, Lucas, Grosse, *Sorting out
    Lipschitz function approximation*, ICML 2019). Lipschitz constant 1.
    Cost: one polar factor per training step; in eval mode it is computed once.
    Initial values: an orthogonal matrix (the identity if square); bias 0.

    Args:
        in_features: number of input features.
        out_features: number of output features.
        bias: whether a bias is added; default True.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        quasi_residual: s: V = I + s gamma W takes the place of the weight W, with a learnt factor gamma for each row;
            True is 1; default False. For in_features = out_features only.
        parametrization: ``"unconstrained"`` (default), or ``"manifold"``: the parameter is the orthogonal matrix
            itself. It starts where the unconstrained layer starts, and :class:`fastlip.optim.ManifoldOptimizer`
            trains it. Not with ``quasi_residual``.

    Shapes: (*, in_features) to (*, out_features). Parameters: ``raw_weight`` (out_features, in_features), ``bias``
    (out_features), with ``quasi_residual`` also ``gamma`` (out_features); on the
    manifold ``orthogonal_weight`` (out_features, in_features) and ``bias`` alone. ``weight`` is Q.

    >>> layer = lip.BjorckLinear(3, 5)
    >>> torch.allclose(layer.weight.T @ layer.weight, torch.eye(3), atol=1e-5)
    True
    """

    _fixed = (*DENSE_ARGUMENTS, "quasi_residual", "parametrization")
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
        parametrization: Parametrization = "unconstrained",
    ):
        super().__init__(Dense(orthogonal=True, few_vectors=None if parametrization == MANIFOLD else POLAR), backend)
        self.in_features, self.out_features = dense_features(in_features, out_features)
        self.bias = make_bias(out_features, bias, device, dtype)
        self.quasi_residual = check_quasi_residual(quasi_residual, (in_features, out_features))
        if not begin_on_manifold(self, parametrization, device, dtype, {"quasi_residual": quasi_residual}):
            self.raw_weight = make_parameter((out_features, in_features), device, dtype)
            add_gamma(self, (out_features,), device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Identity (square) or an orthogonal matrix; bias 0."""
        if self.parametrization == MANIFOLD:
            return start_on_manifold(self, BjorckLinear)
        if not reset_quasi_residual(self, self.raw_weight, self.out_features):
            centre_orthogonal_(self.raw_weight)
        zero_(self.bias)

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(Q,): the polar factor."""
        if self.parametrization == MANIFOLD:
            return (on_manifold(self),)
        return (ops.polar(with_identity(self, at_least_float32(self.raw_weight)), backend=self.backend),)


METHOD = Method(
    "bcop",
    BCOPConv2d,
    BjorckLinear,
    dense_head=True,
    networks=("lip_next",),
    settings={"digits": {"optimizer.lr": 0.02, "loss.temperature": 0.1}},
    # deel-torchlip has one orthogonalised convolution, that of the reshaped kernel.
    peers={
        "orthogonium": "orthogonium.layers.conv.AOC:AdaptiveOrthoConv2d",
        "deel-torchlip": "deel.torchlip:SpectralConv2d",
    },
)
