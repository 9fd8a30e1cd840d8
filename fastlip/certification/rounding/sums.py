"""Worst-case rounding errors of matrices and convolutions, as sums of products."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlip.certification.rounding import winograd
from fastlip.certification.rounding.terms import (
    Rounding,
    Unit,
    norms_of,
    spectral_product,
    sum_of_products,
    underflow,
)
from fastlip.kernels.common.geometry import ConvGeometry, Pair

Shape = tuple[int, ...]


def in_double(tensor: Tensor) -> Tensor:
    """The values as they are stored, in float64 on the CPU."""
    return tensor.detach().to("cpu", torch.float64)


def norm_of(bias: Tensor | None, repeats: float) -> float:
    """The norm of a bias that is repeated for ``repeats`` pixels; 0 without one, or for a bias without numbers."""
    if bias is None or bias.is_meta:
        return 0.0
    return torch.linalg.vector_norm(bias.detach().flatten(), dtype=torch.float64).item() * math.sqrt(repeats)


def dense(unit: Unit, weight: Tensor, bias: Tensor | None, output_shape: Shape) -> Rounding:
    """The error of W x + b for a matrix W, applied along the last axis."""
    matrix, outputs = in_double(weight), math.prod(output_shape)
    repeats = outputs / max(matrix.shape[0], 1)
    return sum_of_products(unit, norms_of(matrix[None]), matrix.shape[1], 1, outputs, norm_of(bias, repeats))


def convolution(
    unit: Unit,
    weight: Tensor,
    bias: float,
    geometry: ConvGeometry,
    output_shape: Shape,
    padded: Pair | None = None,
    spectral: Pair | None = None,
) -> Rounding:
    """The error of W * x + b for a kernel (outputs, inputs of a group, *taps), by any of the ways that may run.

    Args:
        unit: that of the dtype.
        weight: the kernel.
        bias: the norm of b, repeated for all pixels (:func:`norm_of`).
        geometry: stride, dilation and groups are read.
        output_shape: (outputs, *sides).
        padded: the size of x if its padding is zeros: taps on the padding round nothing. None: every tap counts.
        spectral: the size of x if the kernel may also be applied by its spectrum. None: it may not.
    """
    kernel = in_double(weight)
    sizes, windows = kernel.shape[2:], 1
    for k, s in zip(sizes, geometry.stride, strict=True):
        windows *= -(-k // s)
    taps = math.prod(sizes)
    norms = norms_of(kernel.flatten(1).unflatten(0, (geometry.groups, -1)), taps)
    if padded is not None:
        taps, outputs_seen = 1, 1
        for k, side, d, output in zip(sizes, padded, geometry.dilation, output_shape[1:], strict=True):
            taps *= min(k, -(-side // d))
            outputs_seen *= min(k, output)
        windows = min(windows, outputs_seen)
    count, outputs = kernel.shape[1] * taps, math.prod(output_shape)
    direct = sum_of_products(unit, norms, count, windows, outputs, bias)
    if geometry.kernel_size == (3, 3) and winograd.may_run(kernel, geometry):
        direct = direct.worse(winograd.small_tiles(unit, kernel, geometry, output_shape, bias))
    if spectral is None:
        return direct
    # The matrices of the spectrum have at most sqrt(taps) times the kernel's norm.
    norm = min(math.sqrt(geometry.taps) * norms.spectral, norms.by_taps, norms.absolute)
    ports = kernel.shape[1], kernel.shape[0]
    return direct.worse(spectral_product(unit, norm, ports, geometry.fast_fft_size(spectral), outputs, bias))


def transposed(unit: Unit, weight: Tensor, bias: Tensor | None, groups: int, output_shape: Shape) -> Rounding:
    """The error of a transposed convolution with a kernel (inputs, outputs of a group, kh, kw).

    An output is a sum over the inputs and those taps that reach it; a pixel of x is read once for each tap.
    """
    kernel, pixels = in_double(weight), math.prod(output_shape[1:])
    taps = math.prod(kernel.shape[2:])
    matrices = kernel.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2).flatten(0, 1)
    norms = norms_of(matrices.unflatten(0, (groups, -1)), taps)
    count = matrices.shape[1]
    return sum_of_products(unit, norms, count, taps, math.prod(output_shape), norm_of(bias, pixels))


def average(unit: Unit, length: int, value: float, outputs: int) -> Rounding:
    """The error of sums of ``length`` entries with positive weights, a matrix of norm value: gamma_n |W| |x| each."""
    limit = unit.largest / 1024 / max(length, 1)
    return Rounding(unit.gamma(length + 4) * value, largest=limit).plus(underflow(unit, length + 4, outputs))
