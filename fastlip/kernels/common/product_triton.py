"""Batched products of real or complex matrices in Triton, with what is usually done to the result in the same launch.

A matrix is a member of a tensor (b, parts, rows, columns) of any strides: one part if it is real, two if complex.
Nothing is copied to be multiplied. Every sum is one program's, in order; float32 is multiplied as 3xTF32.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportAssignmentType=false, reportCallIssue=false
# Triton's own compiler reads the kernels: to pyright its constants are numbers.

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlip.kernels.common import gpu, triton_launch
from fastlip.kernels.common.tiles_triton import adjoint_tile, combine_tile, store_tile

TILE = 32  # rows and columns of a tile of the result
_TERMS = 16  # of one step of its sums: with more, registers spill


@triton.jit
def cubic_of(norm, trace, more):
    """The coefficients a, b of the step x -> a x + b x³: 1.5 and -0.5, scaled by what the defect D allows.

    |D|² / tr D is at most the largest eigenvalue of D = I - xᴴx, hence 1 minus it at least the smallest of xᴴx.
    """
    largest = tl.where(
        trace > 0, tl.minimum(norm * norm / tl.where(trace > 0, trace, 1.0), tl.minimum(norm, 1.0)), 0.0
    )
    smallest = 1 - largest
    square = tl.where(more, tl.minimum(3 / (1 + tl.sqrt(smallest) + smallest), 2.0), 1.0)
    rho = tl.sqrt(square)
    return 1.5 * rho, -0.5 * rho * square


@triton.jit
def defect_from(p_sums, count, SUMS: tl.constexpr):
    """A norm and a trace from each tile's sum of squares and sum of diagonal entries."""
    o_sum = tl.arange(0, SUMS)
    square = tl.sum(tl.load(p_sums + 2 * o_sum, mask=o_sum < count, other=0))
    return tl.sqrt(square), tl.sum(tl.load(p_sums + 2 * o_sum + 1, mask=o_sum < count, other=0))


@triton.jit
def coefficients(p_sums, count, plain, fine, SUMS: tl.constexpr):
    """a and b of a member's step, and whether it continues after it."""
    norm, trace = defect_from(p_sums, count, SUMS)
    more = norm > fine
    a, b = cubic_of(norm, trace, more & (plain == 0))
    return a, b, more


@triton.jit
def store_sums(p_sums, re, im, m_measured, diagonal, COMPLEX: tl.constexpr):
    """Stores a tile's part of the sums that :func:`defect_from` reads."""
    square = tl.sum(tl.where(m_measured, re * re, 0.0))
    if COMPLEX:
        square += tl.sum(tl.where(m_measured, im * im, 0.0))
    tl.store(p_sums, square)
    tl.store(p_sums + 1, tl.sum(tl.where(diagonal, re, 0.0)))


