"""The kernels of triton_kernels.py: VᴴV and its inverse Cholesky factor, in tiles, in float64."""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportAssignmentType=false, reportCallIssue=false
# Triton's own compiler reads the kernels: to pyright its constants are numbers.

from __future__ import annotations

import triton
import triton.language as tl

from fastlip.kernels.common.tiles_triton import (
    accumulate,
    adjoint_tile,
    load_tile,
    multiply_add,
    store_tile,
    zero_tile,
)


@triton.jit
def unit_kernel(
    p_peak, p_unit, p_scale, members, SMALLEST: tl.constexpr, NO_GRADIENT: tl.constexpr, COUNT: tl.constexpr
):
    """The power of two that brings each member's largest entry near 1; the squared one for R, 0 for tiny V."""
    o_member = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    m_member = o_member < members
    peak = tl.load(p_peak + o_member, mask=m_member, other=1).to(tl.float64)
    unit = tl.exp2(-tl.floor(tl.log2(tl.maximum(peak, SMALLEST))))
    unit = tl.where(peak < float("inf"), unit, float("nan"))  # also where the peak is NaN
    tl.store(p_unit + o_member, unit, mask=m_member)
    scale = tl.where(peak <= NO_GRADIENT, 0.0, unit)
    tl.store(p_scale + 2 * o_member, scale, mask=m_member)
    tl.store(p_scale + 2 * o_member + 1, scale, mask=m_member)


@triton.jit
def inverse_factor(re, im, limit, COMPLEX: tl.constexpr, TILE: tl.constexpr):
    """L⁻¹ of a Hermitian tile L Lᴴ; rows of zeros where a pivot is at most the limit."""
    DTYPE: tl.constexpr = re.dtype
    lane = tl.arange(0, TILE)
    e_re, e_im = zero_tile(DTYPE, TILE, COMPLEX)
    e_re += (lane[:, None] == lane[None, :]).to(DTYPE)
    for pivot in range(TILE):
        is_row, below = (lane == pivot)[:, None], (lane > pivot)[:, None]
        r_re, f_re = tl.sum(tl.where(is_row, re, 0.0), 0), tl.sum(tl.where(is_row, e_re, 0.0), 0)
        diagonal = tl.sum(tl.where(lane == pivot, r_re, 0.0))
        factor = tl.where(diagonal <= limit, 0.0, 1 / tl.sqrt(tl.where(diagonal <= limit, 1.0, diagonal)))
        r_re, f_re = r_re * factor, f_re * factor
        if COMPLEX:
            r_im = tl.sum(tl.where(is_row, im, 0.0), 0) * factor
            f_im = tl.sum(tl.where(is_row, e_im, 0.0), 0) * factor
            # Minus the conjugate of the pivot's row times the row itself.
            re -= tl.where(below, r_re[:, None] * r_re[None, :] + r_im[:, None] * r_im[None, :], 0.0)
            im -= tl.where(below, r_re[:, None] * r_im[None, :] - r_im[:, None] * r_re[None, :], 0.0)
            u_re = r_re[:, None] * f_re[None, :] + r_im[:, None] * f_im[None, :]
            u_im = r_re[:, None] * f_im[None, :] - r_im[:, None] * f_re[None, :]
            e_im = tl.where(is_row, f_im[None, :], e_im - tl.where(below, u_im, 0.0))
        else:
            re -= tl.where(below, r_re[:, None] * r_re[None, :], 0.0)
            u_re = r_re[:, None] * f_re[None, :]
        e_re = tl.where(is_row, f_re[None, :], e_re - tl.where(below, u_re, 0.0))
    return e_re, e_im


