"""The parts of bounds of worst-case rounding errors: units, and the error of one sum of products."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

_LARGEST_SHARE = 0.5  # n u may be at most this: beyond, nothing is certain
_PER_OPERATION = 4.0  # numbers below the normal range that an operation may lose: operands, product and sum
_BUTTERFLY = 7.0  # roundings of a step of a fast Fourier transform
SLACK = 1e-6  # covers the rounding of these bounds themselves, which are computed in double precision


class Unit(NamedTuple):
    """The unit roundoff of a dtype, its smallest normal number and its largest number."""

    u: float
    tiny: float
    largest: float

    @staticmethod
    @cache
    def of(*dtypes: torch.dtype) -> Unit:
        """The unit of the coarsest of some floating-point dtypes."""
        info = torch.finfo(dtypes[0])
        for dtype in dtypes[1:]:
            if torch.finfo(dtype).eps > info.eps:
                info = torch.finfo(dtype)
        return Unit(info.eps / 2, info.tiny, info.max)

    @lru_cache(1024)  # noqa: B019
    def gamma(self, count: float) -> float:
        """n u / (1 - n u): by how much n roundings, one after the other, change a number at most (Higham 2002)."""
        share = count * self.u
        return share / (1 - share) if share < _LARGEST_SHARE else math.inf


class Rounding(NamedTuple):
    r"""A bound of a module's own error: relative |x| + constant + output |y| + quadratic |x|^2 in L2 norm.

    x and y are the computed input and output of one sample. ``sums`` replaces ``output`` where the module adds a bias
    that ``constant`` does not count. Above ``largest``, a norm of x, intermediate results may overflow.
    """

    relative: float = 0.0
    constant: float = 0.0
    output: float = 0.0
    quadratic: float = 0.0
    sums: float = 0.0
    largest: float = math.inf

    def plus(self, other: Rounding) -> Rounding:
        """The error of two modules side by side, or of two steps on the same input."""
        return Rounding(
            self.relative + other.relative,
            self.constant + other.constant,
            self.output + other.output,
            self.quadratic + other.quadratic,
            self.sums + other.sums,
            min(self.largest, other.largest),
        )

    def worse(self, other: Rounding) -> Rounding:
        """A bound of either of two ways to compute the same."""
        return Rounding(*map(max, self[:-1], other[:-1]), largest=min(self.largest, other.largest))

    def times(self, factor: float) -> Rounding:
        """The error after a linear map of that norm, which itself does not round."""
        return Rounding(
            factor * self.relative,
            factor * self.constant,
            factor * self.output,
            factor * self.quadratic,
            factor * self.sums,
            self.largest,
        )


@lru_cache(1024)
def underflow(unit: Unit, count: float, outputs: int, size: float = 1.0) -> Rounding:
    """The error that flushing results and operands below the normal range to zero may cause.

    Each of the ``outputs`` numbers takes ``count`` operations with constants of at most that size. An operation may
    lose an absolute tiny, and a factor that is flushed loses tiny times the other factor.
    """
    lost = unit.tiny * count * math.sqrt(outputs)
    return Rounding(lost, lost * (_PER_OPERATION + size))


class Norms(NamedTuple):
    """Norms of a batch of matrices, or of the kernel of a convolution with one matrix per tap.

    Attributes:
        spectral: the largest spectral norm.
        by_taps: the sum of the spectral norms of the taps.
        frobenius: the largest Frobenius norm.
        absolute: a bound of the norm of the convolution with the moduli of the entries.
        largest: the largest modulus of an entry.
    """

    spectral: float
    by_taps: float
    frobenius: float
    absolute: float
    largest: float


def norms_of(matrices: Tensor, taps: int = 1) -> Norms:
    """Norms of (groups, rows, inputs * taps) in float64; ``absolute`` by the largest row and column sums (Schur)."""
    if not matrices.numel():
        return Norms(0.0, 0.0, 0.0, 0.0, 0.0)
    largest = matrices.abs().amax().item()
    scaled = matrices / largest if largest > 0 else matrices
    spectral = spectral_norms(scaled).amax().item()
    by_taps = spectral
    if taps > 1:
        by_taps = spectral_norms(scaled.unflatten(2, (-1, taps)).movedim(3, 1)).sum(1).amax().item()
    frobenius = torch.linalg.matrix_norm(scaled).amax().item()
    moduli = scaled.abs()
    columns = moduli.sum(1).unflatten(1, (-1, taps)).sum(2).amax().item()
    absolute = math.sqrt(moduli.sum(2).amax().item() * columns)
    return Norms(largest * spectral, largest * by_taps, largest * frobenius, largest * absolute, largest)


def spectral_norms(matrices: Tensor) -> Tensor:
    """Upper bounds of the spectral norms of a batch of matrices with entries of size at most 1."""
    wide = matrices.shape[-1] > matrices.shape[-2]
    gram = matrices @ matrices.mT if wide else matrices.mT @ matrices
    found = torch.linalg.eigvalsh(gram).amax(-1).clamp_min(0)
    # Eigenvalues are accurate relative to the largest, whose root need not be.
    rounding = sum(matrices.shape[-2:]) * torch.finfo(torch.float64).eps
    return (found * (1 + rounding)).sqrt() * (1 + SLACK)


def sum_of_products(
    unit: Unit, norms: Norms, count: int, windows: float, outputs: int, bias: float = 0.0
) -> Rounding:
    r"""The error of y = W x + b, W a matrix or a convolution, in whatever order its sums of ``count`` products run.

    In the k-th addition every output gets a rounding error of at most u times its partial sum. Partial sums are parts
    of W's columns times parts of x: at each pixel their norm is at most \|W\|_2 that of the patch, and patches
    together have at most the square root of ``windows`` times the norm of x, windows being how many of them meet a
    pixel; or all of it has at most the sum of the norms of W's taps. Products that are rounded before they are added
    err by u \|\,|W|\,\|. This holds for every order that all outputs share. If each has an order of its own, its
    error is at most gamma_n |W| |x| (Higham, *Accuracy and Stability of Numerical Algorithms*, 2002, ch. 3), which
    is taken where it is smaller. Fused multiply-adds only leave roundings out.

    Args:
        unit: that of the dtype.
        norms: those of W's matrix (outputs, inputs * taps).
        count: the number of products in a sum.
        windows: see above; 1 for a matrix.
        outputs: the number of entries of y.
        bias: the norm of b, repeated for all pixels. It may be the first summand.
    """
    spread = math.sqrt(windows)
    partial = min(spread * norms.spectral, norms.by_taps)
    sums = unit.gamma(count + 2)
    ordered = sums * partial + unit.u * min(spread * norms.frobenius, norms.absolute)
    relative = min(ordered, unit.gamma(count + 3) * norms.absolute)
    limit = unit.largest / 1024 / max(1.0, spread * norms.spectral)
    own = Rounding(relative, sums * bias, sums=sums, largest=limit)
    return own.plus(underflow(unit, count + 2, outputs, norms.largest))


@cache
def transform_roundings(side: int) -> float:
    """Roundings of a fast Fourier transform of this length, relative to its norm sqrt(side).

    7 for each factor 2, which is one step of butterflies (Higham 2002, theorem 24.2, with a table that is rounded
    once: 1 + 4 sqrt(2)); other factors by :func:`_direct`, one by one or all at once, and a step of twiddles for
    each; 8 for telling two real signals apart.
    """
    twos, rest = 0, side
    while rest % 2 == 0 and rest:
        twos, rest = twos + 1, rest // 2
    odd, factors, factor = rest, [], 3
    while rest > 1:
        factor = factor if factor * factor <= rest else rest
        if rest % factor:
            factor += 2
        else:
            factors.append(factor)
            rest //= factor
    together = _direct(odd) + _BUTTERFLY if odd > 1 else 0.0
    one_by_one = sum(map(_direct, factors)) + _BUTTERFLY * len(factors)
    return _BUTTERFLY * twos + max(together, one_by_one) + 8


def direct_roundings(side: int) -> float:
    """Roundings of a Fourier transform of this length by its definition, or by a fast one."""
    return max(_direct(side) + 8, transform_roundings(side))


def _direct(side: int) -> float:
    """Sums of 2 n real products for each part, the rounding of the products, and that of a table of cosines.

    Both have entries of at most 1, and so a norm of at most sqrt(2 n) sqrt(n).
    """
    return 2 * side + 3 * math.sqrt(2 * side) + 4


def _in_float64(side: int) -> float:
    """Roundings of a transform in float64: that of its result to the layer's dtype, and far less than one more."""
    return 1.0


