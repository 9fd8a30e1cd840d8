"""Tiles of real and complex matrices in Triton: loads, stores, adjoints and products, for other kernels to call."""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportAssignmentType=false, reportCallIssue=false
# Triton's own compiler reads the kernels: to pyright its constants are numbers.

import triton
import triton.language as tl


@triton.jit
def load_tile(p, o_row, o_column, m_tile, part, row_stride, column_stride, has_im, SIGN: tl.constexpr,
              COMPLEX: tl.constexpr):  # fmt: skip
    """Real and imaginary parts; the latter a 1 x 1 block of zeros of real matrices. A negative sign conjugates."""
    o = (o_row * row_stride)[:, None] + (o_column * column_stride)[None, :]
    re = tl.load(p + o, mask=m_tile, other=0)
    im = tl.zeros((1, 1), p.dtype.element_ty)
    if COMPLEX:
        im = SIGN * tl.load(p + part + o, mask=m_tile & has_im, other=0)
    return re, im


@triton.jit
def store_tile(p, o_row, o_column, m_tile, part, row_stride, column_stride, re, im, COMPLEX: tl.constexpr):
    """The inverse of load_tile."""
    o = (o_row * row_stride)[:, None] + (o_column * column_stride)[None, :]
    tl.store(p + o, re, mask=m_tile)
    if COMPLEX:
        tl.store(p + part + o, im, mask=m_tile)


@triton.jit
def multiply_add(a_re, a_im, b_re, b_im, re, im, COMPLEX: tl.constexpr, PRECISION: tl.constexpr):
    """(re, im) + a b."""
    re = tl.dot(a_re, b_re, re, input_precision=PRECISION, out_dtype=re.dtype)
    if COMPLEX:
        re = tl.dot(-a_im, b_im, re, input_precision=PRECISION, out_dtype=re.dtype)
        im = tl.dot(a_re, b_im, im, input_precision=PRECISION, out_dtype=re.dtype)
        im = tl.dot(a_im, b_re, im, input_precision=PRECISION, out_dtype=re.dtype)
    return re, im


@triton.jit
def zero_tile(DTYPE: tl.constexpr, TILE: tl.constexpr, COMPLEX: tl.constexpr):
    """A tile of zeros, as load_tile gives it."""
    re = tl.zeros((TILE, TILE), DTYPE)
    if COMPLEX:
        im = tl.zeros((TILE, TILE), DTYPE)
    else:
        im = tl.zeros((1, 1), DTYPE)
    return re, im


@triton.jit
def adjoint_tile(re, im, COMPLEX: tl.constexpr):
    """The tile of the adjoint."""
    if COMPLEX:
        im = -tl.trans(im)
    return tl.trans(re), im


@triton.jit
def accumulate(
    p_a, p_b, re, im, o_row, o_column, rows, columns, terms,
    a_part, a_row, a_term, b_part, b_term, b_column, has_im,
    SIGN_A: tl.constexpr, SIGN_B: tl.constexpr, COMPLEX: tl.constexpr, PRECISION: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """(re, im) + (a b)[o_row, o_column]."""
    for start in range(0, terms, TERMS):
        o_term = start + tl.arange(0, TERMS)
        m_a = (o_row < rows)[:, None] & (o_term < terms)[None, :]
        m_b = (o_term < terms)[:, None] & (o_column < columns)[None, :]
        a_re, a_im = load_tile(p_a, o_row, o_term, m_a, a_part, a_row, a_term, has_im, SIGN_A, COMPLEX)
        b_re, b_im = load_tile(p_b, o_term, o_column, m_b, b_part, b_term, b_column, has_im, SIGN_B, COMPLEX)
        re, im = multiply_add(a_re, a_im, b_re, b_im, re, im, COMPLEX, PRECISION)
    return re, im


@triton.jit
def combine_tile(
    p_a, p_b, p_a2, p_b2, p_x, o_row, o_column, m_tile, rows, columns, terms, first, second,
    a_part, a_row, a_term, b_part, b_term, b_column, x_part, x_row, x_column, has_im,
    SIGN_A: tl.constexpr, SIGN_B: tl.constexpr, SECOND: tl.constexpr, ADD: tl.constexpr, COMPLEX: tl.constexpr,
    PRECISION: tl.constexpr, TILE: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """(first · x + second · (a b + SECOND a2 b2))[o_row, o_column]; x only with ADD."""
    DTYPE: tl.constexpr = p_x.dtype.element_ty
    re, im = zero_tile(DTYPE, TILE, COMPLEX)
    if SECOND != 0:
        re, im = accumulate(
            p_a2, p_b2, re, im, o_row, o_column, rows, columns, terms,
            a_part, a_row, a_term, b_part, b_term, b_column, has_im, SIGN_A, SIGN_B, COMPLEX, PRECISION, TERMS,
        )  # fmt: skip
        re, im = SECOND * re, SECOND * im
    re, im = accumulate(
        p_a, p_b, re, im, o_row, o_column, rows, columns, terms,
        a_part, a_row, a_term, b_part, b_term, b_column, has_im, SIGN_A, SIGN_B, COMPLEX, PRECISION, TERMS,
    )  # fmt: skip
    re, im = (second * re).to(DTYPE), (second * im).to(DTYPE)
    if ADD:
        x_re, x_im = load_tile(p_x, o_row, o_column, m_tile, x_part, x_row, x_column, has_im, 1, COMPLEX)
        re, im = (re + first * x_re).to(DTYPE), (im + first * x_im).to(DTYPE)
    return re, im
