"""The bounds of this package's modules: activations, selections, pools, and layers that bound themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from fastlip import nn as lip
from fastlip.certification.bounds.table import Bound, Shape, lipschitz_bound, register
from fastlip.certification.bounds.tightness import convolution_is_exact, matrix_is_exact
from fastlip.certification.bounds.weights import linear_form
from fastlip.exporting import plain
from fastlip.inspection.rules import Rules, of_images
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.nn.applications import (
    Dense,
    ExponentialConvolution,
    FrequencyConvolution,
    KernelConvolution,
    ResidualConvolution,
    ResidualDense,
    SandwichConvolution,
    SandwichDense,
    TransposedConvolution,
)
from fastlip.nn.base import LipschitzLayer, as_it_runs, at_least_float32
from fastlip.nn.sequences import OneRow, row_shape
from fastlip.nn.weighting import check_weights

_PASSES = 4  # residual, series and spectral layers pass several times over data of a few times the input's norm


@register(lip.MaxMin, lip.GroupSort, lip.Abs, lip.ZeroChannelPad, lip.FirstChannels, lip.PixelUnshuffle)
@register(lip.PartialAbs, lip.SpatialShift, lip.PixelUnshuffle1d, lip.PixelShuffle1d)
@register(lip.PixelUnshuffle3d, lip.PixelShuffle3d)
def _moves_entries(module: Any, input_shape: Shape, output_shape: Shape) -> Bound:
    return Bound(1.0, "1 by construction", 0.0, exact=True)


@lipschitz_bound.register
def _reflection(module: lip.HouseHolder, input_shape: Shape, output_shape: Shape) -> Bound:
    theta = at_least_float32(module.theta)
    cosine, sine = (as_it_runs(value.to(module.theta.dtype)) for value in (theta.cos(), theta.sin()))
    longest = torch.hypot(cosine, sine).amax().item() if len(theta) else 1.0
    return Bound(max(1.0, longest), "reflections as rounded", 4.0, exact=True)


@register(lip.BatchCentering, lip.PositionBias)
def _translation(module: Any, input_shape: Shape, output_shape: Shape) -> Bound:
    return Bound(1.0, "a translation", 1.0, constant_of(module, input_shape), exact=True)


@lipschitz_bound.register
def _projection(module: lip.LayerCentering, input_shape: Shape, output_shape: Shape) -> Bound:
    count = module.count(input_shape)
    return Bound(1.0, "a projection", _PASSES * math.sqrt(count), constant_of(module, input_shape), exact=count > 1)


@lipschitz_bound.register
def _factor(module: lip.Scale, input_shape: Shape, output_shape: Shape) -> Bound:
    value = module.constant()
    return Bound(value, "its constant", 2 * value, exact=True)


@lipschitz_bound.register
def _weights(module: lip.InputWeights, input_shape: Shape, output_shape: Shape) -> Bound:
    check_weights("InputWeights: weights", module.weights)
    if module.weights.dim() not in (0, len(input_shape)):
        raise ValueError(
            f"InputWeights: weights of shape {tuple(module.weights.shape)}, expected one side for each dimension"
            f" of the samples {input_shape}"
        )
    value = module.weights.double().amax().item()
    return Bound(value, "largest weight", plain.BY_OUTPUT, exact=True)


def constant_of(module: Any, input_shape: Shape) -> float:
    """The norm of what a translation adds to a sample: its bias, or the shift of a centering layer."""
    added: Any = getattr(module, "shift" if isinstance(module, (lip.BatchCentering, plain.Plain)) else "bias")
    added = added() if isinstance(module, lip.BatchCentering) else added
    if added is None:
        return 0.0
    norm = torch.linalg.vector_norm(added.detach().to("cpu", torch.float64)).item()
    return norm * math.sqrt(math.prod(input_shape) / added.numel())


class Details(NamedTuple):
    """Properties of a bound that a layer finds itself: its roundings for a bound of 1, and whether it is exact."""

    roundings: float | None
    exact: bool = False


DetailsRule = Callable[[Any, Shape], Details]
_DETAILS: Rules[DetailsRule] = Rules()


def own_bound(module: Any, input_shape: Shape, output_shape: Shape) -> Bound:
    """The bound that the module's own ``lipschitz_bound`` gives."""
    value = float(module.lipschitz_bound(input_shape))
    details = (_DETAILS.rule_of(module) or _unknown)(module, input_shape)
    roundings = None if details.roundings is None else value * details.roundings
    return Bound(value, "effective weight", roundings, exact=details.exact)


def _unknown(module: Any, input_shape: Shape) -> Details:
    # Attributes of others' modules say nothing about what their forward does.
    return Details(_by_passes(input_shape) if isinstance(module, LipschitzLayer) else None)


def _by_passes(input_shape: Shape) -> float:
    return _PASSES * math.sqrt(math.prod(input_shape))


def _over_taps(geometry: ConvGeometry, input_shape: Shape) -> float:
    return _PASSES * math.sqrt(input_shape[0]) * geometry.taps


