"""Cayley layers (Trockman, Kolter, ICLR 2021)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.cayley_linear.api import pays
from fastlip.kernels.common.geometry import Pair
from fastlip.kernels.common.literals import Backend, Device, Padding, PaddingMode, Sides
from fastlip.kernels.spectral_cayley.api import OPERATOR as SPECTRAL_CAYLEY
from fastlip.nn._manifold import MANIFOLD, Parametrization, begin_on_manifold, on_manifold, start_on_manifold
from fastlip.nn._quasi_residual import add_gamma, check_quasi_residual, reset_quasi_residual, with_identity
from fastlip.nn.applications import training_cayley
from fastlip.nn.applications.application import CONV_ARGUMENTS, show_conv_arguments
from fastlip.nn.applications.dense import DENSE_ARGUMENTS, Dense, FewVectors
from fastlip.nn.applications.frequency import FrequencyConvolution, check_patches
from fastlip.nn.arguments import ConvCommon, ConvSizes, conv_geometry, dense_features, make_bias, make_parameter
from fastlip.nn.base import LipschitzLayer, at_least_float32, effective_weight
from fastlip.nn.initial import zero_
from fastlip.nn.method import Method


def normalize(raw_weight: Tensor, alpha: Tensor) -> Tensor:
    """M = alpha W / ||W||_F, in at least float32; W = 0 gives 0.

    Several alpha are those of as many equal parts of W.
    """
    weight = at_least_float32(raw_weight)
    if len(alpha) > 1:
        parts = weight.unflatten(0, (len(alpha), -1))
        norms = torch.linalg.vector_norm(parts.flatten(1), dim=1)
        factors = at_least_float32(alpha) / torch.where(norms > 0, norms, 1)
        return (parts * factors.view(-1, *[1] * weight.dim())).flatten(0, 1)
    norm = torch.linalg.vector_norm(weight)
    return weight * (at_least_float32(alpha) / torch.where(norm > 0, norm, 1))


def matrix_of(layer: Any) -> Tensor:
    """M, of which the weight is the Cayley transform: a matrix, or the taps of a kernel."""
    M = normalize(layer.raw_weight, layer.alpha)
    return with_identity(layer, M) if layer.quasi_residual else M


_FEW_VECTORS = FewVectors(ops.cayley_linear, pays, matrix_of)


def _few_images(layer: Any, x: Tensor, fft_size: Pair) -> Tensor | None:
    """MaxMin of Q * x + bias where images are at most as many as channels."""
    if not training_cayley.pays(x.shape[0], x.shape[1], layer.out_channels):
        return None
    dilation = layer._application.geometry.dilation
    return training_cayley.cayley_in_training(x, matrix_of(layer), layer.bias, fft_size, dilation)


def reset(layer: CayleyConv2d | CayleyLinear) -> None:
    """The default of torch.nn for the weight, alpha at its norm, bias 0."""
    weight, groups = layer.raw_weight, getattr(layer, "groups", 1)
    if not reset_quasi_residual(layer, weight, weight.numel() // (groups * weight.shape[1])):
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    with torch.no_grad():
        layer.alpha.fill_(torch.linalg.vector_norm(layer.raw_weight))
    zero_(layer.bias)


def build_cayley(
    layer: Any, channels: tuple[int, int], sizes: ConvSizes, common: ConvCommon, quasi_residual: Any
) -> None:
    """Constructs a Cayley convolution along any axes."""
    bias, device, dtype, backend = common
    geometry = conv_geometry(channels, *sizes, axes=layer._axes)
    check_patches(sizes[2], geometry)
    application = FrequencyConvolution(geometry, orthogonal=True, few_images=_few_images, few_vectors=_FEW_VECTORS)
    LipschitzLayer.__init__(layer, application, backend)
    show_conv_arguments(layer, *channels, sizes[2])
    layer.bias = make_bias(channels[1], bias, device, dtype)
    layer.raw_weight = make_parameter(layer._application.weight_shape(layer), device, dtype)
    layer.quasi_residual = check_quasi_residual(quasi_residual, channels, geometry.stride)
    layer.alpha = make_parameter((1,), device, dtype)
    add_gamma(layer, channels[1:], device, dtype)
    layer.reset_parameters()


class CayleyConv2d(LipschitzLayer):
    r"""Orthogonal convolution: at each frequency k, the Cayley transform of the kernel's matrix.

    .. math:: M = \alpha W / \|W\|_F, \qquad
              Q_k = \mathrm{Cayley}(\hat M_k), \qquad \mathrm{Cayley}(\hat M) = (I + A)^{-1}(I - A),\;
              A = \hat M - \hat M^H

    for square matrices; tall and wide ones as in ``fastlip.ops.cayley``. The norm is that of all taps, so that
    alpha does not depend on the resolution; there is one alpha for all groups. W = 0 gives M = 0.
    Trockman, Kolter, *Orthogonalizing Convolutional Layers with the Cayley Transform*, ICLR 2021.

    Guarantee: circular padding, orthogonal (all singular values 1; with in_channels != out_channels, orthonormal
    rows or columns at every frequency), for every image size, kernel size, dilation and groups. Zero padding:
    Lipschitz constant at most 1 (the image is embedded in zeros at an FFT size that is larger by dilation *
    (kernel_size - 1), convolved there, and cropped). With a stride, the image's stride x stride patches become
    channels, then follows a convolution of ceil(kernel_size / stride) taps; an image whose side the stride does not
    divide is padded with zeros.
    Cost: in training one inverse per unique frequency (h w / 2 of them) and two Fourier transforms; in eval mode
    the inverses are computed once per image size. A kernel of one tap has one real matrix and no transform.
    Initial values: those of ``torch.nn.Conv2d``, alpha at the Frobenius norm of the weight, bias 0.

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
        quasi_residual: s: V = I + s gamma W takes the place of the weight W, with the identity at the centre tap and
            a learnt factor gamma for each row; True is 1; default False. For in_channels = out_channels and stride 1
            only. The transform of 0 is the identity, and that of I + M is that of M: the option only scales the
            weight.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride)).
    Parameters: ``raw_weight`` (out_channels, in_channels / groups * stride^2, *ceil(kernel_size / stride)),
    ``alpha`` (1), ``bias`` (out_channels), with ``quasi_residual`` also ``gamma`` (out_channels).

    Raises:
        ValueError: another padding or padding mode, a dilated stride, groups that do not divide the channels, a
            quasi_residual of a layer that is not square.

    >>> layer = lip.CayleyConv2d(4, 4, 3).eval()
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
    _fixed = (*CONV_ARGUMENTS, "quasi_residual")
    _grouped = True
    _application: FrequencyConvolution
    quasi_residual: float
    raw_weight: nn.Parameter
    alpha: nn.Parameter

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
        build_cayley(self, channels, sizes, (bias, device, dtype, backend), quasi_residual)

    def reset_parameters(self) -> None:
        """The default of ``torch.nn.Conv2d``; alpha = ||raw_weight||_F; bias 0."""
        reset(self)

    def _parametrize(self, *fft_size: int) -> tuple[Tensor, ...]:
        """(Q,): (F, cout, cin / groups) at the unique frequencies; (cout, cin / groups, 1, 1) for one tap."""
        M = matrix_of(self)
        if fft_size:
            dilation = self._application.geometry.dilation
            return (SPECTRAL_CAYLEY(M, fft_size, dilation, self.groups, self.backend),)
        return self._application.matrices(M, (), lambda V, reals: ops.cayley(V, backend=self.backend))


