"""What the programs of triton_kernels.py do with a tile on chip: I + A from M, and its inverse without pivoting."""

from __future__ import annotations

import triton
import triton.language as tl

from fastlip.kernels.common.product_triton import adjoint_tile, load_tile, multiply_add, zero_tile


@triton.jit
def load_as(p, o_row, o_column, m_tile, part, row_stride, column_stride, DTYPE: tl.constexpr, COMPLEX: tl.constexpr):
    """A tile in the type that is computed in."""
    re, im = load_tile(p, o_row, o_column, m_tile, part, row_stride, column_stride, m_tile, 1, COMPLEX)
    return re.to(DTYPE), im.to(DTYPE)


@triton.jit
def form(
    p_m, tile_row, tile_column, rows, columns, row_stride, column_stride,
    DTYPE: tl.constexpr, COMPLEX: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """A tile of I + U - Uᴴ + VᴴV, M = [U; V]; of I beyond M's columns."""
    lane = tl.arange(0, TILE)
    o_row, o_column = tile_row * TILE + lane, tile_column * TILE + lane
    m_row, m_column = o_row < columns, o_column < columns
    m_tile, m_other = m_row[:, None] & m_column[None, :], m_column[:, None] & m_row[None, :]
    re, im = zero_tile(DTYPE, TILE, COMPLEX)
    for start in range(columns, rows, TERMS):
        o_term = start + tl.arange(0, TERMS)
        m_a, m_b = (o_term < rows)[:, None] & m_row[None, :], (o_term < rows)[:, None] & m_column[None, :]
        a_re, a_im = load_as(p_m, o_term, o_row, m_a, 1, row_stride, column_stride, DTYPE, COMPLEX)
        b_re, b_im = load_as(p_m, o_term, o_column, m_b, 1, row_stride, column_stride, DTYPE, COMPLEX)
        a_re, a_im = adjoint_tile(a_re, a_im, COMPLEX)
        re, im = multiply_add(a_re, a_im, b_re, b_im, re, im, COMPLEX, PRECISION)
    u_re, u_im = load_as(p_m, o_row, o_column, m_tile, 1, row_stride, column_stride, DTYPE, COMPLEX)
    t_re, t_im = load_as(p_m, o_column, o_row, m_other, 1, row_stride, column_stride, DTYPE, COMPLEX)
    t_re, t_im = adjoint_tile(t_re, t_im, COMPLEX)
    re, im = re + (u_re - t_re), im + (u_im - t_im)
    return re + (o_row[:, None] == o_column[None, :]).to(DTYPE), im


@triton.jit
def invert(re, im, count, COMPLEX: tl.constexpr, TILE: tl.constexpr):
    """The inverse of the first count rows and columns by Gauss-Jordan elimination; the others are those of I."""
    lane = tl.arange(0, TILE)
    for pivot in range(count):
        is_pivot = lane == pivot
        is_row, is_column = is_pivot[:, None], is_pivot[None, :]
        r_re, c_re = tl.sum(tl.where(is_row, re, 0.0), 0), tl.sum(tl.where(is_column, re, 0.0), 1)
        p_re = tl.sum(tl.where(is_pivot, r_re, 0.0))
        if COMPLEX:
            r_im, c_im = tl.sum(tl.where(is_row, im, 0.0), 0), tl.sum(tl.where(is_column, im, 0.0), 1)
            p_im = tl.sum(tl.where(is_pivot, r_im, 0.0))
            inverse = 1 / (p_re * p_re + p_im * p_im)
            i_re, i_im = p_re * inverse, -p_im * inverse
            e_re = tl.where(is_pivot, i_re, r_re * i_re - r_im * i_im)
            e_im = tl.where(is_pivot, i_im, r_re * i_im + r_im * i_re)
            u_re = c_re[:, None] * e_re[None, :] - c_im[:, None] * e_im[None, :]
            u_im = c_re[:, None] * e_im[None, :] + c_im[:, None] * e_re[None, :]
            im = tl.where(is_row, e_im[None, :], tl.where(is_column, 0.0, im) - u_im)
        else:
            i_re = 1 / p_re
            e_re = tl.where(is_pivot, i_re, r_re * i_re)
            u_re = c_re[:, None] * e_re[None, :]
        re = tl.where(is_row, e_re[None, :], tl.where(is_column, 0.0, re) - u_re)
    return re, im


@triton.jit
def norm_of(re, im, COMPLEX: tl.constexpr):
    """The Frobenius norm."""
    square = tl.sum(re * re)
    if COMPLEX:
        square += tl.sum(im * im)
    return tl.sqrt(square)


@triton.jit
def polish_factors(norm, limit):
    """Factors of Q and of Q D, D = I - QᴴQ of that norm: 1 and 1/2 above the limit, 1 and 0 below it.

    That is the Newton-Schulz step (3 Q - Q QᴴQ) / 2, which maps singular values up to sqrt(3) to at most 1. A Q that
    may exceed that is scaled down first, so that the norm of the result is at most 1 however wrong Q is.
    """
    square = tl.where(norm > 2, (1 + norm) / 3, 1.0)
    root = tl.sqrt(square)
    wanted = tl.where(norm <= limit, 0.0, 1.0)  # also of NaN
    return (3 - 1 / square) / (2 * root), wanted / (2 * square * root)
