"""polar in Triton: one program iterates one matrix of at most 32 x 32 on chip; larger ones by batched products.

The iteration, its scaling and what is done about matrices that do not converge: README.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlip.kernels.common import triton_launch
from fastlip.kernels.common.product_triton import compilation, cubic_of
from fastlip.kernels.polar import by_products_triton, newton_schulz
from fastlip.kernels.polar.newton_schulz import ADJOINT_STEPS, FINE, STEPS, TINY
from fastlip.kernels.polar.on_chip import (
    adjoint_multiply,
    bound_of,
    defect_of,
    derive,
    gram_of,
    identity_of,
    load_planar,
    multiply,
    offsets_of,
    skew_part,
    store_planar,
    unit_of,
)

_DTYPES = (torch.float32, torch.complex64)
# The largest matrices that stay in registers without spilling, by whether they are complex.
_LARGEST_FORWARD = {False: 32, True: 16}
_LARGEST_BACKWARD = {False: 16, True: 0}
_WARPS = {16: 1, 32: 4}


@triton.jit
def _forward_kernel(
    p_v, p_q, p_residual, rows, columns, row_stride, column_stride, reals,
    COMPLEX: tl.constexpr, PRECISION: tl.constexpr, STEPS: tl.constexpr, FINE: tl.constexpr, TINY: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Q of a tall or square matrix, and the Frobenius norm of QᴴQ - I."""
    matrix = tl.program_id(0)
    start = matrix.to(tl.int64) * rows * columns * (2 if COMPLEX else 1)
    o_x, m_x = offsets_of(rows, columns, row_stride, column_stride, 0, ROWS, COLUMNS)
    identity = identity_of(columns, COLUMNS)
    x_re, x_im = load_planar(p_v + start, o_x, m_x, matrix >= reals, COMPLEX)
    unit = unit_of(x_re, x_im, TINY)
    x_re, x_im = x_re * unit, x_im * unit
    gram_re, gram_im = gram_of(x_re, x_im, COMPLEX, PRECISION)
    square = bound_of(gram_re, gram_im)
    unit = tl.where(square == 0, 0.0, 1 / tl.sqrt(tl.where(square == 0, 1.0, square)))
    x_re, x_im = x_re * unit, x_im * unit
    gram_re, gram_im = gram_re * unit * unit, gram_im * unit * unit
    norm, trace = defect_of(gram_re, gram_im, identity)

    step = 0
    while step < STEPS:
        more = norm > FINE
        a, b = cubic_of(norm, trace, more)
        x_re, x_im = multiply(x_re, x_im, a * identity + b * gram_re, b * gram_im, COMPLEX, PRECISION)
        gram_re, gram_im = gram_of(x_re, x_im, COMPLEX, PRECISION)
        norm, trace = defect_of(gram_re, gram_im, identity)
        step = tl.where(more, step + 1, STEPS)
    tl.store(p_residual + matrix, norm)
    o_x, m_x = offsets_of(rows, columns, row_stride, column_stride, step - STEPS, ROWS, COLUMNS)
    store_planar(p_q + start, o_x, m_x, x_re + 0 * norm, x_im + 0 * norm, COMPLEX)  # NaN wherever one is


