"""The bounds of ``torch.nn``'s layers: activations, dense layers, convolutions and normalisations."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fastlip import ops
from fastlip.certification.bounds.layers import sum_roundings
from fastlip.certification.bounds.table import Bound, Shape, lipschitz_bound, register
from fastlip.certification.bounds.tightness import convolution_is_exact, matrix_is_exact
from fastlip.kernels.common.geometry import ConvGeometry, Pair
from fastlip.kernels.spectral_norm.api import convolution_norm
from fastlip.nn.base import as_it_runs

MOVES = (
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
)
# The largest slope of each, rounded up. GELU: at sqrt(2), Phi + sqrt(2) phi; SiLU and Mish: numerically.
SLOPES = {
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
_ELEMENTWISE = 16.0  # rounding allowance per elementwise function, including the library's exp
_EPS = torch.finfo(torch.float64).eps


@register(*MOVES)
def _moves_entries(module: Any, input_shape: Shape, output_shape: Shape) -> Bound:
    return Bound(1.0, "1 by construction", 0.0, exact=True)


@register(*SLOPES)
def _smooth_activation(module: nn.Module, input_shape: Shape, output_shape: Shape) -> Bound:
    if isinstance(module, nn.CELU) and not module.alpha > 0:
        raise ValueError(f"CELU with alpha={module.alpha} has no bound: expected a positive number")
    if isinstance(module, nn.Softplus) and not module.threshold >= _LINEAR_FROM:
        raise ValueError(f"Softplus with threshold={module.threshold} jumps: expected at least {_LINEAR_FROM:g}")
    slope = next(SLOPES[base] for base in type(module).__mro__ if base in SLOPES)
    return Bound(slope, "largest slope", _ELEMENTWISE, exact=True)


@register(nn.LeakyReLU, nn.PReLU, nn.ELU)
def _sloped_activation(module: Any, input_shape: Shape, output_shape: Shape) -> Bound:
    if isinstance(module, nn.PReLU):
        slope = module.weight.abs().amax().item()
    else:
        slope = abs(module.negative_slope if isinstance(module, nn.LeakyReLU) else module.alpha)
    return Bound(max(1.0, slope), "largest slope", _ELEMENTWISE, exact=True)


@lipschitz_bound.register
def _linear(module: nn.Linear, input_shape: Shape, output_shape: Shape) -> Bound:
    value = ops.spectral_norm(as_it_runs(module.weight)).item()
    rows, columns = module.weight.shape
    return Bound(value, "float64 singular values", value * math.sqrt(columns), exact=matrix_is_exact(rows, columns))


@register(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _convolution(module: Any, input_shape: Shape, output_shape: Shape) -> Bound:
    weight, geometry = as_it_runs(module.weight), ConvGeometry.of_module(module)
    roundings = sum_roundings(weight.shape[1], geometry)
    image = input_shape[1:]
    if isinstance(module, nn.Conv1d):  # an image of one row
        weight, image = weight.unsqueeze(2), (1, *image)
    factor, how = 1.0, "float64 singular values per frequency"
    if module.padding_mode in ("reflect", "replicate"):
        factor, image = duplication(geometry, image, module.padding_mode)
        how += f", times {factor:.4g} for {module.padding_mode} padding"
        geometry = replace(geometry, pads=(0,) * len(geometry.pads), padding_mode="zeros")
    value = factor * convolution_norm(weight, image, geometry).item()
    exact = factor == 1 and convolution_is_exact(tuple(weight.shape), image, geometry)
    return Bound(value, how, value * roundings, exact=exact)


@lipschitz_bound.register
def _transposed(module: nn.ConvTranspose2d, input_shape: Shape, output_shape: Shape) -> Bound:
    # The adjoint of the convolution of the same weight on images of the output's size.
    geometry = ConvGeometry.of_module(module)
    value = convolution_norm(as_it_runs(module.weight), output_shape[-2:], geometry).item()
    roundings = value * sum_roundings(module.weight.shape[0], geometry)
    return Bound(value, "float64 singular values per frequency", roundings)


def duplication(geometry: ConvGeometry, image: Pair, mode: str) -> tuple[float, Pair]:
    """The norm of a padding that repeats entries, sqrt(largest number of copies), and the padded size."""
    ends = zip(image, geometry.pads[-2::-2], geometry.pads[::-2], strict=True)
    copies = [_copies(*axis, mode) for axis in ends]
    return math.sqrt(math.prod([most for most, _ in copies])), tuple([side for _, side in copies])


def _copies(side: int, before: int, after: int, mode: str) -> tuple[int, int]:
    """The largest number of copies of an entry that a padding along one axis makes, and the padded side."""
    entries = torch.arange(side, dtype=torch.float64).view(1, 1, side)
    padded = F.pad(entries, (before, after), mode) if before or after else entries
    return int(padded.flatten().long().bincount().amax()), padded.numel()


@register(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def _batch_norm(module: Any, input_shape: Shape, output_shape: Shape) -> Bound:
    if module.running_var is None:
        raise ValueError(f"{type(module).__name__} without running statistics depends on the batch: no bound")
    scale = (module.running_var.double() + module.eps).rsqrt()
    scale = scale if module.weight is None else scale * module.weight.double().abs()
    value = scale.amax().item() * (1 + 8 * _EPS)
    pixels = math.prod(input_shape[1:])
    constant = (scale * module.running_mean.double().abs()).norm().item() * math.sqrt(pixels)
    return Bound(value, "running statistics", _ELEMENTWISE * value, _ELEMENTWISE * constant, exact=True)


@register(nn.LayerNorm, nn.GroupNorm)
def _layer_norm(module: Any, input_shape: Shape, output_shape: Shape) -> Bound:
    gain = 1.0 if module.weight is None else module.weight.double().abs().amax().item()
    if not module.eps > 0:
        raise ValueError(f"{type(module).__name__} with eps={module.eps} has no bound: expected a positive number")
    value = gain / math.sqrt(module.eps) * (1 + 8 * _EPS)
    return Bound(value, "largest gain / sqrt(eps)", (math.sqrt(math.prod(input_shape)) + _ELEMENTWISE) * value)