class CayleyLinear(LipschitzLayer):
    r"""Dense layer y = Q x + b with Q = Cayley(alpha W / ||W||_F): orthogonal, or orthonormal rows or columns.

    Trockman, Kolter, *Orthogonalizing Convolutional Layers with the Cayley Transform*, ICLR 2021. Lipschitz
    constant 1. Initial values: those of ``torch.nn.Linear``, alpha at the norm of the weight, bias 0.

    Args:
        in_features: number of input features.
        out_features: number of output features.
        bias: whether a bias is added; default True.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        quasi_residual: s: V = I + s gamma W takes the place of the weight W, with a learnt factor gamma for each row;
            True is 1; default False. For in_features = out_features only. The transform of 0 is the identity, and
            that of I + M is that of M: the option only scales the weight.
        parametrization: ``"unconstrained"`` (default), or ``"manifold"``: the parameter is the orthogonal matrix
            itself. It starts where the unconstrained layer starts, and :class:`fastlip.optim.ManifoldOptimizer`
            trains it. Not with ``quasi_residual``.

    Shapes: (*, in_features) to (*, out_features). Parameters: ``raw_weight`` (out_features, in_features), ``alpha``
    (1), ``bias`` (out_features), with ``quasi_residual`` also ``gamma`` (out_features); on the
    manifold ``orthogonal_weight`` (out_features, in_features) and ``bias`` alone. ``weight`` is Q; in eval mode
    it is computed once.

    >>> layer = lip.CayleyLinear(4, 4)
    >>> torch.allclose(layer.weight @ layer.weight.T, torch.eye(4), atol=1e-5)
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
        few_vectors = None if parametrization == MANIFOLD else _FEW_VECTORS
        super().__init__(Dense(orthogonal=True, few_vectors=few_vectors), backend)
        self.in_features, self.out_features = dense_features(in_features, out_features)
        self.bias = make_bias(out_features, bias, device, dtype)
        self.quasi_residual = check_quasi_residual(quasi_residual, (in_features, out_features))
        if not begin_on_manifold(self, parametrization, device, dtype, {"quasi_residual": quasi_residual}):
            self.raw_weight = make_parameter((out_features, in_features), device, dtype)
            self.alpha = make_parameter((1,), device, dtype)
            add_gamma(self, (out_features,), device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The default of ``torch.nn.Linear``; alpha = ||raw_weight||_F; bias 0."""
        if self.parametrization == MANIFOLD:
            return start_on_manifold(self, CayleyLinear)
        reset(self)

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(Q,): the Cayley transform."""
        if self.parametrization == MANIFOLD:
            return (on_manifold(self),)
        return (ops.cayley(matrix_of(self), backend=self.backend),)


METHOD = Method(
    "cayley",
    CayleyConv2d,
    CayleyLinear,
    dense_head=True,
    networks=("lip_next",),
    settings={"digits": {"optimizer.lr": 0.02, "loss.temperature": 0.1}},
)
