"""The kernels of triton_kernels.py: I + A from M, tile by tile, its inverse without pivoting, and its correction."""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportAssignmentType=false, reportCallIssue=false
# Triton's own compiler reads the kernels: to pyright its constants are numbers.

from __future__ import annotations

import triton
import triton.language as tl

from fastlip.kernels.common.product_triton import defect_from
from fastlip.kernels.common.tiles_triton import adjoint_tile, load_tile, multiply_add, store_tile, zero_tile


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


@triton.jit
def whole_kernel(
    p_m, p_q, p_b, p_flags, rows, columns, accurate, failed, orthogonal,
    DTYPE: tl.constexpr, FLAGGED: tl.constexpr, KEEP: tl.constexpr, COMPLEX: tl.constexpr, TILE: tl.constexpr,
    TERMS: tl.constexpr,
):  # fmt: skip
    """Q, and B where it is kept, of a matrix of at most TILE columns, computed in DTYPE.

    Sets the member's flag if elimination failed; FLAGGED: only the members whose flag is set.
    """
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    OUT: tl.constexpr = p_q.dtype.element_ty
    if FLAGGED:  # noqa: SIM102 (known to the compiler)
        if tl.load(p_flags + tl.program_id(0)) == 0:
            return
    member = tl.program_id(0).to(tl.int64)
    stride = columns * PARTS
    p_m, p_q = p_m + member * rows * stride, p_q + member * rows * stride
    lane = tl.arange(0, TILE)
    m_tile = (lane < columns)[:, None] & (lane < columns)[None, :]
    one = (lane[:, None] == lane[None, :]).to(DTYPE)

    a_re, a_im = form(p_m, 0, 0, rows, columns, stride, PARTS, DTYPE, COMPLEX, "ieee", TILE, TERMS)
    b_re, b_im = invert(a_re, a_im, columns, COMPLEX, TILE)
    r_re, r_im = zero_tile(DTYPE, TILE, COMPLEX)
    r_re, r_im = multiply_add(a_re, a_im, b_re, b_im, r_re, r_im, COMPLEX, "ieee")
    r_re, r_im = one - r_re, -r_im
    norm = norm_of(r_re, r_im, COMPLEX)
    if not FLAGGED:
        tl.store(p_flags + member, ((norm > failed) | (norm != norm)).to(tl.int32))
    if norm > accurate:
        b_re, b_im = multiply_add(b_re, b_im, r_re, r_im, b_re, b_im, COMPLEX, "ieee")
    if KEEP:
        p_b += member * columns * stride
        store_tile(p_b, lane, lane, m_tile, 1, stride, PARTS, b_re.to(OUT), b_im.to(OUT), COMPLEX)

    q_re, q_im = tl.where(m_tile, 2 * b_re - one, 0.0), 2 * b_im
    t_re, t_im = adjoint_tile(q_re, q_im, COMPLEX)
    g_re, g_im = zero_tile(DTYPE, TILE, COMPLEX)
    g_re, g_im = multiply_add(t_re, t_im, q_re, q_im, g_re, g_im, COMPLEX, "ieee")
    for start in range(columns, rows, TILE):
        m_v = (start + lane < rows)[:, None] & (lane < columns)[None, :]
        v_re, v_im = load_as(p_m, start + lane, lane, m_v, 1, stride, PARTS, DTYPE, COMPLEX)
        w_re, w_im = zero_tile(DTYPE, TILE, COMPLEX)
        w_re, w_im = multiply_add(-2 * v_re, -2 * v_im, b_re, b_im, w_re, w_im, COMPLEX, "ieee")
        t_re, t_im = adjoint_tile(w_re, w_im, COMPLEX)
        g_re, g_im = multiply_add(t_re, t_im, w_re, w_im, g_re, g_im, COMPLEX, "ieee")
    d_re, d_im = tl.where(m_tile, one - g_re, 0.0), -g_im
    first, second = polish_factors(norm_of(d_re, d_im, COMPLEX), orthogonal)
    first, second = first.to(DTYPE), second.to(DTYPE)
    w_re, w_im = first * q_re, first * q_im
    w_re, w_im = multiply_add(second * q_re, second * q_im, d_re, d_im, w_re, w_im, COMPLEX, "ieee")
    store_tile(p_q, lane, lane, m_tile, 1, stride, PARTS, w_re.to(OUT), w_im.to(OUT), COMPLEX)
    for start in range(columns, rows, TILE):
        m_v = (start + lane < rows)[:, None] & (lane < columns)[None, :]
        v_re, v_im = load_as(p_m, start + lane, lane, m_v, 1, stride, PARTS, DTYPE, COMPLEX)
        q_re, q_im = zero_tile(DTYPE, TILE, COMPLEX)
        q_re, q_im = multiply_add(-2 * v_re, -2 * v_im, b_re, b_im, q_re, q_im, COMPLEX, "ieee")
        w_re, w_im = first * q_re, first * q_im
        w_re, w_im = multiply_add(second * q_re, second * q_im, d_re, d_im, w_re, w_im, COMPLEX, "ieee")
        store_tile(p_q, start + lane, lane, m_v, 1, stride, PARTS, w_re.to(OUT), w_im.to(OUT), COMPLEX)


