"""The table of Lipschitz bounds, by module type: what ``fastlip.audit`` looks up."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import singledispatch
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip import nn as lip
from fastlip import ops
from fastlip.certification.tightness import convolution_is_exact, layer_is_exact, matrix_is_exact
from fastlip.certification.weights import linear_weight
from fastlip.exporting.plain import Plain
from fastlip.nn._calls import overridden
from fastlip.nn._conv import LipschitzConv2d
from fastlip.nn.base import LipschitzLayer, as_it_runs, at_least_float32


class Bound(NamedTuple):
    """A Lipschitz bound, how it was found, and the module's own rounding.

    With unit roundoff u, the module's arithmetic adds an error of L2 norm about u (roundings |x| + constant + 2
    |y|) for input x and output y, as independent roundings add up: value times the square root of how many there are
    behind an output. 0 says that it only moves, compares or drops entries, without any error; None that nothing is
    known, and a sum over all inputs is assumed. Certificates read it for modules of others only: in the worst case
    roundings^2 / value takes its place (or what ``worst_roundings(input_shape)`` of the module states). ``exact``:
    the value is attained (up to rounding), not only a bound.
    """

    value: float
    how: str
    roundings: float | None = None
    constant: float = 0.0
    exact: bool = False


@singledispatch
def lipschitz_bound(module: nn.Module, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Bound:
    """An upper bound of the L2 Lipschitz constant of a module in eval mode, shapes without the batch.

    Extend it with ``@lipschitz_bound.register(MyModule)``, or give the module a method
    ``lipschitz_bound(input_shape) -> float``.
    """
    raise TypeError(f"no bound is registered for {type(module).__name__}")


def bound_module(module: nn.Module, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Bound:
    """The bound by the module's own method where it has one, and otherwise by the table."""
    if _is_along_samples(module, len(input_shape) + 1):
        raise ValueError(f"{type(module).__name__} with dim={module.dim} mixes samples: no bound holds for one")
    own, registered = _authors(module)
    if own is not None and own is _most_derived(module, own, registered):
        return _own_bound(module, input_shape, output_shape)
    return lipschitz_bound(module, input_shape, output_shape)


# Methods that the bounds of our layers read as the forward does.
MEASURED = ("parametrize", "effective", "weight", "gain", "context", "torus")


def understands(module: nn.Module) -> bool:
    """Whether a bound was written for exactly what this module computes.

    A subclass that computes something else is another module, unless it is ours, written with its bound in mind; its
    own parametrization is measured.
    """
    known = _most_derived(module, *_authors(module))
    if known is None or "forward" in vars(module):
        return False
    return not overridden(module, known, allowed=MEASURED)


def _authors(module: nn.Module) -> tuple[type | None, type | None]:
    """The class with the module's own lipschitz_bound, and the class that the table knows."""
    order = type(module).__mro__
    own = next((base for base in order if "lipschitz_bound" in vars(base)), None)
    registered = next((base for base in order if base in lipschitz_bound.registry and base is not object), None)
    return own, registered


def _most_derived(module: nn.Module, *bases: type | None) -> type | None:
    return min((base for base in bases if base), key=type(module).__mro__.index, default=None)


def _is_along_samples(module: Any, dims: int) -> bool:
    """Whether a module acts along the dimension of the samples, which keeps the shape of a batch."""
    if not isinstance(module, (lip.MaxMin, lip.GroupSort, lip.HouseHolder, nn.Softmax, Plain)):
        return False
    dim = getattr(module, "dim", 1)
    if dim is None:  # torch's choice for Softmax
        return dims in (1, 3)
    return dim % dims == 0


_PASSES = 4


