"""LOT: layer-wise orthogonal training (Xu, Li, Li, NeurIPS 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.common.geometry import Pair
from fastlip.kernels.common.literals import Backend, Device, Padding, PaddingMode, Sides
from fastlip.kernels.polar.reference import join, ridged_newton, split
from fastlip.nn._manifold import MANIFOLD, Parametrization, begin_on_manifold, on_manifold, start_on_manifold
from fastlip.nn._quasi_residual import add_gamma, check_quasi_residual, reset_quasi_residual, with_identity
from fastlip.nn.applications.application import CONV_ARGUMENTS, show_conv_arguments
from fastlip.nn.applications.dense import DENSE_ARGUMENTS, POLAR, Dense
from fastlip.nn.applications.frequency import FrequencyConvolution, check_patches
from fastlip.nn.arguments import ConvCommon, ConvSizes, conv_geometry, dense_features, make_bias, make_parameter
from fastlip.nn.base import LipschitzLayer, at_least_float32, effective_weight
from fastlip.nn.initial import centre_orthogonal_, zero_
from fastlip.nn.method import Method


def check_iteration(ridge: float | None, steps: int | None) -> tuple[float | None, int | None]:
    """Returns ridge and steps, both given or neither, or raises ValueError."""
    if (ridge is None) != (steps is None):
        raise ValueError(f"ridge={ridge!r}, steps={steps!r}: expected both or neither")
    if ridge is not None and not ridge > 0:
        raise ValueError(f"ridge={ridge!r}: expected a positive number")
    if steps is not None and steps < 1:
        raise ValueError(f"steps={steps!r}: expected at least 1")
    return ridge, steps


def polar(V: Tensor, ridge: float | None, steps: int | None, backend: Backend, reals: int = 0) -> Tensor:
    """The exact polar factor, or the published iteration's approximation."""
    if ridge is None or steps is None:
        return ops.polar(V, reals, backend=backend)
    return join([ridged_newton(part, ridge, steps) for part in split(V, reals)], V.dtype)


def build_lot(
    layer: Any,
    channels: tuple[int, int],
    sizes: ConvSizes,
    common: ConvCommon,
    ridge: Any,
    steps: Any,
    quasi_residual: Any,
) -> None:
    """Constructs a LOT convolution along any axes."""
    bias, device, dtype, backend = common
    geometry = conv_geometry(channels, *sizes, axes=layer._axes)
    check_patches(sizes[2], geometry)
    ridge, steps = check_iteration(ridge, steps)
    few = POLAR if ridge is None else None
    LipschitzLayer.__init__(layer, FrequencyConvolution(geometry, orthogonal=ridge is None, few_vectors=few), backend)
    show_conv_arguments(layer, *channels, sizes[2])
    layer.ridge, layer.steps = ridge, steps
    layer.bias = make_bias(channels[1], bias, device, dtype)
    layer.raw_weight = make_parameter(layer._application.weight_shape(layer), device, dtype)
    layer.quasi_residual = check_quasi_residual(quasi_residual, channels, geometry.stride)
    add_gamma(layer, channels[1:], device, dtype)
    layer.reset_parameters()