# Numbers that only a few instructions read: a kernel compiled for 1, and for multiples of 16, would not be faster.
@triton.jit(do_not_specialize=("reals", "limit", "step", "steps", "count", "plain"))
def product_kernel(
    p_a, p_b, p_a2, p_b2, p_x, p_c, p_scale, p_sums, p_status, rows, columns, terms, reals, limit, step, steps, count,
    plain, fine, first, second, x_a, x_b, identity, a_member, a_part, a_row, a_term, b_member, b_part, b_term,
    b_column, x_member, x_part, x_row, x_column, c_member, c_part, c_row, c_column, SIGN_A: tl.constexpr,
    SIGN_B: tl.constexpr, SECOND: tl.constexpr, ADD: tl.constexpr, SYMMETRY: tl.constexpr, SCALED: tl.constexpr,
    MEASURED: tl.constexpr, ITERATED: tl.constexpr, STEP: tl.constexpr, COMPLEX: tl.constexpr,
    PRECISION: tl.constexpr, TILE: tl.constexpr, TERMS: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """c = first · x + second · a b + identity · I, of each member; see :func:`multiply` for the variants."""
    DTYPE: tl.constexpr = p_c.dtype.element_ty
    tiles = tl.cdiv(columns, TILE)
    per_member = tl.cdiv(rows, TILE) * tiles
    member, tile = tl.program_id(0) // per_member, tl.program_id(0) % per_member
    tile_row, tile_column = tile // tiles, tile % tiles
    if SYMMETRY != 0:  # noqa: SIM102 (known to the compiler)
        if tile_row < tile_column:
            return
    if ITERATED:
        p_status += member * (steps + 1) + step
        if tl.load(p_status) == 0:
            return
    if STEP:
        a, b, more = coefficients(p_sums + member.to(tl.int64) * 2 * count, count, plain, fine, SUMS)
        first, second = first * (x_a * a + x_b * b), second * b
        if tile == 0:
            tl.store(p_status + 1, more.to(tl.int32))
    if SCALED:
        first = first * tl.load(p_scale + 2 * member)
        factor = tl.load(p_scale + 2 * member + 1)
        second, terms = second * factor, tl.where(factor == 0, 0, terms)
    has_im = tl.zeros((1, 1), tl.int32) + member >= reals
    member = member.to(tl.int64)
    p_a, p_b, p_c = p_a + member * a_member, p_b + member * b_member, p_c + member * c_member
    p_a2, p_b2, p_x = p_a2 + member * a_member, p_b2 + member * b_member, p_x + member * x_member
    lane = tl.arange(0, TILE)
    o_row, o_column = tile_row * TILE + lane, tile_column * TILE + lane
    m_tile = (o_row < rows)[:, None] & (o_column < columns)[None, :]
    re, im = combine_tile(
        p_a, p_b, p_a2, p_b2, p_x, o_row, o_column, m_tile, rows, columns, terms, first, second,
        a_part, a_row, a_term, b_part, b_term, b_column, x_part, x_row, x_column, has_im,
        SIGN_A, SIGN_B, SECOND, ADD, COMPLEX, PRECISION, TILE, TERMS,
    )  # fmt: skip
    if SYMMETRY != 0:
        m_other = (o_column < rows)[:, None] & (o_row < columns)[None, :]
        t_re, t_im = combine_tile(
            p_a, p_b, p_a2, p_b2, p_x, o_column, o_row, m_other, rows, columns, terms, first, second,
            a_part, a_row, a_term, b_part, b_term, b_column, x_part, x_row, x_column, has_im,
            SIGN_A, SIGN_B, SECOND, ADD, COMPLEX, PRECISION, TILE, TERMS,
        )  # fmt: skip
        t_re, t_im = adjoint_tile(t_re, t_im, COMPLEX)
        re, im = re + SYMMETRY * t_re, im + SYMMETRY * t_im
        t_re, t_im = adjoint_tile(SYMMETRY * re, SYMMETRY * im, COMPLEX)
        if tile_row != tile_column:
            store_tile(p_c, o_column, o_row, m_other, c_part, c_row, c_column, t_re, t_im, COMPLEX)
    diagonal = (o_row[:, None] == o_column[None, :]) & m_tile
    re += tl.where(diagonal, identity, 0.0).to(DTYPE)
    if MEASURED:
        m_measured = m_tile & (o_column < limit)[None, :]
        store_sums(p_sums + (member * count + tile) * 2, re, im, m_measured, diagonal, COMPLEX)
    store_tile(p_c, o_row, o_column, m_tile, c_part, c_row, c_column, re, im, COMPLEX)


class Iteration(NamedTuple):
    """The state of Newton-Schulz iterations on the device: nothing of it is read by the host.

    ``status[b, s]`` is whether member b takes part in step s; ``sums`` has, of each tile of D, the sum of squares and
    of the diagonal entries, from which the norm and trace of D and the coefficients a, b of the step follow.
    """

    status: Tensor
    sums: Tensor
    fine: float

    @classmethod
    def start(cls, members: int, tiles: int, steps: int, fine: float, device: torch.device) -> Iteration:
        """All members take part in step 0."""
        status = torch.zeros(members, steps + 1, dtype=torch.int32, device=device)
        status[:, 0] = 1
        return cls(status, torch.empty(members, tiles, 2, dtype=torch.float32, device=device), fine)


class Cubic(NamedTuple):
    """A step's number, and its coefficients of x and of the product, (x_a a + x_b b) first and b second.

    A ``plain`` step is not scaled: a = 1.5, b = -0.5.
    """

    number: int
    x_a: float = 0.0
    x_b: float = 0.0
    plain: bool = False

    def is_step(self) -> bool:
        """Whether its coefficients are used, and members that have converged are told to stop after it."""
        return self.x_a != 0


def tiles_of(rows: int, columns: int, tile: int = TILE) -> int:
    """Tiles of a matrix."""
    return triton.cdiv(rows, tile) * triton.cdiv(columns, tile)


def lanes_for(count: int) -> int:
    """Lanes that read this many sums: of few sizes, since a kernel is compiled for each."""
    lanes = 64
    while lanes < count:
        lanes *= 4
    return lanes


def _tile(is_complex: bool, symmetry: int, step: bool = False, skipped: bool = False) -> tuple[int, int]:
    """Rows and columns of a tile, and warps of a program: those with which registers spill on no GPU.

    ``skipped``: the product is of double precision, and members may be left out, but nothing is measured.
    """
    if is_complex and (symmetry or skipped):
        return TILE // 2, 8
    return TILE, 4 if symmetry and not (step and symmetry < 0) else 8


def planar(x: Tensor) -> Tensor:
    """(b, m, n) as (b, parts, m, n), a view."""
    return torch.view_as_real(x).permute(0, 3, 1, 2) if x.is_complex() else x[:, None]


def _strides(x: Tensor) -> tuple[int, ...]:
    """Strides of members, parts, rows and columns; 0 for an only part."""
    member, part, row, column = x.stride()
    return member, part if x.shape[1] == 2 else 0, row, column


def precision_of(x: Tensor) -> str:
    """TF32 alone is not admissible: its error would exceed fp32's by a factor of a thousand."""
    return "tf32x3" if x.dtype == torch.float32 and x.is_cuda else "ieee"


def multiply(
    out: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    conjugate: tuple[bool, bool] = (False, False),
    also: tuple[Tensor, Tensor, float] | None = None,
    x: Tensor | None = None,
    first: float = 1.0,
    second: float = 1.0,
    identity: float = 0.0,
    symmetry: int = 0,
    scale: Tensor | None = None,
    sums: Tensor | None = None,
    limit: int | None = None,
    reals: int = 0,
    iteration: Iteration | None = None,
    cubic: Cubic | None = None,
) -> Tensor:
    """out = first · x + second · (a b + factor · a2 b2) + identity · I, planar, in one launch; returns out.

    Args:
        out: (b, parts, m, n), all of it written, no factor of the product.
        a: (b, parts, m, k).
        b: (b, parts, k, n).
        conjugate: whether a, and whether b, is taken conjugated.
        also: a2, b2 with the strides of a and b, and the factor.
        x: (b, parts, m, n), may be out.
        first: factor of x.
        second: factor of the products.
        identity: factor of I.
        symmetry: 1 or -1: of what is described above without I, c, the result is c + cᴴ or c - cᴴ, exactly symmetric.
        scale: (b, 2): further factors of x and of the products, which are not computed where theirs is 0.
        sums: (b, tiles, 2): takes each tile's sum of squares and sum of diagonal entries.
        limit: columns that count in sums; all by default.
        reals: how many members have no imaginary parts, whatever is in memory.
        iteration: members that do not take part in the step are left alone.
        cubic: the step, and what its coefficients are.
    """
    _, parts, rows, columns = out.shape
    a2, b2, factor = (a, b, 0.0) if also is None else also
    step, steps, status = 0, 0, out
    fine, count = 0.0, tiles_of(rows, columns)
    if iteration is not None and cubic is not None:
        step, steps, status, fine = cubic.number, iteration.status.shape[1] - 1, iteration.status, iteration.fine
        if cubic.is_step():
            sums, count = iteration.sums, iteration.sums.shape[1]
    is_step = cubic is not None and cubic.is_step()
    double, measured = out.dtype == torch.float64, sums is not None and not is_step
    skipped = double and cubic is not None and sums is None
    added, (tile, warps) = out if x is None else x, _tile(parts == 2, symmetry, is_step, skipped)
    if double and parts == 1 and gpu.is_generation(out.device, 12):  # with others, registers spill there
        tile, warps = (TILE, 2) if measured else (TILE // 2, 2 if symmetry else 8)
    triton_launch.launch(
        product_kernel, (len(out) * tiles_of(rows, columns, tile),), out.device,
        a, b, a2, b2, added, out, out if scale is None else scale, out if sums is None else sums, status,
        rows, columns, a.shape[3], reals, columns if limit is None else limit, step, steps, count,
        int(cubic is not None and cubic.plain), fine,
        float(first), float(second), float(cubic.x_a if cubic else 1), float(cubic.x_b if cubic else 0),
        float(identity), *_strides(a), *_strides(b), *_strides(added), *_strides(out),
        SIGN_A=-1 if conjugate[0] else 1, SIGN_B=-1 if conjugate[1] else 1, SECOND=factor, ADD=x is not None,
        SYMMETRY=symmetry, SCALED=scale is not None, MEASURED=measured,
        ITERATED=cubic is not None, STEP=is_step,
        COMPLEX=parts == 2, PRECISION=precision_of(out), TILE=tile, TERMS=_TERMS,
        SUMS=lanes_for(count if is_step else 0), num_warps=warps,
    )  # fmt: skip
    return out


_POINTERS = ("p_a", "p_b", "p_a2", "p_b2", "p_x", "p_c", "p_scale", "p_sums", "p_status")
_INTEGERS = ("rows", "columns", "terms", "reals", "limit", "step", "steps", "count", "plain")
_FLOATS = ("fine", "first", "second", "x_a", "x_b", "identity")
_AXES = {"a": ("row", "term"), "b": ("term", "column"), "x": ("row", "column"), "c": ("row", "column")}
_STRIDES = tuple(f"{matrix}_{name}" for matrix, names in _AXES.items() for name in ("member", "part", *names))


def compilation(dtype: str, is_complex: bool, **variant: Any) -> triton_launch.Compilation:
    """One variant of the product; arguments named in it are constants, and flags that are not named are off."""
    flags = {"SIGN_A": 1, "SIGN_B": 1, "SECOND": 0.0, "ADD": False, "SYMMETRY": 0, "SCALED": False}
    flags |= {"MEASURED": False, "ITERATED": False, "STEP": False, "SUMS": 64}
    flags |= {"COMPLEX": is_complex, "PRECISION": "tf32x3" if dtype == "fp32" else "ieee", "TERMS": _TERMS}
    signature = dict.fromkeys(_POINTERS, f"*{dtype}") | dict.fromkeys(_INTEGERS + _STRIDES, "i32")
    signature |= dict.fromkeys(_FLOATS, "fp32")
    if variant.get("ITERATED"):
        signature["p_status"] = "*i32"
    measured = variant.get("STEP", False) or variant.get("MEASURED", False)
    skipped = dtype == "fp64" and variant.get("ITERATED", False) and not measured
    flags["TILE"], warps = _tile(is_complex, variant.get("SYMMETRY", 0), variant.get("STEP", False), skipped)
    return triton_launch.Compilation(product_kernel, signature, flags | variant, warps)
