"""Worst-case rounding errors of the layers of fastlip, and of the modules that export makes of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastlip import nn as lip
from fastlip.certification.rounding.rules import (
    Shape,
    average,
    convolution,
    dense,
    in_double,
    moves,
    norm_of,
    reflection,
    register,
)
from fastlip.certification.rounding.terms import (
    Rounding,
    Unit,
    after,
    direct_roundings,
    norms_of,
    spectral_product,
    sum_of_products,
    underflow,
)
from fastlip.exporting import plain
from fastlip.kernels.common.padding import same_pads
from fastlip.kernels.conv_exp.truncation import taylor
from fastlip.kernels.spectral_conv import costs
from fastlip.kernels.spectral_conv.api import kernel_spectrum, per_frequency
from fastlip.nn._conv import KernelConv2d
from fastlip.nn._orthogonal import OrthogonalConv2d, largest_singular_value
from fastlip.nn._residual import ResidualConv2d, ResidualLinear
from fastlip.nn._skew import norm_on
from fastlip.nn.base import MatrixLinear

_ENLARGED = 1 + 1e-3  # norms, by the rounding of their computation in single precision


@register(MatrixLinear)
def _matrix(layer: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    return dense(unit, layer.effective()[0], layer.bias, output_shape)


@register(KernelConv2d)
def _kernel(layer: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    (kernel,) = layer.effective()
    image = (input_shape[-2], input_shape[-1])
    padded = image if layer.padding_mode == "zeros" else None
    options = layer.bias, layer.groups, layer.stride, output_shape, layer.dilation, padded
    direct = convolution(unit, kernel, *options)
    if not may_run_by_spectrum(layer):
        return direct
    torus = costs.torus_of(image, layer.pads, layer.padding_mode)
    bias = norm_of(layer.bias, math.prod(output_shape[1:]))
    return direct.worse(by_spectrum(unit, kernel, torus, math.prod(output_shape), bias))


def may_run_by_spectrum(layer: Any) -> bool:
    """Whether evaluation may apply the kernel by its spectrum, for some batch size."""
    geometry = layer.stride == (1, 1) and layer.kernel_size != (1, 1) and layer.groups == 1
    return geometry and layer.pads == same_pads(layer.kernel_size, layer.dilation)


def by_spectrum(unit: Unit, kernel: Tensor, torus: tuple[int, int], outputs: int, bias: float = 0.0) -> Rounding:
    """The error of a convolution by its spectrum, whose matrices have at most sqrt(taps) times the kernel's norm."""
    kernel = in_double(kernel)
    taps = math.prod(kernel.shape[2:])
    norms = norms_of(kernel.flatten(1)[None], taps)
    norm = min(math.sqrt(taps) * norms.spectral, norms.by_taps, norms.absolute)
    return spectral_product(unit, norm, (kernel.shape[1], kernel.shape[0]), torus, outputs, bias)