class LOTConv2d(LipschitzLayer):
    r"""Orthogonal convolution: at each frequency k, the polar factor of the kernel's matrix.

    .. math:: Q_k = (\hat W_k \hat W_k^H)^{-1/2} \hat W_k

    the matrix with orthonormal rows (or columns) nearest to the one of the unconstrained kernel.
    Xu, Li, Li, *LOT: Layer-wise Orthogonal Training on Improving l2 Certified Robustness*, NeurIPS 2022.

    Guarantee: circular padding, orthogonal (all singular values 1; with in_channels != out_channels, orthonormal
    rows or columns at every frequency), for every image size, kernel size, dilation and groups, singular matrices
    included. Zero padding: Lipschitz constant at most 1 (the image is embedded in zeros at an FFT size that is larger
    by dilation * (kernel_size - 1), convolved there, and cropped). With a stride, the image's stride x stride
    patches become channels, then follows a convolution of ceil(kernel_size / stride) taps; an image whose side
    the stride does not divide is padded with zeros.
    Cost: in training one polar factor per unique frequency (h w / 2 of them: two or three inverses each in C++, a
    decomposition in the reference and where channels change) and two Fourier transforms; in eval mode the factors
    are computed once per image size. A kernel of one tap has one real matrix, decomposed, and no transform.
    Initial values: the Dirac kernel (square) or an orthogonal matrix at the kernel's centre; bias 0.

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
        ridge: with ``steps``, the published code's function, (W W^H + ridge I)^{-1/2} W by coupled Newton steps,
            whose singular values are below 1 (ridge=1e-4, steps=10, padding_mode="zeros", odd kernels). None: exact.
        steps: number of those Newton steps; None if ``ridge`` is None.
        quasi_residual: s: V = I + s gamma W takes the place of the weight W, with the identity at the centre tap and
            a learnt factor gamma for each row; True is 1; default False. For in_channels = out_channels and stride 1
            only.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride)).
    Parameters: ``raw_weight`` (out_channels, in_channels / groups * stride^2, *ceil(kernel_size / stride)),
    ``bias`` (out_channels), with ``quasi_residual`` also ``gamma`` (out_channels).

    Raises:
        ValueError: another padding or padding mode, a dilated stride, groups that do not divide the channels, a
            quasi_residual of a layer that is not square.

    >>> layer = lip.LOTConv2d(4, 4, 3).eval()
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
    _fixed = (*CONV_ARGUMENTS, "ridge", "steps", "quasi_residual")
    _grouped = True
    _application: FrequencyConvolution
    ridge: float | None
    steps: int | None
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
        ridge: float | None = None,
        steps: int | None = None,
        quasi_residual: bool | float = False,
    ):
        channels, sizes = (in_channels, out_channels), (kernel_size, stride, padding, dilation, groups, padding_mode)
        build_lot(self, channels, sizes, (bias, device, dtype, backend), ridge, steps, quasi_residual)

    def reset_parameters(self) -> None:
        """Each group: identity (square) or orthogonal matrix at the kernel's centre; bias 0."""
        weight = self.raw_weight
        if not reset_quasi_residual(self, weight, weight.numel() // (self.groups * weight.shape[1])):
            centre_orthogonal_(weight, self.groups)
        zero_(self.bias)

    def _parametrize(self, *fft_size: int) -> tuple[Tensor, ...]:
        """(Q,): (F, cout, cin / groups) at the unique frequencies; (cout, cin / groups, 1, 1) for one tap."""
        weight = with_identity(self, at_least_float32(self.raw_weight))
        if fft_size and self.ridge is None:
            dilation = self._application.geometry.dilation
            return (ops.spectral_polar(weight, fft_size, dilation, self.groups, backend=self.backend),)
        return self._application.matrices(
            weight, fft_size, lambda V, reals: polar(V, self.ridge, self.steps, self.backend, reals)
        )

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        return f"{LipschitzLayer.extra_repr(self)}, ridge={self.ridge}, steps={self.steps}"


class LOTLinear(LipschitzLayer):
    r"""Dense layer y = Q x + b, Q the polar factor of W: orthogonal, or orthonormal rows or columns.

    Xu, Li, Li, *LOT: Layer-wise Orthogonal Training on Improving l2 Certified Robustness*, NeurIPS 2022. Lipschitz
    constant 1. Initial values: an orthogonal matrix (the identity if square); bias 0.

    Args:
        in_features: number of input features.
        out_features: number of output features.
        bias: whether a bias is added; default True.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        ridge: as in :class:`LOTConv2d`.
        steps: as in :class:`LOTConv2d`.
        quasi_residual: s: V = I + s gamma W takes the place of the weight W, with a learnt factor gamma for each row;
            True is 1; default False. For in_features = out_features only.
        parametrization: ``"unconstrained"`` (default), or ``"manifold"``: the parameter is the orthogonal matrix
            itself. It starts where the unconstrained layer starts, and :class:`fastlip.optim.ManifoldOptimizer`
            trains it. Not with ``quasi_residual``, ``ridge`` or ``steps``.

    Shapes: (*, in_features) to (*, out_features). Parameters: ``raw_weight`` (out_features, in_features), ``bias``
    (out_features), with ``quasi_residual`` also ``gamma`` (out_features); on the
    manifold ``orthogonal_weight`` (out_features, in_features) and ``bias`` alone. ``weight`` is Q; in eval mode it is
    computed once.

    >>> layer = lip.LOTLinear(3, 5)
    >>> torch.allclose(layer.weight.T @ layer.weight, torch.eye(3), atol=1e-5)
    True
    """

    _fixed = (*DENSE_ARGUMENTS, "ridge", "steps", "quasi_residual", "parametrization")
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
        ridge: float | None = None,
        steps: int | None = None,
        quasi_residual: bool | float = False,
        parametrization: Parametrization = "unconstrained",
    ):
        ridge, steps = check_iteration(ridge, steps)
        is_factor = ridge is None and parametrization != MANIFOLD
        super().__init__(Dense(orthogonal=ridge is None, few_vectors=POLAR if is_factor else None), backend)
        self.in_features, self.out_features = dense_features(in_features, out_features)
        self.ridge, self.steps = ridge, steps
        self.bias = make_bias(out_features, bias, device, dtype)
        self.quasi_residual = check_quasi_residual(quasi_residual, (in_features, out_features))
        if not begin_on_manifold(
            self, parametrization, device, dtype, {"ridge": ridge, "steps": steps, "quasi_residual": quasi_residual}
        ):
            self.raw_weight = make_parameter((out_features, in_features), device, dtype)
            add_gamma(self, (out_features,), device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Identity (square) or an orthogonal matrix; bias 0."""
        if self.parametrization == MANIFOLD:
            return start_on_manifold(self, LOTLinear)
        if not reset_quasi_residual(self, self.raw_weight, self.out_features):
            centre_orthogonal_(self.raw_weight)
        zero_(self.bias)

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(Q,): the polar factor."""
        if self.parametrization == MANIFOLD:
            return (on_manifold(self),)
        V = with_identity(self, at_least_float32(self.raw_weight))
        return (polar(V, self.ridge, self.steps, self.backend),)

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        return f"{LipschitzLayer.extra_repr(self)}, ridge={self.ridge}, steps={self.steps}"


METHOD = Method(
    "lot",
    LOTConv2d,
    LOTLinear,
    networks=("lip_next",),
    settings={"digits": {"optimizer.lr": 0.02, "loss.temperature": 0.1}},
)
