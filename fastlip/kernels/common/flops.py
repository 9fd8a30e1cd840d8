"""Formulas by which torch.utils.flop_counter counts the products of the kernels, as it counts the references'.

The module is imported only when a counter is active, since torch's own module imports Triton.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

Shape = Sequence[int]
# Approximate number of matrix products in an iterated polar factor or an exponential.
_POLAR, _EXPONENTIAL = 12, 10
_TERMS = 6  # of skew_exp_linear's series, for a norm of about 0.3
_POLES = 4  # inverses of polar_linear, each half a product as its Gram matrix is; about as many as it takes


def _convolution(x: Shape, weight: Shape) -> int:
    """A "same" convolution or a matrix, or its adjoint, or its weight's gradient: all take as many operations."""
    return 2 * x[0] * math.prod(x[2:]) * math.prod(weight) if len(weight) > 2 else _applied(x, weight)


def _matrices(shape: Shape) -> int:
    """One product of each matrix with a square one of its smaller side."""
    return 2 * math.prod(shape) * min(shape[-2:])


def _chain(x: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    return sum(_convolution(x, weight) for weight in weights)


def _chain_backward(
    gradient: Shape, x: Shape, kernels: Sequence[Shape], between: Any, masks: Any, needs_x: bool, *rest: Any, **_: Any
) -> int:
    weights, images = rest[0], [needs_x, *[True] * (len(kernels) - 1)]
    return sum(_convolution(x, kernel) * (w + i) for kernel, w, i in zip(kernels, weights, images, strict=True))


def _residual(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * _convolution(x, weight)


def _residual_backward(gradient: Shape, x: Shape, weight: Shape, *rest: Any, **_: Any) -> int:
    h, _, needs_x, needs_weight = rest[2:6]
    return (1 + (h is None) + bool(needs_x) + 2 * bool(needs_weight)) * _convolution(x, weight)


def _spectral(x: Shape, Q: Shape, *_: Any, **__: Any) -> int:
    return 2 * x[0] * Q[0] * Q[1] * Q[2]


def _spectral_backward(gradient: Shape, x: Shape, Q: Shape, size: Any, groups: int, wanted: Any, *_: Any, **__: Any):
    return _spectral(x, Q) * (bool(wanted[0]) + bool(wanted[1]))


def _fixed(x: Shape, panels: Shape, bias: Any, residual: Any, outputs: int, size: Shape, *_: Any, **__: Any) -> int:
    return x[0] * math.prod(size) * x[1] * outputs


def _exponential(x: Shape, kernel: Shape, bias: Any, coefficients: Sequence[float], *_: Any, **__: Any) -> int:
    return (len(coefficients) - 1) * _convolution(x, kernel)


def _exponential_backward(gradient: Shape, x: Any, kernel: Shape, sums: Any, *rest: Any, **_: Any) -> int:
    once = (len(rest[1]) - 1) * _convolution(gradient, kernel)
    return once if x is None else (2 if sums else 3) * once


def _gram(weight: Shape, psi: Any, groups: int, *_: Any, **__: Any) -> int:
    rows, columns, *taps = weight
    return 2 * rows * columns * columns * math.prod(taps) * math.prod(2 * k - 1 for k in taps)


def _gram_backward(gradient: Shape, weight: Shape, psi: Any, r: Any, signs: Any, groups: int, *_: Any, **__: Any):
    return 2 * _gram(weight, psi, groups)


def _blocks(kernel: Shape, projectors: Shape, axes: Sequence[int], *_: Any, **__: Any) -> int:
    *batch, height, width, rows, columns = kernel
    total = 0
    for axis in axes:
        total += 2 * math.prod(batch) * height * width * rows * columns * columns
        height, width = height + (axis == 0), width + (axis == 1)
    return total


def _blocks_backward(gradient: Shape, kernel: Shape, projectors: Shape, axes: Sequence[int], *_: Any, **__: Any):
    return 3 * _blocks(kernel, projectors, axes)


def _reflector(V: Shape, rows: int, columns: int, *_: Any, **__: Any) -> int:
    *batch, m, n = V
    return 2 * math.prod(batch) * n * (rows * columns + 3 * m * n)


def _reflector_backward(gradient: Shape, V: Shape, *_: Any, **__: Any) -> int:
    *batch, m, n = V
    return 4 * math.prod(batch) * n * (gradient[-2] * gradient[-1] + 2 * m * n)


def _polar_linear(x: Shape, V: Shape, *_: Any, **__: Any) -> int:
    return 2 * _POLES * min(V) * (math.prod(x[:-1]) + min(V)) * min(V) + _applied(x, V)


def _polar_linear_backward(gradient: Shape, x: Shape, V: Shape, *_: Any, **__: Any) -> int:
    return 4 * _POLES * min(V) ** 2 * math.prod(x[:-1]) + 2 * _applied(x, V) + _matrices(V)


def _linear(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return _applied(x, weight)


def _linear_backward(gradient: Shape, x: Shape, weight: Shape, wanted: Sequence[bool], *_: Any, **__: Any) -> int:
    return sum(wanted) * _applied(x, weight)


def _cayley_linear(x: Shape, M: Shape, *_: Any, **__: Any) -> int:
    return 3 * _matrices(M) + _applied(x, M)


def _cayley_linear_backward(gradient: Shape, Q: Shape, *_: Any, **__: Any) -> int:
    return 2 * _applied(gradient, Q)


def _skew_exp_linear(x: Shape, K: Shape, *_: Any, **__: Any) -> int:
    return _TERMS * _applied(x, K)


def _skew_exp_linear_backward(gradient: Shape, x: Shape, K: Shape, *_: Any, **__: Any) -> int:
    return 2 * _TERMS * _applied(x, K)


def _applied(x: Shape, V: Shape) -> int:
    """A matrix times each vector."""
    return 2 * math.prod(x[:-1]) * math.prod(V)


def _times(count: int) -> Any:
    """A formula: ``count`` products of the first argument's matrices."""
    return lambda shape, *_, **__: count * _matrices(shape)


def _per_frequency(count: int, argument: int = 0) -> Any:
    """A formula: ``count`` products of a kernel's matrices at each unique frequency of an image."""

    def formula(*arguments: Any, **_: Any) -> int:
        weight, size, _dilation, groups = arguments[argument : argument + 4]
        frequencies = size[0] * size[1] // 2 + 1
        return frequencies * count * _matrices((groups, weight[0] // groups, weight[1]))

    return formula


def _nothing(*_: Any, **__: Any) -> int:
    return 0


_FORMULAS = {
    "conv_chain_forward": _chain,
    "conv_chain_backward": _chain_backward,
    "sdp_residual_forward": _residual,
    "sdp_residual_backward": _residual_backward,
    "spectral_conv_forward": _spectral,
    "spectral_conv_backward": _spectral_backward,
    "spectral_conv_fixed": _fixed,
    "conv_exp_forward": _exponential,
    "conv_exp_backward": _exponential_backward,
    "gram_rowsum_forward": _gram,
    "gram_rowsum_backward": _gram_backward,
    "block_conv_forward": _blocks,
    "block_conv_backward": _blocks_backward,
    "block_reflector_forward": _reflector,
    "block_reflector_backward": _reflector_backward,
    "cayley_forward": _times(3),
    "cayley_backward": _times(4),
    "cayley_linear_forward": _cayley_linear,
    "cayley_linear_backward": _cayley_linear_backward,
    "linear_forward": _linear,
    "linear_backward": _linear_backward,
    "polar_forward": _times(_POLAR),
    "polar_backward": _times(_POLAR),
    "polar_linear_forward": _polar_linear,
    "polar_linear_backward": _polar_linear_backward,
    "skew_exp_forward": _times(_EXPONENTIAL),
    "skew_exp_backward": _times(_EXPONENTIAL),
    "skew_exp_linear_forward": _skew_exp_linear,
    "skew_exp_linear_backward": _skew_exp_linear_backward,
    "spectral_exp_forward": _times(_EXPONENTIAL),
    "spectral_exp_backward": _times(2 * _EXPONENTIAL),
    "kernel_exp_forward": _per_frequency(_EXPONENTIAL),
    "kernel_exp_backward": _per_frequency(2 * _EXPONENTIAL, 1),
    "spectral_polar_forward": _per_frequency(_POLAR),
    "spectral_polar_backward": _per_frequency(_POLAR, 3),
    "spectral_cayley_forward": _per_frequency(3),
    "spectral_cayley_backward": _per_frequency(4, 1),
    "maxmin_forward": _nothing,
    "maxmin_swap": _nothing,
    "pixel_unshuffle": _nothing,
    "pixel_shuffle": _nothing,
}


for _name, _formula in _FORMULAS.items():
    register_flop_formula(getattr(torch.ops.fastlip, _name))(_formula)


def tell_counters() -> None:
    """Adds the formulas to the active counters, which copied torch's register when they were made."""
    for mode in _get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", None)
        if isinstance(counter, FlopCounterMode):
            counter.flop_registry = {**flop_registry, **counter.flop_registry}