@triton.jit(do_not_specialize=("tiles",))
def gram_kernel(
    p_v, p_w, p_e, p_norm, rows, columns, tiles, negligible, v_member, v_part, v_row, v_column,
    COMPLEX: tl.constexpr, TILE: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """W = [VᴴV, I], padded by I to whole tiles; E[0], the inverse factor of the first tile."""
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    member, tile = tl.program_id(0) // (2 * tiles * tiles), tl.program_id(0) % (2 * tiles * tiles)
    member, lane = member.to(tl.int64), tl.arange(0, TILE)
    tile_row, tile_column = tile // (2 * tiles), tile % (2 * tiles)
    o_row, o_column = tile_row * TILE + lane, tile_column * TILE + lane
    re, im = zero_tile(p_w.dtype.element_ty, TILE, COMPLEX)
    if tile_column < tiles:
        p_v += member * v_member
        has_im = tl.zeros((1, 1), tl.int32) == 0
        re, im = accumulate(
            p_v, p_v, re, im, o_row, o_column, columns, columns, rows,
            v_part, v_column, v_row, v_part, v_row, v_column, has_im, -1, 1, COMPLEX, "ieee", TERMS,
        )  # fmt: skip
        re += ((o_row[:, None] == o_column[None, :]) & (o_row >= columns)[:, None]).to(re.dtype)
    else:
        re += (o_row[:, None] == (o_column - tiles * TILE)[None, :]).to(re.dtype)
    size = tiles * TILE
    everywhere = (lane >= 0)[:, None] & (lane >= 0)[None, :]
    p_w += member * PARTS * 2 * size * size
    store_tile(p_w, o_row, o_column, everywhere, 2 * size * size, 2 * size, 1, re, im, COMPLEX)
    if tile == 0:
        norm = tl.load(p_norm + member)
        re, im = inverse_factor(re, im, negligible * norm * norm, COMPLEX, TILE)
        p_e += member * tiles * PARTS * TILE * TILE
        store_tile(p_e, lane, lane, everywhere, TILE * TILE, TILE, 1, re, im, COMPLEX)


@triton.jit(do_not_specialize=("tiles", "step"))
def step_kernel(p_w, p_e, p_r, p_norm, tiles, step, negligible, COMPLEX: tl.constexpr, TILE: tl.constexpr):
    """One block of elimination, k = step: R[:, k] = (E W[k, :])ᴴ, of the right half of W; and E[k + 1].

    Every row i below becomes W[i, :] - (E W[k, i])ᴴ (E W[k, :]), in place: row k is not written.
    """
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    DTYPE: tl.constexpr = p_w.dtype.element_ty
    member, tile = tl.program_id(0) // (2 * tiles * tiles), tl.program_id(0) % (2 * tiles * tiles)
    member, lane, size = member.to(tl.int64), tl.arange(0, TILE), tiles * TILE
    tile_row, tile_column = tile // (2 * tiles), tile % (2 * tiles)
    # W[k, :] is zero beyond column k of the right half, and not needed up to column k of the left one.
    if (tile_row < step) | (tile_column <= step) | (tile_column > tiles + step):
        return
    if (tile_row == step) & (tile_column < tiles):
        return
    part, stride = 2 * size * size, 2 * size
    p_w += member * PARTS * part
    p_e += (member * tiles + step) * PARTS * TILE * TILE
    everywhere = (lane >= 0)[:, None] & (lane >= 0)[None, :]
    o_row, o_column, o_step = tile_row * TILE + lane, tile_column * TILE + lane, step * TILE + lane
    e_re, e_im = load_tile(p_e, lane, lane, everywhere, TILE * TILE, TILE, 1, everywhere, 1, COMPLEX)
    w_re, w_im = load_tile(p_w, o_step, o_column, everywhere, part, stride, 1, everywhere, 1, COMPLEX)
    r_re, r_im = zero_tile(DTYPE, TILE, COMPLEX)
    r_re, r_im = multiply_add(e_re, e_im, w_re, w_im, r_re, r_im, COMPLEX, "ieee")
    if tile_row == step:
        p_r += member * PARTS * size * size
        r_re, r_im = adjoint_tile(r_re, r_im, COMPLEX)
        store_tile(p_r, o_column - size, o_row, everywhere, size * size, size, 1, r_re, r_im, COMPLEX)
    else:
        w_re, w_im = load_tile(p_w, o_step, o_row, everywhere, part, stride, 1, everywhere, 1, COMPLEX)
        l_re, l_im = zero_tile(DTYPE, TILE, COMPLEX)
        l_re, l_im = multiply_add(e_re, e_im, w_re, w_im, l_re, l_im, COMPLEX, "ieee")
        l_re, l_im = adjoint_tile(l_re, l_im, COMPLEX)
        w_re, w_im = load_tile(p_w, o_row, o_column, everywhere, part, stride, 1, everywhere, 1, COMPLEX)
        w_re, w_im = multiply_add(-l_re, -l_im, r_re, r_im, w_re, w_im, COMPLEX, "ieee")
        store_tile(p_w, o_row, o_column, everywhere, part, stride, 1, w_re, w_im, COMPLEX)
        if (tile_row == step + 1) & (tile_column == step + 1):
            norm = tl.load(p_norm + member)
            w_re, w_im = inverse_factor(w_re, w_im, negligible * norm * norm, COMPLEX, TILE)
            p_e += PARTS * TILE * TILE
            store_tile(p_e, lane, lane, everywhere, TILE * TILE, TILE, 1, w_re, w_im, COMPLEX)
