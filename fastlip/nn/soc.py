"""SOC: skew orthogonal convolutions (Singla, Feizi, ICML 2021), by the series or per frequency."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.common.padding import Pads, same_pads
from fastlip.kernels.common.precision import without_autocast
from fastlip.kernels.conv_exp.api import check_terms
from fastlip.kernels.conv_exp.truncation import degree_for, economized, largest_modulus, stable_norm, taylor
from fastlip.kernels.spectral_conv.api import kernel_spectrum
from fastlip.kernels.spectral_exp.api import kernel_exp
from fastlip.nn import _spectra
from fastlip.nn._base import MatrixLinear, as_it_runs, at_least_float32, check_nonnegative
from fastlip.nn._cache import CACHED_CONTEXTS
from fastlip.nn._channels import first_channels, pad_channels
from fastlip.nn._conv import Pair
from fastlip.nn._orthogonal import PerFrequencyConv2d, largest_singular_value, space_to_depth
from fastlip.nn._skew import norm_bound, norm_on, series_by_spectrum, series_of_spectrum, skew
from fastlip.nn.method import Method

EXPONENTIALS = ("series", "spectral")
DEFAULT_TERMS = 4
# The paper's limit is 0.7 k for the best of four reshaped kernels; ours is the cheapest of them, 8 to 20 % above.
_NORM_PER_SIDE = 0.8
_LARGEST_NORM = 2.8  # 4, 8, 12 and 16 terms are 1-Lipschitz up to here, and 8, 12, 16 up to 3.3
_INITIAL_DEVIATION = 0.1  # of the paper's: near the identity, a deep network learns faster


def _check_norm(value: Any) -> float:
    if check_nonnegative("max_norm", value) == 0:
        raise ValueError(f"max_norm={value}: expected a positive number")
    return float(value)


_kept_modulus = cache(largest_modulus)  # every forward asks for it


# Constants of a graph: tracing into what is cached makes torch.compile warn.
@torch.compiler.assume_constant_result
def _gain(terms: int, max_norm: float) -> float:
    """What makes a series of that many terms 1-Lipschitz up to the norm."""
    return 1 / _kept_modulus(terms, max_norm)


@torch.compiler.assume_constant_result
def _norm(chosen: str, terms: int, eval_terms: int, taps: int) -> float:
    """The norm chosen; else the default for that many taps, up to which good numbers of terms are 1-Lipschitz."""
    if chosen:
        return float(chosen)
    limit = min(max(stable_norm(t), _LARGEST_NORM) for t in (terms, eval_terms))
    return min(_NORM_PER_SIDE * math.sqrt(taps), limit)


class SOCConv2d(PerFrequencyConv2d):
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
    matrix exponential). In eval mode, where no gradient of a
    parameter can be asked for, the same function to rounding costs less. With circular padding p_T(L) is one matrix
    per frequency, computed once per image size and applied by one spectral convolution (if all take up at most
    32 MiB a term). With zero padding every power of L cuts at the border anew, and no one kernel or spectrum
    is p_T(L). There a polynomial of least degree stands for p_T, equal up to 2.4e-7 (float32) on the spectrum of L:
    of 12 terms remain 6 for norms up to 0.69, 8 up to 1.4, 10 up to 2.3. Many channels, from about 64 on, are
    multiplied by L's own spectrum, on a torus that holds the padded image.

    A stride first moves patches into channels (images that it does not divide are padded with zeros at their end);
    fewer channels than max(in_channels * stride^2, out_channels) are padded with zeros, more are truncated after
    the exponential, within each group.

    Args: as ``torch.nn.Conv2d``, with the padding "same" (or ints that equal it), and ``backend``; keyword-only:
        exponential: ``"series"`` or ``"spectral"``.
        terms: T, 1 to 16.
        eval_terms: T in eval mode; None: ``terms``.
        recompute: keep x alone for the backward, not T - 1 sums beside it, for as many more convolutions there;
            no difference where the series is taken per frequency.
        max_norm: m; None: min(0.8 sqrt(kh kw), 2.8), or a larger norm up to which T terms are 1-Lipschitz.
        padding_mode: None: "zeros" for the series, "circular" for the spectral form.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to the same with out_channels, sides divided by the
    stride and rounded up. Parameters: ``raw_weight`` (c, c / groups, kh, kw), c the padded channels, initialised
    normal with standard deviation 0.1 sqrt(groups / c), near the identity (the paper: 10 times that); ``bias``
    (out_channels), initialised 0.
    Raises ValueError for even kernels, other paddings and padding modes, and the spectral form without circular
    padding.
    """

    options = PerFrequencyConv2d.options | {"terms": partial(check_terms, "terms")}
    fixed = (*PerFrequencyConv2d.fixed, "exponential", "width")
    padding_modes = ("zeros", "circular")

    def __init__(
        self,
        *args: Any,
        exponential: str = "series",
        terms: int = DEFAULT_TERMS,
        eval_terms: int | None = None,
        max_norm: float | None = None,
        recompute: bool = False,
        **kwargs: Any,
    ):
        if exponential not in EXPONENTIALS:
            raise ValueError(f"exponential={exponential!r}: allowed are {', '.join(map(repr, EXPONENTIALS))}")
        self.exponential = exponential
        self.orthogonal = exponential == "spectral"
        if self.orthogonal:
            self.padding_modes = ("circular",)
        super().__init__(*args, **kwargs)
        self.terms = terms
        self.eval_terms = eval_terms
        self.max_norm = max_norm
        self.recompute = recompute

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
        return _norm(self._max_norm, self.terms, self.eval_terms, self.kernel_size[0] * self.kernel_size[1])

    @max_norm.setter
    def max_norm(self, value: float | None) -> None:
        # As text: of a number that changes torch.compile makes a variable, and the gain must be a constant.
        self._max_norm = "" if value is None else repr(_check_norm(value))

    def gain(self, terms: int) -> float:
        """g for that many terms: the inverse of the largest |p_T(i theta)| up to ``max_norm``."""
        return _gain(terms, self.max_norm)

    def _check_padding(self, padding: Any) -> Pads:
        if any(side % 2 == 0 for side in self.kernel_size):
            raise ValueError(f"kernel_size={self.kernel_size}: allowed are odd sides: even ones are never skew")
        pads, same = super()._check_padding(padding), same_pads(self.kernel_size, self.dilation)
        if pads != same:
            raise ValueError(f"padding={padding!r}: allowed are 'same' and what equals it, {same} as F.pad orders")
        return pads

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """raw_weight."""
        self.width = max(self.in_channels * math.prod(self.stride), self.out_channels)
        shape = (self.width, self.width // self.groups, *self.kernel_size)
        self.raw_weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Normal, standard deviation 0.1 / sqrt(channels of a group); bias 0."""
        nn.init.normal_(self.raw_weight, std=_INITIAL_DEVIATION * self.raw_weight.shape[1] ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def parametrize(self, *context: Any) -> tuple[Tensor, ...]:
        """(a matrix as 1 x 1 kernel,), (skew kernel,), or for an image size (matrices of exp L per frequency,)."""
        raw = at_least_float32(self.raw_weight).unflatten(0, (self.groups, -1))
        if self.kernel_size == (1, 1):
            exponential = ops.skew_exp(raw[..., 0, 0], backend=self.backend)
            inputs = self.in_channels * math.prod(self.stride) // self.groups
            matrices = exponential[:, : self.out_channels // self.groups, :inputs]
            return (matrices.flatten(0, 1)[:, :, None, None],)
        kernel = skew(raw)
        kernel = kernel * (self.max_norm / norm_bound(kernel).clamp_min(self.max_norm))[:, None, None, None, None]
        if not context:
            return (kernel.flatten(0, 1),)
        height, width = context
        kernel = kernel.flatten(0, 1)
        if self.exponential == "spectral":
            return (kernel_exp(kernel, (height, width), self.dilation, self.groups, backend=self.backend),)
        spectrum = kernel_spectrum(kernel, (height, width), self.dilation)
        series = series_of_spectrum(spectrum, (height, width), self.groups, self.eval_terms)
        return (self.gain(self.eval_terms) * series,)

    def torus(self, height: int, width: int) -> tuple[int, ...]:
        """The image itself where the exponential, or its series, is taken per frequency."""
        return (height, width) if self._runs_per_frequency((height, width)) else ()

    def _torus(self, size: Pair) -> Pair:
        """The circular image that an image's convolution is part of: with zero padding a larger one."""
        if self.padding_mode == "circular":
            return size
        vertical, horizontal = (d * (k // 2) for d, k in zip(self.dilation, self.kernel_size, strict=True))
        return size[0] + vertical, size[1] + horizontal

    def _tolerance(self) -> float:
        """Four roundings, by which 12 convolutions err as well."""
        return torch.finfo(torch.promote_types(self.raw_weight.dtype, torch.float32)).eps * 2

    def forward(self, x: Tensor) -> Tensor:
        """exp(L) x + bias."""
        self.check_input(x)
        if torus := self.torus_for(x):
            return self.apply_spectrum(x, torus)
        x = space_to_depth(x, self.stride)
        if self.kernel_size == (1, 1):
            return F.conv2d(x, self.effective()[0], self.bias, groups=self.groups)
        x = pad_channels(x, self.width, self.groups)
        whole = self.width == self.out_channels
        bias = self.bias if whole else None
        if torus := self.torus(x.shape[-2], x.shape[-1]):
            (Q,) = self.effective(*torus)
            y = ops.spectral_conv(x, Q, bias, groups=self.groups, backend=self.backend)
        else:
            y = self._series(x, bias)
        if whole:
            return y
        y = first_channels(y, self.out_channels, self.groups)
        return y if self.bias is None else y + self.bias.to(y.dtype)[:, None, None]

    def _runs_per_frequency(self, size: Pair) -> bool:
        """Always in the spectral form; the series where its matrices are computed once, and not too large."""
        kept = self.padding_mode == "circular" and self.may_cache() and self._fits(size)
        return self.kernel_size != (1, 1) and (self.exponential == "spectral" or kept)

    def _fits(self, torus: Pair) -> bool:
        """Whether the matrices per frequency are small enough to be kept in place of the series."""
        ports, itemsize = self.raw_weight.shape[:2], self.raw_weight.element_size()
        return 0 not in torus and _spectra.is_small((ports[0], ports[1]), torus, itemsize, self.eval_terms)

    def _series(self, x: Tensor, bias: Tensor | None) -> Tensor:
        (kernel,) = self.effective()
        terms = self._terms()
        degree = self._degree((x.shape[-2], x.shape[-1]), kernel)
        coefficients = taylor(terms) if degree == terms else economized(terms, degree, self._tolerance())[0]
        gain = self.gain(terms)
        coefficients = tuple(gain * value for value in coefficients)
        if torus := _spectra.torus_for(self, x, (self.width, self.width)):
            compute = partial(_spectra.spectra_of, kernel, torus, self.dilation)
            (spectrum,) = self.derive("spectra", torus, (kernel,), compute)
            return series_by_spectrum(x, spectrum, coefficients, bias)
        arguments = degree, self.dilation, self.groups, self.padding_mode, bias, coefficients, self.recompute
        return ops.conv_exp(x, kernel, *arguments, backend=self.backend)

    def _degree(self, size: Pair, kernel: Tensor | None = None) -> int:
        """The degree of the polynomial that runs on images of this size, at most the number of terms."""
        if not self.may_cache() or self._runs_per_frequency(size):
            return self._terms()
        kernel = self.effective()[0] if kernel is None else kernel
        return self.derive("degree", size, (kernel,), partial(self._least_degree, size, kernel), CACHED_CONTEXTS)

    def _least_degree(self, size: Pair, kernel: Tensor) -> int:
        """The degree of the polynomial by which evaluation replaces the series of this skew kernel."""
        with without_autocast(kernel.device):
            matrices = at_least_float32(kernel).unflatten(0, (self.groups, -1))
            torus = self._torus(size)
            norm = norm_on(torus, matrices, self.dilation) if self._fits(torus) else norm_bound(matrices).max()
            return degree_for(self.eval_terms, norm.item(), self._tolerance())

    def _terms(self) -> int:
        return self.terms if self.training else self.eval_terms

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """The largest |p_T(i theta)| up to the skew kernel's norm on images of this size, T of the present mode.

        The spectral form and 1 x 1 kernels: the largest singular value.
        """
        height, width = (-(-side // step) for side, step in zip(input_shape[-2:], self.stride, strict=True))
        geometry = {"dilation": self.dilation, "groups": self.groups, "padding_mode": self.padding_mode}
        with torch.no_grad():
            if self.kernel_size == (1, 1):
                return ops.spectral_norm(as_it_runs(self.effective()[0]), (height, width), groups=self.groups).item()
            if self.exponential == "spectral":
                (Q,) = self.effective(height, width)
                return largest_singular_value(Q.unflatten(1, (self.groups, -1)))
            (kernel,) = self.effective()
            norm = ops.spectral_norm(as_it_runs(kernel), (height, width), pads=self.pads, **geometry).item()
            difference = self._tolerance() if self._degree((height, width), kernel) < self._terms() else 0.0
        return (largest_modulus(self._terms(), norm) + difference) * self.gain(self._terms())

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        text = f"{super().extra_repr()}, exponential={self.exponential!r}, terms={self.terms}"
        return f"{text}, eval_terms={self.eval_terms}, max_norm={self.max_norm:.4g}"


class SOCLinear(MatrixLinear):
    r"""Dense layer y = exp((K - K^T) / 2) x + b, the exact exponential of a skew matrix.

    The dense case of Singla, Feizi, *Skew Orthogonal Convolutions*, ICML 2021: orthogonal with determinant 1; rows
    or columns of such a matrix if the features differ. Lipschitz constant 1. Args and shapes as
    ``torch.nn.Linear``, and ``backend``. Parameters: ``raw_weight`` K (c, c) with c = max(in_features,
    out_features), initialised normal with standard deviation 0.1 / sqrt(c), near the identity, and ``bias``,
    initialised 0. ``weight`` is the effective matrix.
    Cost: one matrix exponential per training step; in eval mode it is computed once.
    """

    orthogonal = True

    def make_parameters(self, device: Any, dtype: Any) -> None:
        """raw_weight."""
        size = max(self.in_features, self.out_features)
        self.raw_weight = nn.Parameter(torch.empty(size, size, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Normal, standard deviation 0.1 / sqrt(c); bias 0."""
        nn.init.normal_(self.raw_weight, std=_INITIAL_DEVIATION * self.raw_weight.shape[0] ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def parametrize(self) -> tuple[Tensor, ...]:
        """(Q,): rows and columns of the exponential."""
        exponential = ops.skew_exp(at_least_float32(self.raw_weight), backend=self.backend)
        return (exponential[: self.out_features, : self.in_features],)


METHOD = Method("soc", SOCConv2d, SOCLinear, settings={"digits": {"loss.temperature": 0.1}})