def _own_bound(module: Any, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Bound:
    value = float(module.lipschitz_bound(input_shape))
    exact = layer_is_exact(module, input_shape)
    if isinstance(module, Plain):
        return Bound(value, "effective weight", value * module.roundings(input_shape), exact=exact)
    if not isinstance(module, (LipschitzLayer, lip.ScaledAvgPool2d, lip.L2NormPool2d)):
        # Attributes of others' modules say nothing about what their forward does.
        return Bound(value, "effective weight", exact=exact)
    weight = linear_weight(module)
    if weight is not None:
        return Bound(value, "effective weight", value * _sum_roundings(module, weight), exact=exact)
    # Residual, series and spectral layers pass several times over data of a few times the input's norm.
    if isinstance(module, LipschitzConv2d):
        length = math.sqrt(input_shape[0]) * math.prod(module.kernel_size)
    else:
        length = math.sqrt(math.prod(input_shape))
    return Bound(value, "effective weight", _PASSES * value * length, exact=exact)


def _register(*types: type[nn.Module]) -> Any:
    def decorate(function: Any) -> Any:
        for module_type in types:
            lipschitz_bound.register(module_type)(function)
        return function

    return decorate


@_register(
    *(lip.MaxMin, lip.GroupSort, lip.Abs, lip.ZeroChannelPad, lip.FirstChannels, lip.PixelUnshuffle),
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
)
def _moves_entries(module: Any, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Bound:
    return Bound(1.0, "1 by construction", 0.0, exact=True)


@lipschitz_bound.register
def _reflection(module: lip.HouseHolder, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Bound:
    theta = at_least_float32(module.theta)
    cosine, sine = (as_it_runs(value.to(module.theta.dtype)) for value in (theta.cos(), theta.sin()))
    longest = torch.hypot(cosine, sine).amax().item() if len(theta) else 1.0
    return Bound(max(1.0, longest), "reflections as rounded", 4.0, exact=True)


# The largest slope of each, rounded up. GELU: at sqrt(2), Phi + sqrt(2) phi; SiLU and Mish: numerically.
_SLOPES = {
    nn.CELU: 1.0,
    nn.GELU: 1.1290,
    nn.Hardsigmoid: 0.16666667,
    nn.Hardswish: 1.5,
    nn.LogSigmoid: 1.0,
    nn.Mish: 1.0885,
    nn.SELU: 1.7580994,
    nn.Sigmoid: 0.25,
    nn.SiLU: 1.0999,
    nn.Softmax: 0.5,
    nn.Softplus: 1.0,
    nn.Softshrink: 1.0,
    nn.Softsign: 1.0,
    nn.Tanh: 1.0,
    nn.Tanhshrink: 1.0,
}
_LINEAR_FROM = 20.0  # torch's default threshold: there Softplus jumps by less than a rounding
# Of a few roundings each, with room for the library's exponentials.
_ELEMENTWISE = 16.0


@_register(*_SLOPES)
def _smooth_activation(module: nn.Module, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Bound:
    if isinstance(module, nn.CELU) and not module.alpha > 0:
        raise ValueError(f"CELU with alpha={module.alpha} has no bound: expected a positive number")
    if isinstance(module, nn.Softplus) and not module.threshold >= _LINEAR_FROM:
        raise ValueError(f"Softplus with threshold={module.threshold} jumps: expected at least {_LINEAR_FROM:g}")
    slope = next(_SLOPES[base] for base in type(module).__mro__ if base in _SLOPES)
    return Bound(slope, "largest slope", _ELEMENTWISE, exact=True)


@_register(nn.LeakyReLU, nn.PReLU, nn.ELU)
def _sloped_activation(module: Any, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Bound:
    if isinstance(module, nn.PReLU):
        slope = module.weight.abs().amax().item()
    else:
        slope = abs(module.negative_slope if isinstance(module, nn.LeakyReLU) else module.alpha)
    return Bound(max(1.0, slope), "largest slope", _ELEMENTWISE, exact=True)


@lipschitz_bound.register
def _linear(module: nn.Linear, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Bound:
    value = ops.spectral_norm(as_it_runs(module.weight)).item()
    roundings = value * _sum_roundings(module, module.weight)
    return Bound(value, "float64 singular values", roundings, exact=matrix_is_exact(module.weight.shape))


@_register(nn.Conv1d, nn.Conv2d)
def _convolution(module: Any, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Bound:
    weight, image, stride, pads, dilation = as_it_runs(module.weight), *_geometry(module, input_shape)
    if isinstance(module, nn.Conv1d):
        weight = weight.unsqueeze(2)
    factor, how = 1.0, "float64 singular values per frequency"
    mode = module.padding_mode
    if mode in ("reflect", "replicate"):
        factor, image = _duplication(image, pads, mode)
        how += f", times {factor:.4g} for {mode} padding"
        pads, mode = (0, 0, 0, 0), "zeros"
    geometry = image, stride, pads, dilation, module.groups, mode
    value = factor * ops.spectral_norm(weight, *geometry).item()
    exact = factor == 1 and convolution_is_exact(weight.shape, *geometry)
    return Bound(value, how, value * _sum_roundings(module, module.weight), exact=exact)


@lipschitz_bound.register
def _transposed(module: nn.ConvTranspose2d, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Bound:
    # The adjoint of the convolution of the same weight on images of the output's size.
    vertical, horizontal = _per_axis(module.padding, 2)
    pads = (horizontal, horizontal, vertical, vertical)
    weight, image = as_it_runs(module.weight), output_shape[-2:]
    steps = _per_axis(module.stride, 2), pads, _per_axis(module.dilation, 2)
    value = ops.spectral_norm(weight, image, *steps, module.groups, "zeros").item()
    return Bound(value, "float64 singular values per frequency", value * _sum_roundings(module, module.weight))


def _geometry(module: Any, input_shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Image size, stride, (left, right, top, bottom) and dilation, one-dimensional images as one row."""
    # As torch reads them when it runs: they may have been set after construction.
    axes = module.weight.dim() - 2
    pad_one, kernel_size = (1,) * (2 - axes), (1,) * (2 - axes) + tuple(module.weight.shape[2:])
    stride, dilation = ((*pad_one, *_per_axis(value, axes)) for value in (module.stride, module.dilation))
    image = (*pad_one, *input_shape[1:])
    if module.padding_mode != "zeros":
        pads = list(module._reversed_padding_repeated_twice)
        sides = [*[(0, 0)] * len(pad_one), *reversed(list(zip(pads[::2], pads[1::2], strict=True)))]
    elif module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
        sides = [(total // 2, total - total // 2) for total in totals]
    elif module.padding == "valid":
        sides = [(0, 0), (0, 0)]
    else:
        sides = [(padding, padding) for padding in (*(0,) * len(pad_one), *_per_axis(module.padding, axes))]
    return image, stride, (*sides[1], *sides[0]), dilation


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    return (value,) * axes if isinstance(value, int) else tuple(value) * (axes // len(value))


def _duplication(image: tuple[int, ...], pads: tuple[int, ...], mode: str) -> tuple[float, tuple[int, ...]]:
    """The norm of a padding that repeats entries, sqrt(largest number of copies), and the padded size."""
    copies, sides = 1, []
    for side, (before, after) in zip(image, (pads[2:], pads[:2]), strict=True):
        entries = torch.arange(side, dtype=torch.float64).view(1, 1, side)
        padded = F.pad(entries, (before, after), mode) if before or after else entries
        copies *= int(padded.flatten().long().bincount().amax())
        sides.append(padded.numel())
    return math.sqrt(copies), tuple(sides)


_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_ADAPTIVE_MAX_POOLS = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
_AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE_AVERAGE_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


@_register(*_MAX_POOLS, *_ADAPTIVE_MAX_POOLS)
def _max_pool(module: Any, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Bound:
    overlap = math.prod(int(windows.sum(0).amax()) for windows in _windows(module, input_shape, output_shape))
    return Bound(math.sqrt(overlap), f"a pixel is in at most {overlap} windows", 0.0, exact=True)


@_register(*_AVERAGE_POOLS, *_ADAPTIVE_AVERAGE_POOLS)
def _average_pool(module: Any, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Bound:
    value, length = 1.0, 1
    divisor = getattr(module, "divisor_override", None)
    for axis, windows in enumerate(_windows(module, input_shape, output_shape)):
        counts = windows.sum(1)
        if getattr(module, "count_include_pad", False):
            counts = _counts_with_padding(module, axis, input_shape[1 + axis], len(windows))
        weights = windows if divisor else windows / counts.clamp_min(1)[:, None]
        value *= ops.spectral_norm(weights).item()
        length *= int(windows.sum(1).amax())
    value = value / divisor if divisor else value
    return Bound(value, "windows", math.sqrt(length) * max(1.0, value), exact=True)


def _windows(module: Any, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Iterable[Tensor]:
    """For each axis the 0-1 matrix (outputs, inputs) of the windows that a pool looks through."""
    for axis, (side, outputs) in enumerate(zip(input_shape[1:], output_shape[1:], strict=True)):
        windows = torch.zeros(outputs, side, dtype=torch.float64)
        for index, window in enumerate(windows):
            if hasattr(module, "output_size"):  # adaptive
                window[index * side // outputs : -(-(index + 1) * side // outputs)] = 1
                continue
            size, stride, padding = _pool_axis(module, axis)
            dilation = _along(getattr(module, "dilation", 1), axis)
            places = index * stride - padding + dilation * torch.arange(size)
            window[places[(places >= 0) & (places < side)]] = 1
        yield windows


def _counts_with_padding(module: Any, axis: int, side: int, outputs: int) -> Tensor:
    size, stride, padding = _pool_axis(module, axis)
    starts = torch.arange(outputs) * stride - padding
    return ((starts + size).clamp_max(side + padding) - starts).double()


def _pool_axis(module: Any, axis: int) -> tuple[int, int, int]:
    return _along(module.kernel_size, axis), _along(module.stride, axis), _along(module.padding, axis)


def _along(value: Any, axis: int) -> int:
    if isinstance(value, int):
        return value
    return value[axis] if len(value) > 1 else value[0]


@_register(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm(module: Any, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Bound:
    if module.running_var is None:
        raise ValueError(f"{type(module).__name__} without running statistics depends on the batch: no bound")
    scale = (module.running_var.double() + module.eps).rsqrt()
    scale = scale if module.weight is None else scale * module.weight.double().abs()
    value = scale.amax().item() * (1 + 8 * torch.finfo(torch.float64).eps)
    pixels = math.prod(input_shape[1:])
    constant = (scale * module.running_mean.double().abs()).norm().item() * math.sqrt(pixels)
    return Bound(value, "running statistics", _ELEMENTWISE * value, _ELEMENTWISE * constant, exact=True)


@_register(nn.LayerNorm, nn.GroupNorm)
def _layer_norm(module: Any, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Bound:
    gain = 1.0 if module.weight is None else module.weight.double().abs().amax().item()
    if not module.eps > 0:
        raise ValueError(f"{type(module).__name__} with eps={module.eps} has no bound: expected a positive number")
    value = gain / math.sqrt(module.eps) * (1 + 8 * torch.finfo(torch.float64).eps)
    return Bound(value, "largest gain / sqrt(eps)", (math.sqrt(math.prod(input_shape)) + _ELEMENTWISE) * value)


def _sum_roundings(module: Any, weight: Tensor) -> float:
    r"""Roundings of y = W x relative to |W|_2 |x|, W dense or a convolution: sqrt(n), n the length of its sums.

    Whatever the order of summation, a partial sum is a part of W's columns times a part of x: its norm is at most
    |W|_2 |x|, in a convolution times the square root of how many windows see a pixel. Each of the n is rounded
    with a relative error of at most u, and independent errors add up in square (Higham, Mary, *A New Approach
    to Probabilistic Rounding Error Analysis*, SIAM J. Sci. Comput. 2019); the worst case is n instead of
    sqrt(n).
    """
    strides = _per_axis(getattr(module, "stride", 1), weight.dim() - 2)
    windows = math.prod(-(-k // s) for k, s in zip(weight.shape[2:], strides, strict=True))
    transposed = isinstance(module, (nn.ConvTranspose2d, lip.AOCConvTranspose2d))
    inputs = weight.shape[0] if transposed else weight.shape[1]
    return math.sqrt(inputs * math.prod(weight.shape[2:]) * windows)
