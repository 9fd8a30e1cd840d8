"""Worst-case rounding errors by module type: those of torch.nn, and what is taken for modules without a rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from fastlip import nn as lip
from fastlip.certification import bounds as bounds
from fastlip.certification.rounding.terms import Rounding, Unit, norms_of, sum_of_products, underflow

Shape = tuple[int, ...]
_OURS = "fastlip.", "torch."
_UNKNOWN = 4.0  # roundings of each entry that a module of which nothing is known reads or writes


def worst_case(module: nn.Module, found: Any, input_shape: Shape, output_shape: Shape, unit: Unit) -> Rounding:
    """A bound of the rounding error of one module, in the worst case.

    By the rule for its type, if its forward is ours or torch's. Other modules state it: by a method
    ``worst_roundings(input_shape)``, or by the ``roundings`` of the ``Bound`` that was registered; if they do not, a
    sum over all inputs behind every output is assumed.

    Args:
        module: in eval mode.
        found: its ``Bound`` or row of the audit: ``roundings`` and ``constant`` are read where there is no rule.
        input_shape: without the batch, as output_shape.
        output_shape: see input_shape.
        unit: of the dtype in which it runs.
    """
    value = float(found.value if isinstance(found, bounds.Bound) else found.bound)
    rule = _rule_of(type(module))
    if rule is not None:
        return rule(module, input_shape, output_shape, value, unit).enlarged()
    method = getattr(module, "worst_roundings", None)
    if method is not None:
        stated = method(input_shape)
        count, constant = stated if isinstance(stated, tuple) else (stated, 0.0)
    else:
        count, constant = _from_bound(found, value, input_shape, output_shape)
    outputs = math.prod(output_shape)
    if count == 0 and constant == 0:
        return moves(outputs, unit)
    depth = count / max(value, 1)
    own = Rounding(unit.gamma(depth) * max(value, 1), unit.u * constant, 2 * unit.u)
    return own.plus(underflow(unit, depth + 4, outputs)).enlarged()


def _from_bound(found: Any, value: float, input_shape: Shape, output_shape: Shape) -> tuple[float, float]:
    """Roundings and constant in the worst case from those of independent roundings, which add up in square."""
    if found.roundings is None:
        entries = math.prod(input_shape) + math.prod(output_shape)
        return _UNKNOWN * entries * max(value, 1), _UNKNOWN * entries
    depth = max(found.roundings / value, 1.0) if value > 0 else max(found.roundings, 1.0)
    return found.roundings * depth, found.constant * depth


def has_rule(module: nn.Module) -> bool:
    """Whether the module's rounding is bounded by a rule for its type."""
    return _rule_of(type(module)) is not None


def _rule_of(kind: type) -> Callable[..., Rounding] | None:
    """The rule for a type whose forward is what the rule was written for."""
    for base in kind.__mro__:
        if any(name in vars(base) for name in ("forward", "_conv_forward")) and not _is_ours(base):
            return None
        if base in _rules.registry and base is not object:
            return _rules.registry[base]
    return None


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith(_OURS)


