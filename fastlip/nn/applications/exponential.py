"""Exponentials of skew convolutions: by the series, by a polynomial that stands for it, or per frequency."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.common.compiled import constant
from fastlip.kernels.common.geometry import Pair
from fastlip.kernels.common.precision import without_autocast
from fastlip.kernels.common.rearrange import space_to_depth
from fastlip.kernels.conv_exp.truncation import degree_for, economized, largest_modulus, stable_norm, taylor
from fastlip.nn._cache import CACHED_CONTEXTS, may_cache
from fastlip.nn._channels import first_channels, pad_channels
from fastlip.nn._skew import norm_bound, norm_on, series_by_spectrum
from fastlip.nn.applications import spectra
from fastlip.nn.applications.application import ConvApplication
from fastlip.nn.applications.frequency import (
    apply_kept,
    fused_by_kept,
    kept_size,
    largest_singular_value,
)
from fastlip.nn.base import LipschitzLayer, as_it_runs, at_least_float32
from fastlip.nn.fusion import Fusion

# The paper's limit is 0.7 k for the best of four reshaped kernels; ours is the cheapest of them, 8 to 20 % above.
_NORM_PER_SIDE = 0.8
_LARGEST_NORM = 2.8  # 4, 8, 12 and 16 terms are 1-Lipschitz up to here, and 8, 12, 16 up to 3.3

_kept_modulus = cache(largest_modulus)  # every forward asks for it


# Constants of a graph: tracing into what is cached makes torch.compile warn.
@constant
def gain(terms: int, max_norm: float) -> float:
    """The factor that makes a series of this number of terms 1-Lipschitz up to the norm."""
    return 1 / _kept_modulus(terms, max_norm)


@constant
def largest_norm(chosen: str, terms: int, eval_terms: int, taps: int) -> float:
    """The norm chosen; else the default for this number of taps, at which good numbers of terms are 1-Lipschitz."""
    if chosen:
        return float(chosen)
    limit = min(max(stable_norm(t), _LARGEST_NORM) for t in (terms, eval_terms))
    return min(_NORM_PER_SIDE * math.sqrt(taps), limit)


@dataclass(frozen=True)
class ExponentialConvolution(ConvApplication):
    """y = exp(L) x + b on ``width`` channels, L = ``_effective()[0]`` a skew kernel.

    The layer has ``terms``, ``eval_terms``, ``max_norm``, ``recompute`` and ``gain(terms)``. A kernel of one tap is a
    dense matrix, the exponential itself. ``spectral``: ``_effective(*fft_size)`` is the exponential per frequency, in
    training too; the series takes this form in evaluation, where its matrices are kept, if they are small.
    """

    width: int = 0
    spectral: bool = False

    def __call__(self, layer: Any, x: Tensor) -> Tensor:
        """exp(L) x + bias."""
        layer._check_input(x, layer.in_channels, self.geometry.axes)
        if not layer.training and (kept := kept_size(layer, self, x)):
            return apply_kept(layer, self, x, kept)
        x, groups = space_to_depth(x, self.geometry.stride), self.geometry.groups
        if self.geometry.kernel_size == (1, 1):
            return F.conv2d(x, layer._effective()[0], layer.bias, groups=groups)
        x = pad_channels(x, self.width, groups)
        whole = self.width == layer.out_channels
        bias = layer.bias if whole else None
        if fft_size := self.fft_size(layer, x.shape[-2], x.shape[-1]):
            (Q,) = layer._effective(*fft_size)
            y = ops.spectral_conv(x, Q, bias, groups=groups, backend=layer.backend)
        else:
            y = self._series(layer, x, bias)
        if whole:
            return y
        y = first_channels(y, layer.out_channels, groups)
        return y if layer.bias is None else y + layer.bias.to(y.dtype)[:, None, None]

    def fft_size(self, layer: Any, height: int, width: int) -> tuple[int, ...]:
        """The image's own size where the exponential, or its series, is taken per frequency; () elsewhere."""
        return (height, width) if self.runs_per_frequency(layer, (height, width)) else ()

    def runs_per_frequency(self, layer: Any, size: Pair) -> bool:
        """Always in the spectral form; the series where its matrices are computed once, and not too large."""
        if self.geometry.kernel_size == (1, 1):
            return False
        if self.spectral:
            return True
        return self.geometry.padding_mode == "circular" and may_cache(layer) and self._fits(layer, size)

    def _fits(self, layer: Any, fft_size: Pair) -> bool:
        """Whether the matrices per frequency are small enough to be kept in place of the series."""
        ports, itemsize = layer.raw_weight.shape[:2], layer.raw_weight.element_size()
        return 0 not in fft_size and spectra.is_small((ports[0], ports[1]), fft_size, itemsize, layer.eval_terms)

    def _series(self, layer: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        (kernel,) = layer._effective()
        terms = present_terms(layer)
        degree = self.degree(layer, (x.shape[-2], x.shape[-1]), kernel)
        coefficients = taylor(terms) if degree == terms else economized(terms, degree, tolerance(layer))[0]
        factor, geometry = layer._gain(terms), self.geometry
        coefficients = tuple(factor * value for value in coefficients)
        channels = self.width, self.width
        if not layer.training and (fft_size := spectra.fft_size_for(layer, geometry, channels, x)):
            compute = partial(spectra.spectra_of, kernel, fft_size, geometry.dilation)
            (spectrum,) = layer._cache.derive("spectra", fft_size, (kernel,), compute)
            return series_by_spectrum(x, spectrum, coefficients, bias)
        dilation = geometry.dilation[0], geometry.dilation[1]
        arguments = degree, dilation, geometry.groups, geometry.padding_mode, bias, coefficients
        return ops.conv_exp(x, kernel, *arguments, layer.recompute, exact=not layer.training, backend=layer.backend)

    def degree(self, layer: Any, size: Pair, kernel: Tensor | None = None) -> int:
        """The degree of the polynomial that runs on images of this size, at most the number of terms."""
        if layer.training or not may_cache(layer) or self.runs_per_frequency(layer, size):
            return present_terms(layer)
        source: Tensor = layer._effective()[0] if kernel is None else kernel
        compute = partial(self._least_degree, layer, size, source)
        return layer._cache.derive("degree", size, (source,), compute, CACHED_CONTEXTS)

    def _least_degree(self, layer: Any, size: Pair, kernel: Tensor) -> int:
        """The degree of the polynomial by which evaluation replaces the series of this skew kernel."""
        with without_autocast(kernel.device):
            matrices = at_least_float32(kernel).unflatten(0, (self.geometry.groups, -1))
            fft_size = self._containing(size)
            fits = self._fits(layer, fft_size)
            norm = norm_on(fft_size, matrices, self.geometry.dilation) if fits else norm_bound(matrices).max()
            return degree_for(layer.eval_terms, norm.item(), tolerance(layer))

    def _containing(self, size: Pair) -> Pair:
        """The circular image of which an image's convolution is a part: with zero padding a larger one."""
        if self.geometry.padding_mode == "circular":
            return size
        (kh, kw), (down, across) = self.geometry.kernel_size, self.geometry.dilation
        return size[0] + down * (kh // 2), size[1] + across * (kw // 2)

    def bound(self, layer: Any, input_shape: tuple[int, ...]) -> float:
        """The largest |p_T(i theta)| up to the skew kernel's norm on images of this size, T of the present mode.

        The spectral form and 1 x 1 kernels: the largest singular value.
        """
        size, geometry = self.strided_size(input_shape), self.geometry
        with torch.no_grad():
            if geometry.kernel_size == (1, 1):
                return ops.spectral_norm(as_it_runs(layer._effective()[0]), size, groups=geometry.groups).item()
            if self.spectral:
                (Q,) = layer._effective(*size)
                return largest_singular_value(Q.unflatten(1, (geometry.groups, -1)))
            (kernel,) = layer._effective()
            steps = (1, 1), geometry.pads, geometry.dilation, geometry.groups, geometry.padding_mode
            norm = ops.spectral_norm(as_it_runs(kernel), size, *steps).item()
            terms = present_terms(layer)
            difference = tolerance(layer) if self.degree(layer, size, kernel) < terms else 0.0
        return (largest_modulus(terms, norm) + difference) * layer._gain(terms)

    def fused(self, layer: LipschitzLayer, activation: nn.Module) -> Fusion | None:
        """With MaxMin, in evaluation with circular padding, by kept matrices: in the last stage of the transform."""
        return fused_by_kept(layer, self, activation)


def present_terms(layer: Any) -> int:
    """The number of terms in the layer's present mode."""
    return layer.terms if layer.training else layer.eval_terms


def tolerance(layer: Any) -> float:
    """Four roundings, by which 12 convolutions err as well."""
    return torch.finfo(torch.promote_types(layer.raw_weight.dtype, torch.float32)).eps * 2