@_DETAILS.register(Dense)
def _matrix(layer: Any, input_shape: Shape) -> Details:
    rows, columns = layer.out_features, layer.in_features
    roundings = _by_passes(input_shape) if linear_form(layer) is None else math.sqrt(columns)
    return Details(roundings, matrix_is_exact(rows, columns))


@_DETAILS.register(KernelConvolution)
def _kernel(layer: Any, input_shape: Shape) -> Details:
    geometry, inputs = layer._application.geometry, layer.in_channels // layer.groups
    roundings = _over_taps(geometry, input_shape) if linear_form(layer) is None else sum_roundings(inputs, geometry)
    shape = layer.out_channels, inputs, *geometry.kernel_size
    return Details(roundings, convolution_is_exact(shape, input_shape[-geometry.axes :], geometry))


@_DETAILS.register(TransposedConvolution)
def _transposed(layer: Any, input_shape: Shape) -> Details:
    if linear_form(layer) is None:
        return Details(_by_passes(input_shape))
    return Details(sum_roundings(layer.in_channels, ConvGeometry(layer.kernel_size, layer.stride)))


@_DETAILS.register(FrequencyConvolution)
def _per_frequency(layer: Any, input_shape: Shape) -> Details:
    geometry = layer._application.geometry
    # Every frequency's matrix acts as it is: no zeros around the image.
    whole = layer.padding_mode == "circular" or max(layer._application.taps) == 1
    return Details(_over_taps(geometry, input_shape), whole and _divides(geometry, input_shape))


@_DETAILS.register(ExponentialConvolution)
def _exponential(layer: Any, input_shape: Shape) -> Details:
    geometry = layer._application.geometry
    whole = geometry.kernel_size == (1, 1)
    return Details(_over_taps(geometry, input_shape), whole and _divides(geometry, input_shape))


@_DETAILS.register(ResidualConvolution, SandwichConvolution)
def _residual(layer: Any, input_shape: Shape) -> Details:
    return Details(_over_taps(layer._application.geometry, input_shape))


@_DETAILS.register(OneRow)
def _of_sequences(layer: Any, input_shape: Shape) -> Details:
    return of_images(_DETAILS.table, layer)(layer, row_shape(input_shape))


@_DETAILS.register(ResidualDense, SandwichDense)
def _residual_dense(layer: Any, input_shape: Shape) -> Details:
    return Details(_by_passes(input_shape))


def _divides(geometry: ConvGeometry, input_shape: Shape) -> bool:
    """Whether the stride divides the image: no zeros after it."""
    axes = zip(input_shape[-geometry.axes :], geometry.stride, strict=True)
    return not any([side % step for side, step in axes])


@_DETAILS.register(lip.ScaledAvgPool2d, lip.L2NormPool2d, lip.AdaptiveL2NormPool2d)
@_DETAILS.register(lip.ScaledAvgPool1d, lip.L2NormPool1d, lip.AdaptiveL2NormPool1d)
@_DETAILS.register(lip.ScaledAvgPool3d, lip.L2NormPool3d, lip.AdaptiveL2NormPool3d)
def _pool(module: Any, input_shape: Shape) -> Details:
    return Details(_by_passes(input_shape), exact=True)


@_DETAILS.register(plain.Plain)
def _plain(module: plain.Plain, input_shape: Shape) -> Details:
    roundings = module.roundings(input_shape)
    return Details(roundings, exact=roundings == 0)


@_DETAILS.register(plain.Shift, plain.ShiftImage, plain.Multiply, plain.Weigh, plain.AdaptiveNormPool)
def _plain_exact(module: plain.Plain, input_shape: Shape) -> Details:
    return Details(module.roundings(input_shape), exact=True)


@_DETAILS.register(plain.Convolution)
def _plain_convolution(module: plain.Convolution, input_shape: Shape) -> Details:
    image = input_shape[-module.geometry.axes :]
    exact = convolution_is_exact(tuple(module.weight.shape), image, module.geometry)
    return Details(module.roundings(input_shape), exact)


@_DETAILS.register(plain.SpectralConvolution)
def _plain_spectral(module: plain.SpectralConvolution, input_shape: Shape) -> Details:
    return Details(module.roundings(input_shape), exact=module.fft_size == module.image)


@lru_cache(1024)
def sum_roundings(inputs: int, geometry: ConvGeometry) -> float:
    r"""Roundings of y = W x relative to |W|_2 |x|, W dense or a convolution: sqrt(n), n the length of its sums.

    Whatever the order of summation, a partial sum is a part of W's columns times a part of x: its norm is at most
    |W|_2 |x|, in a convolution times the square root of how many windows see a pixel. Each of the n is rounded
    with a relative error of at most u, and independent errors add up in square (Higham, Mary, *A New Approach
    to Probabilistic Rounding Error Analysis*, SIAM J. Sci. Comput. 2019); the worst case is n instead of
    sqrt(n).
    """
    windows = 1
    for k, s in zip(geometry.kernel_size, geometry.stride, strict=True):
        windows *= -(-k // s)
    return math.sqrt(inputs * geometry.taps * windows)