@register(OrthogonalConv2d)
def _per_frequency(layer: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    height, width = (-(-side // step) for side, step in zip(input_shape[-2:], layer.stride, strict=True))
    torus = layer.torus(height, width)
    (Q,) = layer.effective(*torus)
    if not torus:
        return convolution(unit, Q, layer.bias, layer.groups, (1, 1), output_shape)
    ports = Q.shape[2], Q.shape[1] // layer.groups
    bias = norm_of(layer.bias, math.prod(output_shape[1:]))
    norm = largest_singular_value(Q.unflatten(1, (layer.groups, -1)))
    return spectral_product(unit, norm, ports, (torus[0], torus[1]), math.prod(output_shape), bias)


@register(ResidualLinear)
def _residual_dense(layer: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    (scale,) = layer.effective()
    return residual_matrix(unit, layer.kernel, layer.bias, scale, output_shape)


def residual_matrix(unit: Unit, kernel: Tensor, bias: Tensor | None, scale: Tensor, output_shape: Shape) -> Rounding:
    """The error of x - W^T diag(scale) relu(W x + b) for a matrix W, balanced as in :func:`residual_kernel`."""
    balanced, shift, lost = _balance(unit, kernel, bias, scale, math.prod(output_shape[:-1]), 1)
    rows, columns = balanced.shape
    outputs = math.prod(output_shape[:-1]) * columns
    norms = norms_of(balanced[None])
    inner = sum_of_products(unit, norms, columns, 1, outputs // columns * rows, shift)
    outer = sum_of_products(unit, norms_of(balanced.T[None]), rows, 1, outputs)
    return _difference(unit, inner, outer, norms.spectral, shift, rows, outputs).plus(lost)


def _balance(
    unit: Unit, kernel: Tensor, bias: Tensor | None, scale: Tensor, pixels: int, windows: int
) -> tuple[Tensor, float, Rounding]:
    """S W with S = diag(scale)^{1/2}, the norm of S b, and what numbers below the normal range lose beside."""
    weight, root = in_double(kernel), in_double(scale).sqrt()
    balanced = weight * root.view(-1, *[1] * (weight.dim() - 1))
    shift = 0.0 if bias is None else norm_of(in_double(bias) * root, pixels)
    size = weight.norm().item() * math.sqrt(windows)
    count, outputs = sum(weight.shape[:2]) * windows + 4, sum(weight.shape[:2]) * pixels
    # What S h loses is S times what h loses; scale W may be flushed, which loses tiny times h.
    steep = max(1.0, root.amax().item() if len(root) else 0.0) * (1 + balanced.norm().item() * math.sqrt(windows))
    flushed = underflow(unit, count, outputs)
    lost = underflow(unit, count, outputs, weight.abs().amax().item() if weight.numel() else 0.0).times(steep)
    return balanced, shift, lost.plus(Rounding(flushed.relative * size, flushed.relative * norm_of(bias, pixels)))


def _difference(
    unit: Unit, inner: Rounding, outer: Rounding, norm: float, shift: float, count: int, outputs: int
) -> Rounding:
    """The error of x - V^T h behind those of h = relu(V x + c), |V| = norm and |c| = shift, and of V^T h.

    x may be the first summand of V^T h, of ``count`` products. Its matrix is rounded itself, or the scale is applied
    later: one more rounding of each product, which :func:`sum_of_products` has.
    """
    both = after(unit, inner, norm, outer, norm, shift)
    own = Rounding(unit.gamma(count + 2) + 2 * unit.u * (1 + norm * norm), 2 * unit.u * norm * shift)
    return both.plus(own).plus(underflow(unit, 2, outputs))


@register(ResidualConv2d)
def _residual_images(layer: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    image = tuple(-(-side // step) for side, step in zip(input_shape[-2:], layer.stride, strict=True))
    (scale,) = layer.effective(*layer.context(image))
    size = (image[0], image[1])
    by_kernel = layer.kernel, layer.bias, scale, layer.groups, size, layer.dilation, layer.padding_mode
    return residual_kernel(unit, *by_kernel, spectral=layer.groups == 1)


def residual_kernel(
    unit: Unit,
    kernel: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    groups: int,
    image: tuple[int, int],
    dilation: tuple[int, int],
    padding_mode: str,
    spectral: bool,
) -> Rounding:
    """The error of x - W^T diag(scale) relu(W x + b) for a convolution W of images; spectral: or by its spectrum.

    It is that of x - V^T relu(V x + S b) with V = S W, S = diag(scale)^{1/2}: errors of an inner channel are relative
    to sums of that channel, and scaled with it. The norm of V is at most about sqrt(2), whatever those of W are.
    """
    taps, pixels = math.prod(kernel.shape[2:]), math.prod(image)
    balanced, shift, lost = _balance(unit, kernel, bias, scale, pixels, taps)
    rows, columns = balanced.shape[0], groups * balanced.shape[1]
    padded = image if padding_mode == "zeros" else None
    adjoint = balanced.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    inner = convolution(unit, balanced, None, groups, (1, 1), (rows, *image), dilation, padded)
    inner = inner._replace(constant=inner.constant + inner.sums * shift)
    outer = convolution(unit, adjoint, None, groups, (1, 1), (columns, *image), dilation, padded)
    if spectral and taps > 1:
        torus = costs.torus_of(image, same_pads(tuple(kernel.shape[2:]), dilation), padding_mode)
        inner = inner.worse(by_spectrum(unit, balanced, torus, rows * pixels, shift))
        outer = outer.worse(by_spectrum(unit, adjoint, torus, columns * pixels))
    norm = operator_norm(balanced, groups, image, dilation, padding_mode)
    return _difference(unit, inner, outer, norm, shift, rows // groups * taps, columns * pixels).plus(lost)


def operator_norm(
    kernel: Tensor, groups: int, image: tuple[int, int], dilation: tuple[int, int], padding_mode: str
) -> float:
    """A bound of the norm of a "same" convolution at stride 1 on such images, and of its adjoint."""
    largest = kernel.abs().amax().item() if kernel.numel() else 0.0
    if largest == 0:
        return 0.0
    reach = (0, 0)
    if padding_mode == "zeros":
        reach = tuple(d * (k - 1) for d, k in zip(dilation, kernel.shape[2:], strict=True))
    torus = image[0] + reach[0], image[1] + reach[1]
    scaled = (kernel / largest).float().unflatten(0, (groups, -1))
    return largest * norm_on(torus, scaled, dilation).item() * _ENLARGED


@register(lip.SOCConv2d)
def _exponential(layer: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    height, width = (-(-side // step) for side, step in zip(input_shape[-2:], layer.stride, strict=True))
    bias = norm_of(layer.bias, math.prod(output_shape[1:]))
    if layer.kernel_size == (1, 1):
        return convolution(unit, layer.effective()[0], layer.bias, layer.groups, (1, 1), output_shape)
    if layer.exponential == "spectral":
        (Q,) = layer.effective(height, width)
        norm = largest_singular_value(Q.unflatten(1, (layer.groups, -1)))
        ports = Q.shape[2], Q.shape[1] // layer.groups
        numbers = layer.width * height * width
        return spectral_product(unit, norm, ports, (height, width), numbers, bias)
    (kernel,) = layer.effective()
    terms, gain = layer.eval_terms, layer.gain(layer.eval_terms)
    by_kernel = kernel, layer.groups, (height, width), layer.dilation, layer.padding_mode
    error = series(unit, *by_kernel, terms, gain, bias, spectral=layer.groups == 1)
    error = error.plus(Rounding(4 * unit.u * gain * 2))  # a polynomial of lower degree, up to four roundings
    if layer.padding_mode == "circular":
        error = error.worse(_kept_series(layer, unit, kernel, (height, width), bias))
    return error


def series(
    unit: Unit,
    kernel: Tensor,
    groups: int,
    image: tuple[int, int],
    dilation: tuple[int, int],
    padding_mode: str,
    terms: int,
    gain: float,
    bias: float,
    spectral: bool,
) -> Rounding:
    r"""The error of gain sum_t K^t x / t! + b, by Horner's rule or by powers: that of one K, times p'(\|K\|).

    Its coefficients are those of the exponential, or up to a few roundings on the spectrum of K those of a polynomial
    of lower degree: twice the bound has room for that.
    """
    width = groups * kernel.shape[1]
    outputs = width * math.prod(image)
    padded = image if padding_mode == "zeros" else None
    once = convolution(unit, kernel, None, groups, (1, 1), (width, *image), dilation, padded)
    if spectral:
        torus = costs.torus_of(image, same_pads(tuple(kernel.shape[2:]), dilation), padding_mode)
        once = once.worse(by_spectrum(unit, kernel, torus, outputs))
    norm = operator_norm(in_double(kernel), groups, image, dilation, padding_mode)
    values = taylor(terms)
    size = sum(value * norm**t for t, value in enumerate(values))
    slope = sum(t * value * norm ** (t - 1) for t, value in enumerate(values) if t)
    factor = 2 * max(gain, 1.0)
    # The kernel times a ratio of coefficients is rounded: one more rounding of each product.
    moduli = norms_of(in_double(kernel).flatten(1).unflatten(0, (groups, -1)), math.prod(kernel.shape[2:])).absolute
    rounded = once.relative + unit.u * moduli
    own = Rounding(
        factor * (slope * rounded + unit.gamma(4 * terms) * size),
        factor * slope * once.constant + once.sums * bias,
        largest=once.largest / max(size, 1.0),
    )
    return own.plus(underflow(unit, terms, outputs).times(size))


def _kept_series(layer: Any, unit: Unit, kernel: Tensor, torus: tuple[int, int], bias: float) -> Rounding:
    """The error where the series is one matrix per frequency: that of the matrices is measured."""
    height, width = torus
    K = kernel_spectrum(in_double(kernel), torus, layer.dilation)
    gain = layer.gain(layer.eval_terms)

    def exact(matrices: Tensor) -> Tensor:
        grouped = matrices.unflatten(1, (layer.groups, -1)).flatten(0, 1)
        total = torch.eye(grouped.shape[-1], dtype=grouped.dtype).expand_as(grouped)
        for t in range(layer.eval_terms, 0, -1):
            total = torch.eye(grouped.shape[-1], dtype=grouped.dtype) + grouped @ total / t
        return (gain * total).view_as(matrices)

    wanted = per_frequency(exact, K, torus)
    (Q,) = layer.parametrize(height, width)
    found = Q.detach().to("cpu", torch.complex128)
    off = torch.linalg.matrix_norm((found - wanted).unflatten(1, (layer.groups, -1))).amax().item()
    norm = largest_singular_value(found.unflatten(1, (layer.groups, -1)))
    ports = found.shape[2], found.shape[1] // layer.groups
    numbers = layer.width * height * width
    return spectral_product(unit, norm, ports, torus, numbers, bias).plus(Rounding(2 * off))


@register(lip.ScaledAvgPool2d, plain.ScaledPool)
def _scaled_pool(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    return average(unit, math.prod(module.kernel_size), value, math.prod(output_shape))


@register(lip.L2NormPool2d, plain.NormPool)
def _norm_pool(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    # Squares below the normal range vanish: n of them are sqrt(n tiny) behind the root.
    length, outputs = math.prod(module.kernel_size), math.prod(output_shape)
    lost = math.sqrt(4 * length * unit.tiny * outputs)
    return Rounding(unit.gamma(length + 4), lost, largest=math.sqrt(unit.largest) / 1024)


@register(plain.SortPairs, plain.SortGroups, plain.Absolute, plain.FirstEntries)
@register(plain.PadChannels, plain.PadGroups, plain.Patches)
def _plain_moves(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    return moves(math.prod(output_shape), unit)


register(plain.Reflection)(reflection)


@register(plain.Convolution)
def _plain_convolution(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    return convolution(unit, module.weight, module.bias, module.groups, module.stride, output_shape)


@register(plain.ResidualConvolution)
def _plain_residual(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    image = input_shape[-2], input_shape[-1]
    by_kernel = module.kernel, module.bias, module.scale, module.groups, image, module.dilation, module.padding_mode
    return residual_kernel(unit, *by_kernel, spectral=False)


@register(plain.ResidualDense)
def _plain_dense(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    return residual_matrix(unit, module.kernel, module.bias, module.scale, output_shape)


@register(plain.Exponential)
def _plain_series(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    image = input_shape[-2], input_shape[-1]
    bias = norm_of(module.bias, math.prod(output_shape[1:]))
    by_kernel = module.kernel, module.groups, image, module.dilation, module.padding_mode
    return series(unit, *by_kernel, module.terms, module.gain, bias, spectral=False)


@register(plain.SpectralConvolution)
def _plain_spectral(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    ports = module.spectrum.shape[3], module.spectrum.shape[2]
    bias = norm_of(module.bias, math.prod(output_shape[1:]))
    return spectral_product(unit, value, ports, module.torus, math.prod(output_shape), bias, direct_roundings)