# The roundings of a transform of each kind that export writes.
TRANSFORMS: dict[str, Callable[[int], float]] = {
    "fft": transform_roundings,
    "matrices": direct_roundings,
    "matrices64": _in_float64,
}


def spectral_product(
    unit: Unit,
    norm: float,
    ports: tuple[int, int],
    fft_size: tuple[int, ...],
    outputs: int,
    bias: float = 0.0,
    transform: Callable[[int], float] = transform_roundings,
) -> Rounding:
    """The error of IDFT(Q_k DFT(x)_k) + b.

    Args:
        unit: that of the dtype.
        norm: the largest norm of the Q_k.
        ports: inputs and outputs of a group.
        fft_size: the sides of the transforms.
        outputs: the number of outputs.
        bias: the norm of b, repeated for all pixels.
        transform: the roundings of a transform of a given length.
    """
    smallest = math.sqrt(min(ports))
    # Sums over channels, the rounding of their products, that of Q itself, and the bias.
    products = 2 * ports[0] + 2 * math.sqrt(2) * smallest + smallest + 8
    count = 2 * sum(map(transform, fft_size)) + products
    limit = unit.largest / 1024 / max(1.0, norm) / math.prod(fft_size)
    own = Rounding(unit.gamma(count) * norm, 4 * unit.u * bias, sums=4 * unit.u, largest=limit)
    numbers = max(outputs, ports[0] * math.prod(fft_size), ports[1] * math.prod(fft_size))
    return own.plus(underflow(unit, count, numbers, norm).times(1 + norm))


def after(unit: Unit, first: Rounding, norm: float, second: Rounding, size: float, offset: float) -> Rounding:
    """The error of a second step of that norm after a first; its input has a norm of at most size |x| + offset."""
    lost = first.times(norm + second.relative)
    reach = (second.largest - offset) / max(size, 1.0)
    own = Rounding(second.relative * size, second.relative * offset + second.constant, largest=reach)
    return lost.plus(own)
