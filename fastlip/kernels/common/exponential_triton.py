"""Exponentials of skew-Hermitian matrices and their adjoint, by batched products in Triton.

Nothing waits for the device (skew_exp/README.md derives the series). How often a matrix is halved, and its
exponential squared again, is decided on the device: every step is launched, and members that do not need it take no
part in it.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportAssignmentType=false, reportCallIssue=false
# Triton's own compiler reads the kernels: to pyright its constants are numbers.

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlip.kernels.cayley.on_chip import decide_kernel
from fastlip.kernels.common import triton_launch
from fastlip.kernels.common.product_triton import (
    TILE,
    Cubic,
    Iteration,
    compilation,
    lanes_for,
    multiply,
    planar,
    product_kernel,
    tiles_of,
)
from fastlip.kernels.common.tiles_triton import load_tile, store_tile

LARGEST = 1024  # rows of a matrix: a program reads as many sums as it has tiles
HALVINGS = 14  # for norms up to 8192, where float32 knows a phase to 1e-3: NaN beyond. An even number
_ORTHOGONAL = 8  # eps: the Frobenius norm of I - EᴴE up to which E is taken as it is
_WARPS = 8
# Degree of the Taylor polynomial, and terms of the series of commutators, at a norm of 1/2.
_DEGREE = {torch.float32: 8, torch.float64: 14}
_COMMUTATORS = {torch.float32: 9, torch.float64: 17}


@triton.jit
def start_kernel(
    p_a, p_s, p_u, p_sums, p_table, p_status, size, members, count,
    DEGREE: tl.constexpr, ROWS: tl.constexpr, TABLE: tl.constexpr, HALVINGS: tl.constexpr, STEPS: tl.constexpr,
    COMPLEX: tl.constexpr, TILE: tl.constexpr, SUMS: tl.constexpr,
):  # fmt: skip
    """Halves A, of which S = A² and its norm are known, to a norm of at most 1/2; the first step of Horner's scheme.

    With s the power of two, U = I + s A / (d - 1) + s² S / (d (d - 1)), d the degree; a row of the table for each
    further step, with (s / (i + 1), s² / (i + 1) / (i + 2)), i = d - 4, d - 6 ... 0; after them, for the commutators,
    (1, s / i), i = TABLE - ROWS + 1 ... 2. The status says who is squared in which step.
    """
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    DTYPE: tl.constexpr = p_a.dtype.element_ty
    tiles = tl.cdiv(size, TILE)
    member, tile = tl.program_id(0) // (tiles * tiles), tl.program_id(0) % (tiles * tiles)
    member = member.to(tl.int64)
    o_sum = tl.arange(0, SUMS)
    sums = tl.load(p_sums + member * 2 * count + 2 * o_sum, mask=o_sum < count, other=0)
    norm = tl.sqrt(tl.sqrt(tl.sum(sums)))
    o_step = tl.arange(0, STEPS)
    more = (2 * norm > (1 << o_step).to(DTYPE)) & (o_step < HALVINGS)
    halvings = tl.sum(more.to(tl.int32))
    factor = ((127 - halvings) << 23).to(tl.float32, bitcast=True).to(DTYPE)
    factor = tl.where(norm <= (1 << (HALVINGS - 1)), factor, float("nan"))

    lane = tl.arange(0, TILE)
    o_row, o_column = tile // tiles * TILE + lane, tile % tiles * TILE + lane
    m_tile = (o_row < size)[:, None] & (o_column < size)[None, :]
    start, part = member * PARTS * size * size, size * size
    a_re, a_im = load_tile(p_a + start, o_row, o_column, m_tile, part, size, 1, m_tile, 1, COMPLEX)
    s_re, s_im = load_tile(p_s + start, o_row, o_column, m_tile, part, size, 1, m_tile, 1, COMPLEX)
    first, second = factor / (DEGREE - 1), factor * factor / (DEGREE * (DEGREE - 1))
    one = (o_row[:, None] == o_column[None, :]).to(DTYPE)
    re, im = one + first * a_re + second * s_re, first * a_im + second * s_im
    store_tile(p_u + start, o_row, o_column, m_tile, part, size, 1, re, im, COMPLEX)
    if tile == 0:
        tl.store(p_status + member * (HALVINGS + 1) + o_step, more.to(tl.int32), mask=o_step <= HALVINGS)
        o_table = tl.arange(0, STEPS)
        i = tl.maximum(DEGREE - 4 - 2 * o_table, 0).to(DTYPE)
        series, k = o_table < ROWS, tl.maximum(TABLE + 1 - o_table, 1).to(DTYPE)
        p_row = p_table + (o_table * members + member) * 2
        of_products = tl.where(series, factor * factor / ((i + 1) * (i + 2)), factor / k)
        tl.store(p_row, tl.where(series, factor / (i + 1), 1.0), mask=o_table < TABLE)
        tl.store(p_row + 1, of_products, mask=o_table < TABLE)


class _Halved(NamedTuple):
    """Start for planar skew-Hermitian matrices A: A, two tensors of its size, and exp(s A), s the power of two.

    ``steps`` are the factors of the commutators, ``iteration`` has who is squared in which step.
    """

    A: Tensor
    workspace: Tensor
    other: Tensor
    E: Tensor
    steps: Tensor
    iteration: Iteration


def exponential(K: Tensor, reals: int = 0) -> Tensor:
    """exp((K - Kᴴ) / 2) of contiguous matrices (b, n, n), the first of them real; unitary to rounding."""
    result = torch.empty_like(K)
    if K.numel() == 0:
        return result
    _, defect, new, E, _, iteration = _halved(planar(K), reals, adjoint=False)
    new.copy_(E)
    for step in reversed(range(HALVINGS)):
        multiply(new, E, E, iteration=iteration, cubic=Cubic(step))
        E, new = new, E
    _correct(E, defect, iteration.sums, planar(result))
    return result


def adjoint(gradient: Tensor, K: Tensor, reals: int = 0) -> Tensor:
    """The gradient of K from that of exp((K - Kᴴ) / 2), of contiguous matrices (b, n, n)."""
    result = torch.empty_like(K)
    if K.numel() == 0:
        return result
    A, X, Y, E, steps, iteration = _halved(planar(K), reals, adjoint=True)
    N, E = _doubled(planar(gradient), E, iteration, reals)
    multiply(X, N, E.mT, conjugate=(False, True), second=0.5, symmetry=-1, reals=reals)
    source = X
    for k, scale in enumerate(steps, 1):
        target = planar(result) if k == len(steps) else E if source is Y else Y
        multiply(target, A, source, x=X, first=0.5, second=-1, symmetry=-1, scale=scale)
        source = target
    return result


def _halved(K: Tensor, reals: int, adjoint: bool) -> _Halved:
    members, _, size, _ = K.shape
    A, S, U, other = (K.new_empty(K.shape) for _ in range(4))
    none = K[..., :0]
    multiply(A, none, none.mT, x=K, first=0.5, symmetry=-1, reals=reals)
    count = tiles_of(size, size)
    iteration = Iteration(
        torch.empty(members, HALVINGS + 1, dtype=torch.int32, device=K.device), K.new_empty(members, count, 2), 0.0
    )
    multiply(S, A, A, sums=iteration.sums)
    degree, rows = _DEGREE[K.dtype], _DEGREE[K.dtype] // 2 - 1
    table = K.new_empty(rows + (_COMMUTATORS[K.dtype] if adjoint else 0), members, 2)
    triton_launch.launch(
        start_kernel, (members * count,), K.device, A, S, U, iteration.sums, table, iteration.status, size, members,
        count, num_warps=_WARPS, **_constants(K.shape[1] == 2, degree, rows, len(table), count),
    )  # fmt: skip
    for scale in table[:rows]:
        multiply(other, S, U, x=A, identity=1, scale=scale)
        U, other = other, U
    return _Halved(A, S, other, U, table[rows:], iteration)


def _doubled(G: Tensor, E: Tensor, iteration: Iteration, reals: int) -> tuple[Tensor, Tensor]:
    """Applies N ↦ (N + EᴴN E) / 2, E ↦ E² to (G, E) as often as each member was halved.

    A step is two launches: [N; E] E, the two next to each other, and the sum. In every other step the order is
    [E; N], so that of each buffer of three parts one is free for the sum.
    """
    members, parts, size, _ = G.shape
    one, other = (G.new_empty(members, parts, 3 * size, size) for _ in range(2))
    for buffer, (n, e) in ((one, (0, 1)), (other, (2, 1))):
        _part(buffer, n).copy_(G)
        _part(buffer, e).copy_(E)
    for step in reversed(range(HALVINGS)):
        n, product = (0, 0) if step % 2 else (2, 2)
        both = slice(0, 2 * size) if step % 2 else slice(size, 3 * size)
        old, E = _part(one, n), _part(one, 1)
        now: dict[str, Any] = {"iteration": iteration, "cubic": Cubic(step), "reals": reals}
        multiply(other[:, :, both], one[:, :, both], E, **now)
        averaged = {"conjugate": (True, False), "x": old, "first": 0.5, "second": 0.5}
        multiply(_part(other, 2 - n), E.mT, _part(other, product), **averaged, **now)
        one, other = other, one
    return _part(one, 0), _part(one, 1)


def _part(buffer: Tensor, index: int) -> Tensor:
    size = buffer.shape[3]
    return buffer[:, :, index * size : (index + 1) * size]


def _correct(E: Tensor, defect: Tensor, sums: Tensor, out: Tensor) -> None:
    """One Newton-Schulz step where E is not unitary to rounding, of norm at most 1 however wrong E is."""
    members, count, eps = len(E), sums.shape[1], torch.finfo(E.dtype).eps
    scale = E.new_empty(members, 2)
    multiply(defect, E.mT, E, conjugate=(True, False), second=-1, identity=1, sums=sums)
    triton_launch.launch(
        decide_kernel, (members,), E.device, sums, scale, sums, count, _ORTHOGONAL * eps, 0.0,
        POLISH=True, FLAGGED=False, SUMS=lanes_for(count), num_warps=1,
    )  # fmt: skip
    multiply(out, E, defect, x=E, scale=scale)


def _constants(is_complex: bool, degree: int, rows: int, table: int, count: int) -> dict[str, Any]:
    steps = triton.next_power_of_2(max(HALVINGS + 1, table))
    sizes = {"DEGREE": degree, "ROWS": rows, "TABLE": table, "HALVINGS": HALVINGS, "STEPS": steps}
    return {**sizes, "COMPLEX": is_complex, "TILE": TILE, "SUMS": lanes_for(count)}


def supports(K: Tensor, size: int) -> str:
    """Empty, or why matrices of this size in K's dtype cannot be exponentiated here."""
    if K.dtype not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        return f"no kernel for dtype {K.dtype}"
    if size > LARGEST:
        return f"matrices of {size} rows: at most {LARGEST}"
    return triton_launch.why_not(K, product_kernel)