@singledispatch
def _rules(module: nn.Module, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    raise TypeError(f"no rule for the rounding of {type(module).__name__}")


def register(*types: type[nn.Module]) -> Any:
    """Decorates the rule for some types: of the module, its shapes, its Lipschitz bound and the unit."""

    def decorate(function: Any) -> Any:
        for module_type in types:
            _rules.register(module_type)(function)
        return function

    return decorate


def moves(outputs: int, unit: Unit) -> Rounding:
    """What only moves or compares entries: numbers below the normal range may become zero."""
    return underflow(unit, 1, outputs, 0.0)


@register(
    *(lip.MaxMin, lip.GroupSort, lip.Abs, lip.ZeroChannelPad, lip.FirstChannels, lip.PixelUnshuffle),
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *bounds._MAX_POOLS,
    *bounds._ADAPTIVE_MAX_POOLS,
)
def _moves(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    return moves(math.prod(output_shape), unit)


@register(lip.HouseHolder)
def reflection(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    """Two products and a sum for each entry, and pairs near their line that fall on its other side."""
    return Rounding(16 * unit.u * value).plus(underflow(unit, 8, math.prod(output_shape)))


_SMOOTH = 16.0  # roundings behind an output of an elementwise function, with room for the library's exponentials


@register(*bounds._SLOPES, nn.LeakyReLU, nn.PReLU, nn.ELU)
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


def dense(unit: Unit, weight: Tensor, bias: Tensor | None, output_shape: Shape) -> Rounding:
    """The error of W x + b for a matrix W, applied along the last axis."""
    matrix, outputs = in_double(weight), math.prod(output_shape)
    repeats = outputs / max(matrix.shape[0], 1)
    return sum_of_products(unit, norms_of(matrix[None]), matrix.shape[1], 1, outputs, norm_of(bias, repeats))


@register(nn.Conv1d, nn.Conv2d)
def _convolution(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    repeats = module.padding_mode != "zeros"
    image = None if repeats else input_shape[1:]
    options = module.bias, module.groups, module.stride, output_shape, module.dilation, image
    error = convolution(unit, module.weight, *options)
    if module.padding_mode in ("reflect", "replicate"):
        geometry = bounds._geometry(module, input_shape)
        error = error.times(bounds._duplication(geometry[0], geometry[2], module.padding_mode)[0])
    return error


def convolution(
    unit: Unit,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    stride: tuple[int, ...],
    output_shape: Shape,
    dilation: tuple[int, ...] = (1, 1),
    image: Shape | None = None,
) -> Rounding:
    """The error of W * x + b for a kernel (outputs, inputs of a group, ...); image: of x, if zeros pad it."""
    kernel, pixels = in_double(weight), math.prod(output_shape[1:])
    sides = kernel.shape[2:]
    taps, windows = math.prod(sides), math.prod(-(-k // s) for k, s in zip(sides, stride, strict=True))
    norms = norms_of(kernel.flatten(1).unflatten(0, (groups, -1)), taps)
    if image is not None:  # of taps on the padding nothing is rounded
        met = [min(k, -(-side // d)) for k, d, side in zip(sides, dilation, image, strict=True)]
        taps = math.prod(met)
        windows = min(windows, math.prod(min(k, out) for k, out in zip(sides, output_shape[1:], strict=True)))
    count, outputs = kernel.shape[1] * taps, math.prod(output_shape)
    return sum_of_products(unit, norms, count, windows, outputs, norm_of(bias, pixels))


@register(nn.ConvTranspose2d, lip.AOCConvTranspose2d)
def _transposed(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    return transposed(unit, module.weight, module.bias, module.groups, output_shape)


def transposed(unit: Unit, weight: Tensor, bias: Tensor | None, groups: int, output_shape: Shape) -> Rounding:
    """The error of a transposed convolution with a kernel (inputs, outputs of a group, ...).

    An output is a sum over the inputs and those taps that reach it; a pixel of x is read once for each tap.
    """
    kernel, pixels = in_double(weight), math.prod(output_shape[1:])
    taps = math.prod(kernel.shape[2:])
    matrices = kernel.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2).flatten(0, 1)
    norms = norms_of(matrices.unflatten(0, (groups, -1)), taps)
    count = matrices.shape[1]
    return sum_of_products(unit, norms, count, taps, math.prod(output_shape), norm_of(bias, pixels))


@register(*bounds._AVERAGE_POOLS, *bounds._ADAPTIVE_AVERAGE_POOLS)
def _average(module: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    windows = bounds._windows(module, input_shape, output_shape)
    length = math.prod(int(window.sum(1).amax()) for window in windows)
    return average(unit, length, value, math.prod(output_shape))


def average(unit: Unit, length: int, value: float, outputs: int) -> Rounding:
    """Sums of so many entries with positive weights, a matrix of norm value: each is off by gamma_n |W| |x|."""
    limit = unit.largest / 1024 / max(length, 1)
    return Rounding(unit.gamma(length + 4) * value, largest=limit).plus(underflow(unit, length + 4, outputs))


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


def in_double(tensor: Tensor) -> Tensor:
    """The values as they are stored, in float64 on the CPU."""
    return tensor.detach().to("cpu", torch.float64)


def norm_of(bias: Tensor | None, repeats: float) -> float:
    """The norm of a bias that is repeated for so many pixels; 0 without one, and where a function's is not known."""
    return 0.0 if bias is None or bias.is_meta else in_double(bias).norm().item() * math.sqrt(repeats)
