"""SOC: skew orthogonal convolutions (Singla, Feizi, ICML 2021), by the series or per frequency."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.common.checks import boolean
from fastlip.kernels.common.geometry import Pair
from fastlip.kernels.common.literals import Backend, Device, Padding, PaddingMode, Sides
from fastlip.kernels.conv_exp.api import check_terms
from fastlip.kernels.spectral_conv.api import kernel_spectrum
from fastlip.kernels.spectral_exp.api import kernel_exp
from fastlip.nn._earlier import EarlierName
from fastlip.nn._manifold import MANIFOLD, Parametrization, begin_on_manifold, on_manifold, start_on_manifold
from fastlip.nn._quasi_residual import add_gamma, check_quasi_residual, reset_quasi_residual, with_identity
from fastlip.nn._skew import norm_bound, series_of_spectrum, skew
from fastlip.nn.applications.application import CONV_ARGUMENTS, show_conv_arguments
from fastlip.nn.applications.dense import DENSE_ARGUMENTS, EXPONENTIAL, Dense
from fastlip.nn.applications.exponential import ExponentialConvolution, gain, largest_norm
from fastlip.nn.arguments import (
    CIRCULAR_FIRST,
    ZEROS_FIRST,
    ConvCommon,
    ConvSizes,
    conv_geometry,
    dense_features,
    make_bias,
    make_parameter,
    nonnegative,
    one_of,
    require_same,
)
from fastlip.nn.base import LipschitzLayer, at_least_float32, effective_weight
from fastlip.nn.initial import zero_
from fastlip.nn.method import Method

Exponential = Literal["series", "spectral"]
EXPONENTIALS: tuple[Exponential, ...] = ("series", "spectral")
DEFAULT_TERMS = 4
_INITIAL_DEVIATION = 0.1  # of the paper's: near the identity, a deep network learns faster


def _check_norm(value: Any) -> float:
    if nonnegative("max_norm", value) == 0:
        raise ValueError(f"max_norm={value}: expected a positive number")
    return float(value)


def build_soc(
    layer: Any,
    channels: tuple[int, int],
    sizes: ConvSizes,
    common: ConvCommon,
    exponential: Any,
    terms: Any,
    eval_terms: Any,
    max_norm: Any,
    recompute: Any,
    quasi_residual: Any,
) -> None:
    """Constructs an SOC convolution of images, or of sequences as images of one row."""
    bias, device, dtype, backend = common
    spectral = one_of("exponential", exponential, EXPONENTIALS) == "spectral"
    geometry = conv_geometry(channels, *sizes, CIRCULAR_FIRST[:1] if spectral else ZEROS_FIRST)
    if any(side % 2 == 0 for side in geometry.kernel_size):
        raise ValueError(f"kernel_size={geometry.kernel_size}: allowed are odd sides: even ones are never skew")
    require_same(sizes[2], geometry)
    width = max(channels[0] * math.prod(geometry.stride), channels[1])
    LipschitzLayer.__init__(layer, ExponentialConvolution(geometry, spectral, width, spectral), backend)
    show_conv_arguments(layer, *channels, sizes[2])
    layer._width, layer._exponential = width, exponential
    layer.bias = make_bias(channels[1], bias, device, dtype)
    layer.raw_weight = make_parameter((width, width // geometry.groups, *geometry.kernel_size), device, dtype)
    layer._quasi_residual = check_quasi_residual(quasi_residual, channels, geometry.stride)
    add_gamma(layer, (width,), device, dtype)
    layer.reset_parameters()
    layer.terms, layer.eval_terms, layer.max_norm = terms, eval_terms, max_norm
    layer.recompute = boolean("recompute", recompute)


class SOCConv2d(LipschitzLayer):
    r"""Convolution exponential of a skew kernel, y = exp(L) x + b.

    .. math:: L = s\,(K - K^T)/2, \qquad s = \min(1, m / \mathrm{bound}(\lVert L \rVert)), \qquad
              y = g \sum_{t \le T} L^t x / t! + b

    Singla, Feizi, *Skew Orthogonal Convolutions*, ICML 2021; K^T is the kernel transposed and flipped. L is a skew
    operator, so exp(L) is orthogonal, for zero padding too. The paper scales every kernel to a norm that a power
    iteration approaches from below; here the bound is an upper one, valid for every image size, and kernels
    below m are left as they are.

    ``exponential="series"`` truncates after T = ``terms``. The largest |p_T(i theta)| for |theta| <= m, p_T the
    truncated series, is its Lipschitz constant; the gain g divides by it. It is 1 for T = 4, 8, 12, 16 and the
    default m, so that g = 1; it is 1.005 for the paper's T = 5 and m = 2.4.
    ``exponential="spectral"``, with circular padding only, takes the exact exponential of each frequency's matrix
    and is orthogonal in training and evaluation; parameters are the same. A 1 x 1 kernel is one exact exponential
    of a matrix, without a limit on its norm.

    Guarantee: Lipschitz constant at most 1 for odd kernels, every dilation, groups and stride, zero or circular
    padding. Spectral form and 1 x 1 kernels: orthogonal where no channels are truncated
    (in_channels * stride^2 <= out_channels); series: all singular values at least the smallest |p_T(i theta)| up
    to the norm of L: at T = 4, 0.994 for a norm of 1 and 0.97 for 1.3, at T = 8 0.9999 for both.
    Training and evaluation compute the same function unless ``eval_terms`` says otherwise (the paper: ``terms=5,
    eval_terms=12``).

    Cost in training: T convolutions, or what takes fewer multiply-adds (``fastlip.ops.conv_exp``), and some 50 c^3
    operations for the bound (spectral: a matrix exponential per frequency, one spectral convolution; 1 x 1: one
    matrix exponential). In eval mode, where no gradient of a parameter can be asked for, the same function to
    rounding costs less. With circular padding p_T(L) is one matrix per frequency, computed once per image size and
    applied by one spectral convolution (if all take up at most 32 MiB a term). With zero padding every power of L
    cuts at the border anew, and no one kernel or spectrum is p_T(L). There a polynomial of least degree stands for
    p_T, equal up to 2.4e-7 (float32) on the spectrum of L: of 12 terms remain 6 for norms up to 0.69, 8 up to 1.4,
    10 up to 2.3. Many channels, from about 64 on, are multiplied by L's own spectrum, at an FFT size that holds the
    padded image.

    A stride first moves patches into channels (images that it does not divide are padded with zeros at their end);
    fewer channels than max(in_channels * stride^2, out_channels) are padded with zeros, more are truncated after
    the exponential, within each group.
    Initial values: the kernel normal with standard deviation 0.1 sqrt(groups / c), near the identity (the paper: 10
    times that); bias 0.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: number of taps along each axis.
        stride: step between two outputs; default 1.
        padding: ``"same"`` (default), or the numbers of pixels that equal it.
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
        max_norm: m; None: min(0.8 sqrt(kh kw), 2.8), or a larger norm up to which T terms are 1-Lipschitz.
        recompute: True keeps x alone for the backward, not T - 1 sums as well, for as many more convolutions there;
            no difference where the series is taken per frequency; default False.
        quasi_residual: s: V = I + s gamma W takes the place of the weight W, with the identity at the centre tap and
            a learnt factor gamma for each row; True is 1; default False. For in_channels = out_channels and stride 1
            only. The exponential of 0 is the identity, and I has no skew part: the option only scales the weight.

    ``padding_mode`` is "circular" with the spectral form, whatever its default.
    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to the same with out_channels, sides divided by the
    stride and rounded up. Parameters: ``raw_weight`` (c, c / groups, kh, kw), c the padded channels; ``bias``
    (out_channels); with ``quasi_residual`` also ``gamma`` (c).

    Raises:
        ValueError: even kernels, another padding or padding mode, the spectral form with zero padding, a
            quasi_residual of a layer that is not square.

    >>> layer = lip.SOCConv2d(4, 4, 3, exponential="spectral").eval()
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
    _options = LipschitzLayer._options | {"terms": partial(check_terms, "terms")}
    _fixed = (*CONV_ARGUMENTS, "exponential", "width", "quasi_residual")
    _grouped = True
    _application: ExponentialConvolution
    _exponential: Exponential
    terms: int
    recompute: bool
    _quasi_residual: float
    raw_weight: nn.Parameter
    _width: int
    exponential, gain, quasi_residual, width = EarlierName(), EarlierName(), EarlierName(), EarlierName()

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
        channels, sizes = (in_channels, out_channels), (kernel_size, stride, padding, dilation, groups, padding_mode)
        options = exponential, terms, eval_terms, max_norm, recompute, quasi_residual
        build_soc(self, channels, sizes, (bias, device, dtype, backend), *options)

    @property
    def eval_terms(self) -> int:
        """T in eval mode; set to None: that of training."""
        return self.terms if self._eval_terms is None else self._eval_terms

    @eval_terms.setter
    def eval_terms(self, value: int | None) -> None:
        self._eval_terms = value if value is None else check_terms("eval_terms", value)

    @property
    def max_norm(self) -> float:
        """The largest norm of L; set to None: the default for the numbers of terms."""
        return largest_norm(self._max_norm, self.terms, self.eval_terms, self._application.geometry.taps)

    @max_norm.setter
    def max_norm(self, value: float | None) -> None:
        # As text: of a number that changes torch.compile makes a variable, and the gain must be a constant.
        self._max_norm = "" if value is None else repr(_check_norm(value))

    def _gain(self, terms: int) -> float:
        """g: the inverse of the largest |p_T(i theta)| up to ``max_norm``.

        Args:
            terms: T.
        """
        return gain(terms, self.max_norm)

    def reset_parameters(self) -> None:
        """Normal, standard deviation 0.1 / sqrt(channels of a group); bias 0."""
        weight = self.raw_weight
        if not reset_quasi_residual(self, weight, weight[0].numel()):
            nn.init.normal_(weight, std=_INITIAL_DEVIATION * weight.shape[1] ** -0.5)
        zero_(self.bias)

    def _parametrize(self, *fft_size: Any) -> tuple[Tensor, ...]:
        """(a matrix as 1 x 1 kernel,), (skew kernel,), or for an FFT size (matrices of exp L per frequency,)."""
        raw = with_identity(self, at_least_float32(self.raw_weight)).unflatten(0, (self.groups, -1))
        dilation = self._application.geometry.dilation
        if self._application.geometry.kernel_size == (1, 1):
            exponential = ops.skew_exp(raw[..., 0, 0], backend=self.backend)
            inputs = self.in_channels * math.prod(self.stride) // self.groups
            matrices = exponential[:, : self.out_channels // self.groups, :inputs]
            return (matrices.flatten(0, 1)[:, :, None, None],)
        kernel = skew(raw)
        kernel = kernel * (self.max_norm / norm_bound(kernel).clamp_min(self.max_norm))[:, None, None, None, None]
        kernel = kernel.flatten(0, 1)
        if not fft_size:
            return (kernel,)
        size = fft_size[0], fft_size[1]
        if self._exponential == "spectral":
            return (kernel_exp(kernel, size, dilation, self.groups, backend=self.backend),)
        spectrum = kernel_spectrum(kernel, size, dilation)
        return (self._gain(self.eval_terms) * series_of_spectrum(spectrum, size, self.groups, self.eval_terms),)

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        text = f"{LipschitzLayer.extra_repr(self)}, exponential={self._exponential!r}, terms={self.terms}"
        return f"{text}, eval_terms={self.eval_terms}, max_norm={self.max_norm:.4g}"


class SOCLinear(LipschitzLayer):
    r"""Dense layer y = exp((K - K^T) / 2) x + b, the exact exponential of a skew matrix.

    The dense case of Singla, Feizi, *Skew Orthogonal Convolutions*, ICML 2021: orthogonal with determinant 1; rows
    or columns of such a matrix if the features differ. Lipschitz constant 1.
    Cost: one matrix exponential per training step, or for few vectors on a CPU ``fastlip.ops.skew_exp_linear``; once
    in eval mode.
    Initial values: K normal with standard deviation 0.1 / sqrt(c), near the identity; bias 0.

    Args:
        in_features: number of input features.
        out_features: number of output features.
        bias: whether a bias is added; default True.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        quasi_residual: s: V = I + s gamma W takes the place of the weight W, with a learnt factor gamma for each row;
            True is 1; default False. For in_features = out_features only. The exponential of 0 is the identity, and I
            has no skew part: the option only scales the weight.
        parametrization: ``"unconstrained"`` (default), or ``"manifold"``: the parameter is the orthogonal matrix
            itself. It starts where the unconstrained layer starts, and :class:`fastlip.optim.ManifoldOptimizer`
            trains it. Not with ``quasi_residual``.

    Shapes: (*, in_features) to (*, out_features). Parameters: ``raw_weight`` K (c, c) with c = max(in_features,
    out_features), ``bias`` (out_features), with ``quasi_residual`` also ``gamma`` (c); on the manifold
    ``orthogonal_weight`` (out_features, in_features) and ``bias`` alone. ``weight`` is the effective matrix.

    >>> layer = lip.SOCLinear(4, 4)
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
        super().__init__(
            Dense(orthogonal=True, few_vectors=None if parametrization == MANIFOLD else EXPONENTIAL), backend
        )
        self.in_features, self.out_features = dense_features(in_features, out_features)
        self.bias = make_bias(out_features, bias, device, dtype)
        self.quasi_residual = check_quasi_residual(quasi_residual, (in_features, out_features))
        if not begin_on_manifold(self, parametrization, device, dtype, {"quasi_residual": quasi_residual}):
            size = max(in_features, out_features)
            self.raw_weight = make_parameter((size, size), device, dtype)
            add_gamma(self, (size,), device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal, standard deviation 0.1 / sqrt(c); bias 0."""
        if self.parametrization == MANIFOLD:
            return start_on_manifold(self, SOCLinear)
        weight = self.raw_weight
        if not reset_quasi_residual(self, weight, weight.shape[0]):
            nn.init.normal_(weight, std=_INITIAL_DEVIATION * weight.shape[0] ** -0.5)
        zero_(self.bias)

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(Q,): rows and columns of the exponential."""
        if self.parametrization == MANIFOLD:
            return (on_manifold(self),)
        raw = with_identity(self, at_least_float32(self.raw_weight))
        exponential = ops.skew_exp(raw, backend=self.backend)
        return (exponential[: self.out_features, : self.in_features],)


METHOD = Method("soc", SOCConv2d, SOCLinear, networks=("lip_next",), settings={"digits": {"loss.temperature": 0.1}})
