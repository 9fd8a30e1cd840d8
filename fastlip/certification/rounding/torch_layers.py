"""Worst-case rounding errors of ``torch.nn``'s modules, and of this package's that have no weight."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from fastlip import nn as lip
from fastlip.certification.bounds.layers import constant_of
from fastlip.certification.bounds.pools import AVERAGE_POOLS, MAX_POOLS, windows
from fastlip.certification.bounds.torch_layers import MOVES, SLOPES, duplication
from fastlip.certification.rounding.rules import Shape, register
from fastlip.certification.rounding.sums import average, convolution, dense, in_double, norm_of, transposed
from fastlip.certification.rounding.terms import Rounding, Unit, underflow
from fastlip.exporting import plain
from fastlip.kernels.common.geometry import ConvGeometry

_SMOOTH = 16.0  # rounding allowance per elementwise function, including the library's exp


@register(lip.MaxMin, lip.GroupSort, lip.Abs, lip.ZeroChannelPad, lip.FirstChannels, lip.PixelUnshuffle)
@register(plain.SortPairs, plain.SortGroups, plain.Absolute, plain.FirstEntries)
@register(plain.PadChannels, plain.PadGroups, plain.Patches)
@register(lip.PixelUnshuffle1d, lip.PixelShuffle1d, plain.Interleave)
@register(lip.PixelUnshuffle3d, lip.PixelShuffle3d, plain.Spread)
@register(lip.PartialAbs, lip.SpatialShift, plain.AbsoluteFirst, plain.ShiftPixels)
@register(*MOVES, *MAX_POOLS)
def _moves(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    # Numbers below the normal range may become zero.
    return underflow(unit, 1, math.prod(output_shape), 0.0)


@register(lip.HouseHolder, plain.Reflection)
def _reflection(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    """Two products and a sum for each entry, and pairs near their line that fall on its other side."""
    return Rounding(16 * unit.u * value).plus(underflow(unit, 8, math.prod(output_shape)))


@register(*SLOPES, nn.LeakyReLU, nn.PReLU, nn.ELU)
def _elementwise(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    outputs = math.prod(output_shape)
    error = Rounding(_SMOOTH * unit.u * max(value, 1), output=_SMOOTH * unit.u)
    if isinstance(module, nn.Hardsigmoid):  # x + 3 is rounded first
        error = error.plus(Rounding(constant=_SMOOTH * unit.u * math.sqrt(outputs)))
    if isinstance(module, nn.Softplus):  # beyond its threshold it is x itself
        jump = math.log1p(math.exp(-module.threshold)) / module.beta
        error = error.plus(Rounding(constant=jump * math.sqrt(outputs)))
    return error.plus(underflow(unit, _SMOOTH, outputs, 4.0))


@register(nn.Softmax)
def _softmax(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    # exp(x - max x) is off by 2 |x|_inf u of itself, the sum of n of them by n u: and so is their quotient.
    outputs = math.prod(output_shape)
    length = max(input_shape)
    groups = outputs / min(input_shape)
    own = Rounding(4 * unit.u, unit.gamma(length + _SMOOTH) * math.sqrt(groups))
    return own.plus(underflow(unit, length + _SMOOTH, outputs, 4.0))


@register(nn.Linear)
def _linear(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    return dense(unit, module.weight, module.bias, output_shape)


@register(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _convolution(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    weight, geometry, image = module.weight, ConvGeometry.of_module(module), input_shape[1:]
    if isinstance(module, nn.Conv1d):  # an image of one row
        weight, image, output_shape = weight.unsqueeze(2), (1, *image), (output_shape[0], 1, output_shape[1])
    padded = image if module.padding_mode == "zeros" else None
    bias = norm_of(module.bias, math.prod(output_shape[1:]))
    error = convolution(unit, weight, bias, geometry, output_shape, padded)
    if module.padding_mode in ("reflect", "replicate"):
        error = error.times(duplication(geometry, image, module.padding_mode)[0])
    return error


@register(nn.ConvTranspose2d)
def _transposed(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    return transposed(unit, module.weight, module.bias, module.groups, output_shape)


@register(*AVERAGE_POOLS)
def _average(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    length = math.prod(int(seen.sum(1).amax()) for seen in windows(module, input_shape, output_shape))
    return average(unit, length, value, math.prod(output_shape))


@register(lip.ScaledAvgPool1d, lip.ScaledAvgPool2d, lip.ScaledAvgPool3d, plain.ScaledPool)
def _scaled_pool(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    return average(unit, math.prod(module.kernel_size), value, math.prod(output_shape))


@register(lip.L2NormPool1d, lip.L2NormPool2d, lip.L2NormPool3d, plain.NormPool)
def _norm_pool(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    # Squares below the normal range vanish: n of them are sqrt(n tiny) after the root.
    length, outputs = math.prod(module.kernel_size), math.prod(output_shape)
    lost = math.sqrt(4 * length * unit.tiny * outputs)
    return Rounding(unit.gamma(length + 4), lost, largest=math.sqrt(unit.largest) / 1024)


@register(lip.AdaptiveL2NormPool1d, lip.AdaptiveL2NormPool2d, lip.AdaptiveL2NormPool3d, plain.AdaptiveNormPool)
def _adaptive_norm_pool(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    """As above, along one axis after the other."""
    sizes = input_shape[-len(module.output_size) :]
    sides = [-(-side // parts) for side, parts in zip(sizes, module.output_size, strict=True)]
    lost = math.sqrt(4 * math.prod(sides) * unit.tiny * math.prod(output_shape))
    return Rounding(unit.gamma(math.prod(sides) + 8), 2 * lost, largest=math.sqrt(unit.largest) / 1024)


@register(lip.BatchCentering, lip.PositionBias, plain.Shift, plain.ShiftImage)
def _translation(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    """The rounding of what is added (a difference, perhaps in a coarser dtype), and of the sum."""
    outputs = math.prod(output_shape)
    size = constant_of(module, input_shape)
    return Rounding(constant=4 * unit.u * size, output=2 * unit.u).plus(underflow(unit, 4, outputs))


@register(lip.LayerCentering, plain.Centre)
def _centering(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    r"""A mean of N entries is off by gamma_N |x| / sqrt(N), which N entries subtract; difference and bias."""
    dims = module.dims if isinstance(module, plain.Centre) else module.dim
    count, outputs = math.prod(input_shape[dim] for dim in dims), math.prod(output_shape)
    size = 0.0 if isinstance(module, plain.Centre) else constant_of(module, input_shape)
    own = Rounding(unit.gamma(count + 8), 2 * unit.u * size, output=2 * unit.u)
    return own.plus(underflow(unit, count + 8, outputs))


@register(lip.Scale, plain.Multiply)
def _factor(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    """The rounding of the number, which may come from an exponential, and of the product."""
    return Rounding(8 * unit.u * value, output=2 * unit.u).plus(underflow(unit, 2, math.prod(output_shape), value))


@register(lip.InputWeights, plain.Weigh)
def _input_weights(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    """The roundings of y = w (x - c), two for each entry of y: nothing depends on the size of x in its own units.

    A number below the normal range may become zero, x before it is multiplied by w included. Under a weighted norm a
    distance r is at most r / min w in L2 norm, by which x - c may overflow.
    """
    weights, outputs = in_double(module.weights), math.prod(output_shape)
    smallest, largest = (min(1.0, weights.amin().item()), max(1.0, weights.amax().item()))
    lost = unit.tiny * (8 * math.sqrt(outputs) + 2 * norm_of(weights, outputs / weights.numel()))
    limit = unit.largest / 1024
    if module.center is not None:
        limit = max(limit - norm_of(module.center, outputs / module.center.numel()) * largest, 0.0) * smallest
    return Rounding(constant=lost, output=4 * unit.u, largest=limit / largest)


@register(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    scale = (in_double(module.running_var) + module.eps).rsqrt()
    scale = scale if module.weight is None else scale * in_double(module.weight).abs()
    pixels = math.prod(input_shape[1:])
    size = norm_of(scale * in_double(module.running_mean), pixels) + norm_of(module.bias, pixels)
    own = Rounding(_SMOOTH * unit.u * value, _SMOOTH * unit.u * size)
    largest = max(1.0, value, scale.amax().item())
    return own.plus(underflow(unit, _SMOOTH, math.prod(output_shape), largest).times(largest))


@register(nn.LayerNorm, nn.GroupNorm)
def _layer_norm(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    r"""(x - mean) / sqrt(var + eps) over N entries, with the variance by either formula.

    The mean is off by gamma_N |x| / sqrt(N). The variance is off by c gamma_N mean(x^2), and with it the quotient
    by half of that times sqrt(N) sigma / (sigma^2 + eps)^{3/2} <= 0.4 sqrt(N) / eps (at sigma^2 = eps / 2).
    """
    outputs = math.prod(output_shape)
    size = math.prod(module.normalized_shape) if isinstance(module, nn.LayerNorm) else outputs // module.num_groups
    gamma, eps = unit.gamma(size + _SMOOTH), module.eps
    gain = 1.0 if module.weight is None else in_double(module.weight).abs().amax().item()
    repeats = outputs / (1 if module.bias is None else module.bias.numel())
    own = Rounding(
        (2 * gamma + _SMOOTH * unit.u) * gain / math.sqrt(eps),
        _SMOOTH * unit.u * norm_of(module.bias, repeats),
        quadratic=4 * gamma * 0.5 * 0.4 * gain / (eps * math.sqrt(size)),
        largest=math.sqrt(unit.largest) / 1024,
    )
    return own.plus(underflow(unit, size + _SMOOTH, outputs, 4.0).times(gain / eps + 1))
