"""Worst-case rounding errors of sandwich layers W_2 phi(W_1 x + c), layers and exported modules alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastlip.certification.rounding.rules import Shape, register
from fastlip.certification.rounding.sums import convolution, in_double, norm_of
from fastlip.certification.rounding.terms import (
    TRANSFORMS,
    Rounding,
    Unit,
    after,
    norms_of,
    spectral_product,
    sum_of_products,
    transform_roundings,
    underflow,
)
from fastlip.exporting import plain
from fastlip.kernels.common.geometry import ConvGeometry, Pair
from fastlip.nn.applications import SandwichConvolution, SandwichDense
from fastlip.nn.applications.frequency import largest_singular_value
from fastlip.nn.applications.sandwich import SANDWICH_ACTIVATIONS, SandwichActivation, spread_and_shift_of

_SMOOTH = 16.0  # rounding allowance of an elementwise function, including the library's exp


def sandwich(
    unit: Unit,
    products: tuple[Rounding, Rounding],
    norms: tuple[float, float],
    shift: float,
    activation: SandwichActivation,
    spread: Tensor | None,
    repeats: int,
) -> Rounding:
    """The error of two products around phi(z) = s sigma(z / s), which has |phi(z)| <= |z| + s |sigma(0)|.

    Args:
        unit: that of the dtype.
        products: the errors of W_1 x + c and of W_2 h.
        norms: those of W_1 and W_2.
        shift: the norm of c, repeated for all pixels.
        activation: sigma.
        spread: s, one number for each hidden channel; read unless sigma is relu.
        repeats: the number of pixels, or of rows of a dense layer's input.
    """
    first, second = products
    offset = shift
    if activation != "relu" and spread is not None:
        s = in_double(spread)
        offset += SANDWICH_ACTIVATIONS[activation] * norm_of(s, repeats)
        steep, flat = max(1.0, s.amax().item()), min(1.0, s.amin().item())
        limit = unit.largest / 1024 * flat / max(1.0, norms[0])
        own = Rounding(_SMOOTH * unit.u * norms[0], _SMOOTH * unit.u * offset, largest=limit)
        first = first.plus(own).plus(underflow(unit, _SMOOTH, len(s) * repeats, 4.0).times(steep))
    return after(unit, first, norms[1], second, norms[0], offset)


def matrices(
    unit: Unit, activation: SandwichActivation, first: Tensor, second: Tensor, rest: Any, output_shape: Shape
) -> Rounding:
    """The error of a dense layer with these matrices; rest: the spread, and the shift or None."""
    (spread, shift), repeats = rest, math.prod(output_shape[:-1])
    one, two = in_double(first), in_double(second)
    norms = norms_of(one[None]), norms_of(two[None])
    size = norm_of(shift, repeats)
    products = (
        sum_of_products(unit, norms[0], one.shape[1], 1, one.shape[0] * repeats, size),
        sum_of_products(unit, norms[1], two.shape[1], 1, two.shape[0] * repeats),
    )
    return sandwich(unit, products, (norms[0].spectral, norms[1].spectral), size, activation, spread, repeats)


def pixels(
    unit: Unit,
    activation: SandwichActivation,
    first: Tensor,
    second: Tensor,
    rest: Any,
    groups: int,
    output_shape: Shape,
) -> Rounding:
    """The error of two kernels of one tap."""
    (spread, shift), repeats = rest, math.prod(output_shape[1:])
    geometry = ConvGeometry((1, 1), groups=groups)
    products = (
        convolution(unit, first, norm_of(shift, repeats), geometry, output_shape),
        convolution(unit, second, 0.0, geometry, output_shape),
    )
    grouped = [in_double(kernel).flatten(1).unflatten(0, (groups, -1)) for kernel in (first, second)]
    norms = norms_of(grouped[0]).spectral, norms_of(grouped[1]).spectral
    return sandwich(unit, products, norms, norm_of(shift, repeats), activation, spread, repeats)


def frequencies(
    unit: Unit,
    activation: SandwichActivation,
    matrices_of: tuple[Tensor, Tensor],
    rest: Any,
    fft_size: Pair,
    output_shape: Shape,
    transform: Callable[[int], float],
) -> Rounding:
    """The error of two matrices per frequency, (frequencies, groups, outputs, inputs)."""
    (spread, shift), repeats, numbers = rest, math.prod(output_shape[1:]), math.prod(output_shape)
    norms = largest_singular_value(matrices_of[0]), largest_singular_value(matrices_of[1])
    size = norm_of(shift, repeats)
    ports = [(Q.shape[-1], Q.shape[-2]) for Q in matrices_of]
    products = (
        spectral_product(unit, norms[0], ports[0], fft_size, numbers, size, transform),
        spectral_product(unit, norms[1], ports[1], fft_size, numbers, 0.0, transform),
    )
    return sandwich(unit, products, norms, size, activation, spread, repeats)


@register(SandwichDense)
def _dense(layer: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    first, second, *rest = layer._effective()
    return matrices(unit, layer._application.activation, first, second, spread_and_shift_of(rest), output_shape)


@register(SandwichConvolution)
def _convolution(layer: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    application = layer._application
    fft_size = application.fft_size(layer, *application.strided_size(input_shape))
    first, second, *others = layer._effective(*fft_size)
    rest = spread_and_shift_of(others)
    if not fft_size:
        return pixels(unit, application.activation, first, second, rest, layer.groups, output_shape)
    both = application.matrices_of(layer, input_shape)
    return frequencies(unit, application.activation, both, rest, fft_size, output_shape, transform_roundings)


@register(plain.SandwichProducts)
def _plain_products(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    rest = module.spread, module.bias
    if module.groups is None:
        return matrices(unit, module.activation, module.first, module.second, rest, output_shape)
    return pixels(unit, module.activation, module.first, module.second, rest, module.groups, output_shape)


@register(plain.SandwichSpectra)
def _plain_spectra(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    rest = module.spread, module.bias
    both = module.matrices_of()
    return frequencies(unit, module.activation, both, rest, module.fft_size, output_shape, TRANSFORMS[module.fourier])
