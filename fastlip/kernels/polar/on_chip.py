"""Operations on a matrix on chip, for the programs of triton_kernels.py: planar complex products, norms, loads.

Of real matrices the imaginary part is a 1 x 1 block of zeros, which costs nothing and spares a second set of kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def multiply(a_re, a_im, b_re, b_im, COMPLEX: tl.constexpr, PRECISION: tl.constexpr):
    """a b."""
    re = tl.dot(a_re, b_re, input_precision=PRECISION, out_dtype=a_re.dtype)
    im = a_im
    if COMPLEX:
        re = tl.dot(-a_im, b_im, re, input_precision=PRECISION, out_dtype=a_re.dtype)
        im = tl.dot(a_re, b_im, input_precision=PRECISION, out_dtype=a_re.dtype)
        im = tl.dot(a_im, b_re, im, input_precision=PRECISION, out_dtype=a_re.dtype)
    return re, im


@triton.jit
def adjoint_multiply(a_re, a_im, b_re, b_im, COMPLEX: tl.constexpr, PRECISION: tl.constexpr):
    """aᴴ b."""
    im = a_im
    if COMPLEX:
        im = -tl.trans(a_im)
    return multiply(tl.trans(a_re), im, b_re, b_im, COMPLEX, PRECISION)


@triton.jit
def gram_of(x_re, x_im, COMPLEX: tl.constexpr, PRECISION: tl.constexpr):
    """xᴴ x, whose imaginary part is the skew part of one product."""
    re = tl.dot(tl.trans(x_re), x_re, input_precision=PRECISION, out_dtype=x_re.dtype)
    im = x_im
    if COMPLEX:
        re = tl.dot(tl.trans(x_im), x_im, re, input_precision=PRECISION, out_dtype=x_re.dtype)
        half = tl.dot(tl.trans(x_re), x_im, input_precision=PRECISION, out_dtype=x_re.dtype)
        im = half - tl.trans(half)
    return re, im


@triton.jit
def bound_of(gram_re, gram_im):
    """An upper bound of the largest eigenvalue of a Hermitian matrix: the smaller of two norms."""
    squares = gram_re * gram_re + gram_im * gram_im
    return tl.minimum(tl.sqrt(tl.sum(squares)), tl.max(tl.sum(tl.sqrt(squares), 1)))


@triton.jit
def defect_of(gram_re, gram_im, identity):
    """The Frobenius norm and the trace of I - gram."""
    re = identity - gram_re
    return tl.sqrt(tl.sum(re * re) + tl.sum(gram_im * gram_im)), tl.sum(re * identity)


@triton.jit
def load_planar(p_x, o_x, m_x, is_complex, COMPLEX: tl.constexpr):
    """Real and imaginary parts, which are neighbours in memory; the latter 0 unless is_complex."""
    re = tl.load(p_x + o_x, mask=m_x, other=0)
    im = tl.zeros((1, 1), tl.float32)
    if COMPLEX:
        im = tl.where(is_complex, tl.load(p_x + o_x + 1, mask=m_x, other=0), 0.0)
    return re, im


@triton.jit
def store_planar(p_x, o_x, m_x, re, im, COMPLEX: tl.constexpr):
    """The inverse of load_planar."""
    tl.store(p_x + o_x, re, mask=m_x)
    if COMPLEX:
        tl.store(p_x + o_x + 1, im, mask=m_x)


@triton.jit
def unit_of(x_re, x_im, TINY: tl.constexpr):
    """1 / the largest entry; 0 for a matrix of zeros. NaN and Inf times it are NaN."""
    peak = tl.maximum(tl.max(tl.abs(x_re)), tl.max(tl.abs(x_im)))
    return tl.where(peak <= TINY, 0.0, 1 / tl.where(peak <= TINY, 1.0, peak))


@triton.jit
def offsets_of(rows, columns, row_stride, column_stride, zero, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets of a matrix' entries [ROWS, COLUMNS], and a mask of those that exist.

    zero is 0, but known to be so only where it was computed: before a loop, offsets are not kept during it.
    """
    o_row, o_column = tl.arange(0, ROWS)[:, None] + zero, tl.arange(0, COLUMNS)[None, :] + zero
    return o_row * row_stride + o_column * column_stride, (o_row < rows) & (o_column < columns)


@triton.jit
def identity_of(columns, COLUMNS: tl.constexpr):
    """The identity of the columns that exist, and zeros beyond them."""
    o_row, o_column = tl.arange(0, COLUMNS)[:, None], tl.arange(0, COLUMNS)[None, :]
    return ((o_row == o_column) & (o_column < columns)).to(tl.float32)


@triton.jit
def skew_part(x_re, x_im, COMPLEX: tl.constexpr):
    """(x - xᴴ) / 2."""
    im = x_im
    if COMPLEX:
        im = (x_im + tl.trans(x_im)) / 2
    return (x_re - tl.trans(x_re)) / 2, im


@triton.jit
def derive(h_re, h_im, gram_re, gram_im, k_re, k_im, a, b, COMPLEX: tl.constexpr, PRECISION: tl.constexpr):
    """a k + b (k h² + h² k - h k h): the derivative of a x + b x³ at a Hermitian x = h, in a skew direction k."""
    re, im = multiply(h_re, h_im, k_re, k_im, COMPLEX, PRECISION)
    re, im = multiply(re, im, h_re, h_im, COMPLEX, PRECISION)
    between_re, between_im = skew_part(re, im, COMPLEX)
    re, im = multiply(k_re, k_im, gram_re, gram_im, COMPLEX, PRECISION)
    twice_re, twice_im = skew_part(re, im, COMPLEX)
    return a * k_re + b * (2 * twice_re - between_re), a * k_im + b * (2 * twice_im - between_im)