def compilations(dtype: str, is_complex: bool) -> Iterator[triton_launch.Compilation]:
    """Every kernel that is launched here."""
    kind = torch.float32 if dtype == "fp32" else torch.float64
    number, rows = f"*{dtype}", _DEGREE[kind] // 2 - 1
    pointers = dict.fromkeys(("p_a", "p_s", "p_u", "p_sums", "p_table"), number) | {"p_status": "*i32"}
    pointers |= dict.fromkeys(("size", "members", "count"), "i32")
    for table in (rows, rows + _COMMUTATORS[kind]):
        constants = _constants(is_complex, _DEGREE[kind], rows, table, 64)
        yield triton_launch.Compilation(start_kernel, pointers, constants, _WARPS)
    sums = dict.fromkeys(("p_sums", "p_scale", "p_flags"), number) | {
        "count": "i32",
        "limit": "fp32",
        "failed": "fp32",
    }
    yield triton_launch.Compilation(decide_kernel, sums, {"POLISH": True, "FLAGGED": False, "SUMS": 64}, 1)
    yield compilation(dtype, is_complex, ADD=True, SYMMETRY=-1)
    yield compilation(dtype, is_complex, MEASURED=True)
    yield compilation(dtype, is_complex, ADD=True, SCALED=True)
    yield compilation(dtype, is_complex, ITERATED=True)
    yield compilation(dtype, is_complex, SIGN_A=-1, MEASURED=True)
    yield compilation(dtype, is_complex, SIGN_A=-1, ADD=True, ITERATED=True)
    yield compilation(dtype, is_complex, SIGN_B=-1, SYMMETRY=-1)
    yield compilation(dtype, is_complex, ADD=True, SCALED=True, SYMMETRY=-1)


AOT = [
    entry for dtype in ("fp32", "fp64") for is_complex in (False, True) for entry in compilations(dtype, is_complex)
]