@triton.jit(do_not_specialize=("tiles",))
def form_kernel(
    p_m, p_w, p_e, p_flags, rows, columns, tiles,
    FLAGGED: tl.constexpr, COMPLEX: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """W = I + A, planar and padded by I to whole tiles; E[0], the inverse of its first tile."""
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    DTYPE: tl.constexpr = p_w.dtype.element_ty
    member, tile = tl.program_id(0) // (tiles * tiles), tl.program_id(0) % (tiles * tiles)
    if FLAGGED:  # noqa: SIM102 (known to the compiler)
        if tl.load(p_flags + member) == 0:
            return
    member = member.to(tl.int64)
    size, lane = tiles * TILE, tl.arange(0, TILE)
    tile_row, tile_column = tile // tiles, tile % tiles
    p_m += member * rows * columns * PARTS
    re, im = form(
        p_m, tile_row, tile_column, rows, columns, columns * PARTS, PARTS, DTYPE, COMPLEX, PRECISION, TILE, TERMS
    )
    p_w += member * PARTS * size * size
    everywhere = (lane >= 0)[:, None] & (lane >= 0)[None, :]
    o_row, o_column = tile_row * TILE + lane, tile_column * TILE + lane
    store_tile(p_w, o_row, o_column, everywhere, size * size, size, 1, re, im, COMPLEX)
    if tile == 0:
        re, im = invert(re, im, TILE, COMPLEX, TILE)
        p_e += member * tiles * PARTS * TILE * TILE
        store_tile(p_e, lane, lane, everywhere, TILE * TILE, TILE, 1, re, im, COMPLEX)


@triton.jit(do_not_specialize=("tiles", "step"))
def step_kernel(
    p_from, p_to, p_e, p_flags, columns, tiles, step,
    FLAGGED: tl.constexpr, COMPLEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One block of Gauss-Jordan elimination, and E[step + 1], the inverse of the next diagonal tile.

    With k = step: R = E W[k, :] (E itself in column k) replaces row k, and W[i, :] - W[i, k] R every other row i.
    """
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    DTYPE: tl.constexpr = p_from.dtype.element_ty
    member, tile = tl.program_id(0) // (tiles * tiles), tl.program_id(0) % (tiles * tiles)
    if FLAGGED:  # noqa: SIM102 (known to the compiler)
        if tl.load(p_flags + member) == 0:
            return
    member = member.to(tl.int64)
    tile_row, tile_column = tile // tiles, tile % tiles
    size, lane = tiles * TILE, tl.arange(0, TILE)
    p_from, p_to = p_from + member * PARTS * size * size, p_to + member * PARTS * size * size
    p_e += (member * tiles + step) * PARTS * TILE * TILE
    everywhere = (lane >= 0)[:, None] & (lane >= 0)[None, :]
    o_row, o_column, o_step = tile_row * TILE + lane, tile_column * TILE + lane, step * TILE + lane
    in_row, in_column = tile_row == step, tile_column == step

    e_re, e_im = load_tile(p_e, lane, lane, everywhere, TILE * TILE, TILE, 1, everywhere, 1, COMPLEX)
    w_re, w_im = load_tile(p_from, o_step, o_column, everywhere, size * size, size, 1, everywhere, 1, COMPLEX)
    r_re, r_im = zero_tile(DTYPE, TILE, COMPLEX)
    r_re, r_im = multiply_add(e_re, e_im, w_re, w_im, r_re, r_im, COMPLEX, "ieee")
    r_re, r_im = tl.where(in_column, e_re, r_re), tl.where(in_column, e_im, r_im)
    c_re, c_im = load_tile(p_from, o_row, o_step, everywhere, size * size, size, 1, everywhere, 1, COMPLEX)
    w_re, w_im = load_tile(p_from, o_row, o_column, everywhere, size * size, size, 1, everywhere, 1, COMPLEX)
    w_re, w_im = tl.where(in_column, 0.0, w_re), tl.where(in_column, 0.0, w_im)
    w_re, w_im = multiply_add(-c_re, -c_im, r_re, r_im, w_re, w_im, COMPLEX, "ieee")
    w_re, w_im = tl.where(in_row, r_re, w_re), tl.where(in_row, r_im, w_im)
    store_tile(p_to, o_row, o_column, everywhere, size * size, size, 1, w_re, w_im, COMPLEX)
    if (tile_row == step + 1) & (tile_column == step + 1):
        w_re, w_im = invert(w_re, w_im, TILE, COMPLEX, TILE)
        p_e += PARTS * TILE * TILE
        store_tile(p_e, lane, lane, everywhere, TILE * TILE, TILE, 1, w_re, w_im, COMPLEX)


@triton.jit(do_not_specialize=("count",))
def decide_kernel(
    p_sums, p_scale, p_flags, count, limit, failed, POLISH: tl.constexpr, FLAGGED: tl.constexpr, SUMS: tl.constexpr
):
    """The factors of the correction that follows, from a measured norm; and whether elimination failed."""
    member = tl.program_id(0)
    norm, _ = defect_from(p_sums + member.to(tl.int64) * 2 * count, count, SUMS)
    if POLISH:
        first, second = polish_factors(norm, limit)
        tl.store(p_scale + 2 * member, first)
        tl.store(p_scale + 2 * member + 1, second)
    else:  # a Newton step
        tl.store(p_scale + 2 * member, 1.0)
        tl.store(p_scale + 2 * member + 1, tl.where(norm > limit, 1.0, 0.0))
    if FLAGGED:
        tl.store(p_flags + member, ((norm > failed) | (norm != norm)).to(tl.int32))


@triton.jit(do_not_specialize=("tiles",))
def finish_kernel(
    p_single, p_double, p_flags, p_q, p_b, rows, columns, tiles,
    KEEP: tl.constexpr, FLAGGED: tl.constexpr, COMPLEX: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """2 B - I, and B where it is kept, from the B that is to be taken."""
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    DTYPE: tl.constexpr = p_q.dtype.element_ty
    member, tile = tl.program_id(0) // (tiles * tiles), tl.program_id(0) % (tiles * tiles)
    member, size, lane = member.to(tl.int64), tiles * TILE, tl.arange(0, TILE)
    o_row, o_column = tile // tiles * TILE + lane, tile % tiles * TILE + lane
    m_tile = (o_row < columns)[:, None] & (o_column < columns)[None, :]
    p_single += member * PARTS * size * size
    re, im = load_tile(p_single, o_row, o_column, m_tile, size * size, size, 1, m_tile, 1, COMPLEX)
    if FLAGGED:  # noqa: SIM102 (known to the compiler)
        if tl.load(p_flags + member) != 0:
            p_double += member * PARTS * size * size
            re, im = load_as(p_double, o_row, o_column, m_tile, size * size, size, 1, DTYPE, COMPLEX)
    stride = columns * PARTS
    if KEEP:
        p_b += member * columns * stride
        store_tile(p_b, o_row, o_column, m_tile, 1, stride, PARTS, re, im, COMPLEX)
    p_q += member * rows * stride
    one = (o_row[:, None] == o_column[None, :]).to(DTYPE)
    store_tile(p_q, o_row, o_column, m_tile, 1, stride, PARTS, 2 * re - one, 2 * im, COMPLEX)
