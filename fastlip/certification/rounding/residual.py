"""Worst-case rounding errors of residual maps and convolution exponentials, layers and exported modules alike."""

from __future__ import annotations

import math

from torch import Tensor

from fastlip.certification.rounding.sums import convolution, in_double, norm_of
from fastlip.certification.rounding.terms import Rounding, Unit, after, norms_of, sum_of_products, underflow
from fastlip.kernels.common.geometry import ConvGeometry, Pair
from fastlip.kernels.conv_exp.truncation import taylor
from fastlip.nn._skew import norm_on

Shape = tuple[int, ...]
_ENLARGED = 1 + 1e-3  # norms, by the rounding of their computation in single precision


def residual_matrix(unit: Unit, kernel: Tensor, bias: Tensor | None, scale: Tensor, output_shape: Shape) -> Rounding:
    """The error of x - W^T diag(scale) relu(W x + b) for a matrix W, balanced as in :func:`residual_kernel`."""
    balanced, shift, lost = _balance(unit, kernel, bias, scale, math.prod(output_shape[:-1]), 1)
    rows, columns = balanced.shape
    outputs = math.prod(output_shape[:-1]) * columns
    norms = norms_of(balanced[None])
    inner = sum_of_products(unit, norms, columns, 1, outputs // columns * rows, shift)
    outer = sum_of_products(unit, norms_of(balanced.T[None]), rows, 1, outputs)
    return _difference(unit, inner, outer, norms.spectral, shift, rows, outputs).plus(lost)


def residual_kernel(
    unit: Unit,
    kernel: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    geometry: ConvGeometry,
    image: Pair,
    spectral: bool,
) -> Rounding:
    """The error of x - W^T diag(scale) relu(W x + b) for a convolution W of images.

    It is that of x - V^T relu(V x + S b) with V = S W, S = diag(scale)^{1/2}: errors of an inner channel are relative
    to sums of that channel, and scaled with it. The norm of V is at most about sqrt(2), whatever those of W are.

    Args:
        unit: that of the dtype.
        kernel: W, (inner channels, channels of a group, kh, kw).
        bias: b or None.
        scale: (inner channels,).
        geometry: of W at stride 1, with pads that keep the image's size.
        image: height and width of x.
        spectral: whether W may be applied by its spectrum.
    """
    pixels, padded = math.prod(image), image if geometry.padding_mode == "zeros" else None
    balanced, shift, lost = _balance(unit, kernel, bias, scale, pixels, geometry.taps)
    rows, columns = balanced.shape[0], geometry.groups * balanced.shape[1]
    adjoint = balanced.unflatten(0, (geometry.groups, -1)).transpose(1, 2).flatten(0, 1)
    seen = image if spectral and geometry.taps > 1 else None
    inner = convolution(unit, balanced, shift, geometry, (rows, *image), padded, seen)
    outer = convolution(unit, adjoint, 0.0, geometry, (columns, *image), padded, seen)
    norm = _operator_norm(balanced, geometry, image)
    count = rows // geometry.groups * geometry.taps
    return _difference(unit, inner, outer, norm, shift, count, columns * pixels).plus(lost)


def series(
    unit: Unit,
    kernel: Tensor,
    geometry: ConvGeometry,
    image: Pair,
    terms: int,
    gain: float,
    bias: float,
    spectral: bool,
) -> Rounding:
    r"""The error of gain sum_t K^t x / t! + b, by Horner's rule or by powers: that of one K, times p'(\|K\|).

    Its coefficients are those of the exponential, or up to a few roundings on the spectrum of K those of a polynomial
    of lower degree: twice the bound has room for that.

    Args:
        unit: that of the dtype.
        kernel: K, (width, width of a group, kh, kw).
        geometry: of K at stride 1, with pads that keep the image's size.
        image: height and width of x.
        terms: the largest t.
        gain: see the formula.
        bias: the norm of b, repeated for all pixels.
        spectral: whether K may be applied by its spectrum.
    """
    width = geometry.groups * kernel.shape[1]
    outputs = width * math.prod(image)
    padded = image if geometry.padding_mode == "zeros" else None
    once = convolution(unit, kernel, 0.0, geometry, (width, *image), padded, image if spectral else None)
    norm = _operator_norm(in_double(kernel), geometry, image)
    values = taylor(terms)
    size = sum(value * norm**t for t, value in enumerate(values))
    slope = sum(t * value * norm ** (t - 1) for t, value in enumerate(values) if t)
    factor = 2 * max(gain, 1.0)
    # The kernel times a ratio of coefficients is rounded: one more rounding of each product.
    grouped = in_double(kernel).flatten(1).unflatten(0, (geometry.groups, -1))
    rounded = once.relative + unit.u * norms_of(grouped, geometry.taps).absolute
    own = Rounding(
        factor * (slope * rounded + unit.gamma(4 * terms) * size),
        factor * slope * once.constant + once.sums * bias,
        largest=once.largest / max(size, 1.0),
    )
    return own.plus(underflow(unit, terms, outputs).times(size))


def _balance(
    unit: Unit, kernel: Tensor, bias: Tensor | None, scale: Tensor, pixels: int, windows: int
) -> tuple[Tensor, float, Rounding]:
    """S W with S = diag(scale)^{1/2}, the norm of S b, and the error that numbers below the normal range add."""
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
    """The error of x - V^T h after those of h = relu(V x + c), |V| = norm and |c| = shift, and of V^T h.

    x may be the first summand of V^T h, of ``count`` products. Its matrix is rounded itself, or the scale is applied
    later: one more rounding of each product, which :func:`sum_of_products` has.
    """
    both = after(unit, inner, norm, outer, norm, shift)
    own = Rounding(unit.gamma(count + 2) + 2 * unit.u * (1 + norm * norm), 2 * unit.u * norm * shift)
    return both.plus(own).plus(underflow(unit, 2, outputs))


def _operator_norm(kernel: Tensor, geometry: ConvGeometry, image: Pair) -> float:
    """A bound of the norm of a convolution at stride 1 that keeps the image's size, and of its adjoint."""
    largest = kernel.abs().amax().item() if kernel.numel() else 0.0
    if largest == 0:
        return 0.0
    scaled = (kernel / largest).float().unflatten(0, (geometry.groups, -1))
    return largest * norm_on(geometry.embedded_size(image), scaled, geometry.dilation).item() * _ENLARGED