@triton.jit
def _backward_kernel(
    p_g, p_v, p_q, p_out, rows, columns, row_stride, column_stride, reals,
    SQUARE: tl.constexpr, COMPLEX: tl.constexpr, PRECISION: tl.constexpr, STEPS: tl.constexpr, FINE: tl.constexpr,
    TINY: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of V: Q K + N, with H K + K H = QᴴG - GᴴQ and N = (I - QQᴴ) G H⁻¹, H = QᴴV, tall or square."""
    matrix = tl.program_id(0)
    start = matrix.to(tl.int64) * rows * columns * (2 if COMPLEX else 1)
    o_x, m_x = offsets_of(rows, columns, row_stride, column_stride, 0, ROWS, COLUMNS)
    identity = identity_of(columns, COLUMNS)
    x_re, x_im = load_planar(p_v + start, o_x, m_x, matrix >= reals, COMPLEX)
    unit = unit_of(x_re, x_im, TINY)
    q_re, q_im = load_planar(p_q + start, o_x, m_x, matrix >= reals, COMPLEX)
    h_re, h_im = adjoint_multiply(q_re, q_im, x_re * unit, x_im * unit, COMPLEX, PRECISION)
    skew_re, skew_im = skew_part(h_re, h_im, COMPLEX)
    h_re, h_im = h_re - skew_re, h_im - skew_im
    n_re, n_im = load_planar(p_g + start, o_x, m_x, matrix >= reals, COMPLEX)
    g_re, g_im = adjoint_multiply(q_re, q_im, n_re, n_im, COMPLEX, PRECISION)
    k_re, k_im = skew_part(g_re, g_im, COMPLEX)
    if not SQUARE:
        re, im = multiply(q_re, q_im, g_re, g_im, COMPLEX, PRECISION)
        n_re, n_im = n_re - re, n_im - im

    gram_re, gram_im = gram_of(h_re, h_im, COMPLEX, PRECISION)
    square = bound_of(gram_re, gram_im)
    scale = tl.where(square == 0, 0.0, 1 / tl.sqrt(tl.where(square == 0, 1.0, square)))
    unit *= scale
    h_re, h_im = h_re * scale, h_im * scale
    gram_re, gram_im = gram_re * scale * scale, gram_im * scale * scale
    norm, trace = defect_of(gram_re, gram_im, identity)

    step, more = 0, norm > FINE
    while step < STEPS:
        more = norm > FINE
        a, b = cubic_of(norm, trace, more)
        k_re, k_im = derive(h_re, h_im, gram_re, gram_im, k_re, k_im, a, b, COMPLEX, PRECISION)
        factor_re, factor_im = a * identity + b * gram_re, b * gram_im
        if not SQUARE:
            n_re, n_im = multiply(n_re, n_im, factor_re, factor_im, COMPLEX, PRECISION)
        h_re, h_im = multiply(h_re, h_im, factor_re, factor_im, COMPLEX, PRECISION)
        skew_re, skew_im = skew_part(h_re, h_im, COMPLEX)
        h_re, h_im = h_re - skew_re, h_im - skew_im
        gram_re, gram_im = gram_of(h_re, h_im, COMPLEX, PRECISION)
        norm, trace = defect_of(gram_re, gram_im, identity)
        step = tl.where(more, step + 1, STEPS)

    o_x, m_x = offsets_of(rows, columns, row_stride, column_stride, step - STEPS, ROWS, COLUMNS)
    q_re, q_im = load_planar(p_q + start, o_x, m_x, matrix >= reals, COMPLEX)
    re, im = multiply(q_re, q_im, k_re, k_im, COMPLEX, PRECISION)
    if not SQUARE:
        re, im = re + n_re, im + n_im
    g_re, g_im = load_planar(p_g + start, o_x, m_x, matrix >= reals, COMPLEX)
    unit = tl.where(unit == 0, 1.0, unit)
    re, im = tl.where(more, g_re, re) * unit, tl.where(more, g_im, im) * unit
    store_planar(p_out + start, o_x, m_x, re, im, COMPLEX)


def supports(V: Tensor, reals: int) -> str:
    """Empty, or why these kernels cannot run."""
    if V.dtype not in _DTYPES:
        return f"no kernel for dtype {V.dtype}"
    return triton_launch.why_not(V, _forward_kernel)


def polar_forward(V: Tensor, reals: int) -> tuple[Tensor, Tensor]:
    """Q, and on the device, which matrices were perturbed."""
    return newton_schulz.forward(completed, V, reals)


def polar_backward(gradient: Tensor, V: Tensor, Q: Tensor, perturbed: Tensor, reals: int) -> Tensor:
    """The gradient of V."""
    return newton_schulz.backward(adjoint, gradient, V, Q, perturbed, reals)


def completed(V: Tensor, reals: int) -> tuple[Tensor, Tensor]:
    """Q of contiguous matrices (b, m, n), orthonormal for every finite V, and which were perturbed."""
    if len(V) == 0:
        return torch.empty_like(V), torch.empty(0, dtype=torch.bool, device=V.device)
    if not _fits(V, _LARGEST_FORWARD):
        Q, _, perturbed = by_products_triton.factor(V, reals)
        return Q, perturbed
    return newton_schulz.completed_factor(iterate, V, reals)


def iterate(V: Tensor, reals: int) -> tuple[Tensor, Tensor]:
    """Q of contiguous matrices (b, m, n), and for each the norm of QᴴQ - I; nothing waits for the device."""
    if len(V) == 0:
        return torch.empty_like(V), V.real.new_empty(0)
    if not _fits(V, _LARGEST_FORWARD):
        return by_products_triton.factor(V, reals)[:2]
    Q, residual = torch.empty_like(V), torch.empty(len(V), dtype=torch.float32, device=V.device)
    _launch(_forward_kernel, V, reals, (V, Q), (residual,), STEPS=STEPS)
    return Q, residual


def adjoint(G: Tensor, V: Tensor, Q: Tensor, reals: int) -> Tensor:
    """The gradient of contiguous matrices (b, m, n); nothing waits for the device."""
    if len(V) == 0:
        return torch.empty_like(V)
    if not _fits(V, _LARGEST_BACKWARD):
        return by_products_triton.adjoint(G, V, Q, reals)
    result = torch.empty_like(V)
    square = V.shape[1] == V.shape[2]
    _launch(_backward_kernel, V, reals, (G, V, Q, result), STEPS=ADJOINT_STEPS, SQUARE=square)
    return result


def _fits(V: Tensor, largest: dict[bool, int]) -> bool:
    """Whether a matrix is one program's work."""
    return max(V.shape[-2:]) <= largest[V.is_complex()]


def _launch(
    kernel: Any,
    V: Tensor,
    reals: int,
    matrices: tuple[Tensor, ...],
    others: tuple[Tensor, ...] = (),
    **constants: Any,
) -> None:
    """One program per matrix; wide ones are read and written as their transposes, whose factor is Q's."""
    if len(V) == 0:
        return
    parts, (rows, columns) = 1 + V.is_complex(), V.shape[1:]
    strides = (columns * parts, parts)
    if rows < columns:
        rows, columns, strides = columns, rows, strides[::-1]
    tiles = {name: max(16, triton.next_power_of_2(size)) for name, size in (("ROWS", rows), ("COLUMNS", columns))}
    numbers = [torch.view_as_real(X) if X.is_complex() else X for X in matrices]
    triton_launch.launch(
        kernel, (len(V),), V.device, *numbers, *others, rows, columns, *strides, reals, COMPLEX=V.is_complex(),
        PRECISION="tf32x3" if V.is_cuda else "ieee", FINE=FINE, TINY=TINY,
        num_warps=_warps(tiles["ROWS"], V.is_complex()), **tiles, **constants,
    )  # fmt: skip


def _warps(rows: int, is_complex: bool) -> int:
    """Warps of a program; a complex 16 x 16 matrix in one warp spills under Triton 3.6."""
    return 2 if rows == 16 and is_complex else _WARPS[rows]


def _compilations(is_complex: bool) -> Iterator[triton_launch.Compilation]:
    """Both kernels, at each size of their tiles; the interpreter's sizes are compiled first."""
    constants = {"COMPLEX": is_complex, "PRECISION": "tf32x3", "FINE": FINE, "TINY": TINY}
    sizes = [(name, "i32") for name in ("rows", "columns", "row_stride", "column_stride", "reals")]
    forward = dict([(name, "*fp32") for name in ("p_v", "p_q", "p_residual")] + sizes)
    backward = dict([(name, "*fp32") for name in ("p_g", "p_v", "p_q", "p_out")] + sizes)
    for rows, columns in ((rows, columns) for rows in _WARPS for columns in _WARPS if columns <= rows):
        tiles = constants | {"ROWS": rows, "COLUMNS": columns}
        if rows <= _LARGEST_FORWARD[is_complex]:
            yield triton_launch.Compilation(
                _forward_kernel, forward, tiles | {"STEPS": STEPS}, _warps(rows, is_complex)
            )
        if rows <= _LARGEST_BACKWARD[is_complex]:
            for square in (False, True)[: 1 + (rows == columns)]:
                more = {"STEPS": ADJOINT_STEPS, "SQUARE": square}
                yield triton_launch.Compilation(_backward_kernel, backward, tiles | more, _warps(rows, is_complex))


def _products(is_complex: bool) -> Iterator[triton_launch.Compilation]:
    """Compilations of the products: the measured ones, and those of a step, of the factor and of the adjoint."""

    def entry(**variant: Any) -> triton_launch.Compilation:
        return compilation("fp32", is_complex, **variant)

    step = {"ADD": True, "ITERATED": True, "STEP": True, "SUMS": 16}
    yield entry(SIGN_A=-1, ITERATED=True, MEASURED=True)
    yield entry(**step)
    yield entry(**step, SYMMETRY=1)
    yield entry(**step, SYMMETRY=-1, SECOND=-0.5)
    yield entry(SIGN_A=-1, SYMMETRY=1, SCALED=True)


AOT = [entry for is_complex in (False, True) for entry in (*_compilations(is_complex), *_products(is_complex))]
