"""Worst-case rounding errors of layers with a weight, and of the modules that export makes of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastlip.certification.rounding.residual import residual_kernel, residual_matrix, series
from fastlip.certification.rounding.rules import Shape, register
from fastlip.certification.rounding.sums import convolution, dense, in_double, norm_of, transposed
from fastlip.certification.rounding.terms import (
    TRANSFORMS,
    Rounding,
    Unit,
    spectral_product,
)
from fastlip.exporting import plain
from fastlip.inspection.geometry import blocks
from fastlip.kernels.common.geometry import ConvGeometry, Pair
from fastlip.kernels.spectral_conv.api import kernel_spectrum, per_frequency
from fastlip.nn.applications import (
    Dense,
    ExponentialConvolution,
    FrequencyConvolution,
    KernelConvolution,
    ResidualConvolution,
    ResidualDense,
    TransposedConvolution,
)
from fastlip.nn.applications.frequency import largest_singular_value


@register(Dense)
def _matrix(layer: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    return dense(unit, layer._effective()[0], layer.bias, output_shape)


@register(KernelConvolution)
def _kernel(layer: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    (kernel,), geometry = layer._effective(), layer._application.geometry
    image, bias = input_shape[-geometry.axes :], norm_of(layer.bias, math.prod(output_shape[1:]))
    padded = image if geometry.padding_mode == "zeros" else None
    spectral = image if geometry.has_spectrum else None
    return convolution(unit, kernel, bias, geometry, output_shape, padded, spectral)


@register(TransposedConvolution)
def _transposed(layer: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    return transposed(unit, layer._effective()[0], layer.bias, layer.groups, output_shape)


@register(FrequencyConvolution)
def _per_frequency(layer: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    fft_size = layer._application.fft_size(layer, *blocks(layer._application.geometry, input_shape))
    (Q,) = layer._effective(*fft_size)
    if not fft_size:
        return _one_tap(unit, Q, layer.bias, layer.groups, output_shape)
    return _frequencies(unit, Q, layer, fft_size, math.prod(output_shape), output_shape)


def _at_stride_one(kernel: Tensor, geometry: ConvGeometry) -> ConvGeometry:
    """The geometry of a layer's kernel, which acts on images whose patches became channels."""
    return ConvGeometry.like(kernel, geometry.dilation, geometry.groups, geometry.padding_mode)


def _one_tap(unit: Unit, Q: Tensor, bias: Tensor | None, groups: int, output_shape: Shape) -> Rounding:
    """The error of a kernel of one tap, after space-to-depth."""
    size = norm_of(bias, math.prod(output_shape[1:]))
    return convolution(unit, Q, size, ConvGeometry(tuple(Q.shape[2:]), groups=groups), output_shape)


def _frequencies(unit: Unit, Q: Tensor, layer: Any, fft_size: Pair, numbers: int, output_shape: Shape) -> Rounding:
    """The error of one matrix per frequency, (frequencies, outputs, inputs of a group), for ``numbers`` outputs."""
    norm = largest_singular_value(Q.unflatten(1, (layer.groups, -1)))
    ports = Q.shape[2], Q.shape[1] // layer.groups
    bias = norm_of(layer.bias, math.prod(output_shape[1:]))
    return spectral_product(unit, norm, ports, fft_size, numbers, bias)


@register(ExponentialConvolution)
def _exponential(layer: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    if layer._application.geometry.kernel_size == (1, 1):
        return _one_tap(unit, layer._effective()[0], layer.bias, layer.groups, output_shape)
    geometry = layer._application.geometry
    image = blocks(geometry, input_shape)
    if layer._exponential == "spectral":
        (Q,) = layer._effective(*image)
        return _frequencies(unit, Q, layer, image, layer._width * math.prod(image), output_shape)
    (kernel,) = layer._effective()
    bias = norm_of(layer.bias, math.prod(output_shape[1:]))
    terms, gain = layer.eval_terms, layer._gain(layer.eval_terms)
    error = series(
        unit, kernel, _at_stride_one(kernel, geometry), image, terms, gain, bias, spectral=layer.groups == 1
    )
    error = error.plus(Rounding(4 * unit.u * gain * 2))  # a polynomial of lower degree, up to four roundings
    if layer.padding_mode == "circular":
        error = error.worse(_kept_series(layer, unit, kernel, image, output_shape))
    return error


def _kept_series(layer: Any, unit: Unit, kernel: Tensor, image: Pair, output_shape: Shape) -> Rounding:
    """The error where the series is one matrix per frequency: that of the matrices is measured."""
    K = kernel_spectrum(in_double(kernel), image, layer._application.geometry.dilation)
    gain = layer._gain(layer.eval_terms)

    def exact(matrices: Tensor) -> Tensor:
        grouped = matrices.unflatten(1, (layer.groups, -1)).flatten(0, 1)
        total = torch.eye(grouped.shape[-1], dtype=grouped.dtype).expand_as(grouped)
        for t in range(layer.eval_terms, 0, -1):
            total = torch.eye(grouped.shape[-1], dtype=grouped.dtype) + grouped @ total / t
        return (gain * total).view_as(matrices)

    wanted = per_frequency(exact, K, image)
    (Q,) = layer._parametrize(*image)
    found = Q.detach().to("cpu", torch.complex128)
    off = torch.linalg.matrix_norm((found - wanted).unflatten(1, (layer.groups, -1))).amax().item()
    numbers = layer._width * math.prod(image)
    return _frequencies(unit, found, layer, image, numbers, output_shape).plus(Rounding(2 * off))


@register(ResidualConvolution)
def _residual(layer: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    geometry = layer._application.geometry
    image = blocks(geometry, input_shape)
    (scale,) = layer._effective(*layer._application.context(image))
    inner = _at_stride_one(layer.kernel, geometry)
    spectral = layer.groups == 1 and geometry.axes == 2
    return residual_kernel(unit, layer.kernel, layer.bias, scale, inner, image, spectral)


@register(ResidualDense)
def _residual_dense(layer: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    (scale,) = layer._effective()
    return residual_matrix(unit, layer.kernel, layer.bias, scale, output_shape)


@register(plain.Convolution)
def _plain_convolution(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    bias = norm_of(module.bias, math.prod(output_shape[1:]))
    return convolution(unit, module.weight, bias, module.geometry, output_shape)


@register(plain.ResidualConvolution)
def _plain_residual(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    image = input_shape[-module.geometry.axes :]
    return residual_kernel(unit, module.kernel, module.bias, module.scale, module.geometry, image, spectral=False)


@register(plain.ResidualDense)
def _plain_dense(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    return residual_matrix(unit, module.kernel, module.bias, module.scale, output_shape)


@register(plain.Exponential)
def _plain_series(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    image = input_shape[-2], input_shape[-1]
    bias = norm_of(module.bias, math.prod(output_shape[1:]))
    return series(unit, module.kernel, module.geometry, image, module.terms, module.gain, bias, spectral=False)


@register(plain.SpectralConvolution)
def _plain_spectral(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    ports = module.spectrum.shape[3], module.spectrum.shape[2]
    bias = norm_of(module.bias, math.prod(output_shape[1:]))
    return spectral_product(
        unit, value, ports, module.fft_size, math.prod(output_shape), bias, TRANSFORMS[module.fourier]
    )
