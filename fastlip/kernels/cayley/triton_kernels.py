"""cayley in Triton: blocked Gauss-Jordan elimination, measured and corrected on the device.

Matrices of at most 16 columns are one program's work. Larger ones take a launch for each 32 columns. Which
kernels are launched depends on sizes only: nothing waits for the device (README.md).
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportAssignmentType=false, reportCallIssue=false
# Triton's own compiler reads the kernels: to pyright its constants are numbers.

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlip.kernels.cayley.api import new_inverse
from fastlip.kernels.cayley.on_chip import decide_kernel, finish_kernel, form_kernel, step_kernel, whole_kernel
from fastlip.kernels.common import triton_launch
from fastlip.kernels.common.product_triton import TILE, compilation, lanes_for, multiply, planar, precision_of

_REAL = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}
_LARGEST = 1024
_WHOLE = 16  # columns of the largest matrix that is one program's work: with 32, registers spill
_WARPS = 8  # of the kernels by blocks; with fewer, registers spill
_TERMS = 16  # of one step of sums; with more, registers spill
# Frobenius norms of I - (I + A) B: in eps, up to which B is taken as it is, and from which elimination is repeated in
# float64; of I - QᴴQ, in eps, up to which Q is taken as it is.
_ACCURATE, _FAILED, _ORTHOGONAL = 32, 1e-4, 8


def supports(M: Tensor) -> str:
    """Empty, or why these kernels cannot run."""
    if M.dtype not in _REAL:
        return f"no kernel for dtype {M.dtype}"
    rows, columns = M.shape[-2:]
    if min(rows, columns) > _LARGEST:
        return f"matrices of {rows} x {columns}: at most {_LARGEST} rows or columns, the fewer"
    return triton_launch.why_not(M, whole_kernel)


def cayley_forward(M: Tensor) -> tuple[Tensor, Tensor]:
    """Q, and B for tall and wide M (empty for square M). A wide M is transformed by its adjoint."""
    if M.shape[-2] < M.shape[-1]:
        Q, B = cayley_forward(M.mH)
        return Q.mH.resolve_conj().contiguous(), B
    M = _plain(M)
    Q, B = torch.empty_like(M), new_inverse(M)
    if M.numel() > 0:
        flat = [X.view(-1, *X.shape[-2:]) if X.numel() > 0 else X for X in (M, Q, B)]
        whole = M.shape[-1] <= _WHOLE and M.dtype != torch.complex128  # complex double ones spill with any warps
        (_whole if whole else _by_blocks)(*flat)
    return Q, B


def cayley_backward(gradient: Tensor, Q: Tensor | None, M: Tensor | None, B: Tensor | None) -> Tensor:
    """The gradient for M: from Q if M is square, else from M and B."""
    if M is not None and M.shape[-2] < M.shape[-1]:
        return cayley_backward(gradient.mH, None, M.mH, B).mH.resolve_conj().contiguous()
    gradient = _plain(gradient)
    result = torch.empty_like(gradient)
    if gradient.numel() == 0:
        return result
    G, out = (planar(X.view(-1, *X.shape[-2:])) for X in (gradient, result))
    if Q is not None:  # with Y = G Qᴴ + G: QᴴY + Y, and minus half of its skew part
        saved = planar(_plain(Q).view(-1, *Q.shape[-2:]))
        Y = multiply(_like(G), G, saved.mT, conjugate=(False, True), x=G)
        multiply(out, saved.mT, Y, conjugate=(True, False), x=Y, first=-0.5, second=-0.5, symmetry=-1)
    elif M is not None and B is not None:
        _tall_gradient(G, *(planar(_plain(X).view(-1, *X.shape[-2:])) for X in (M, B)), out)
    return result


def _whole_warps(double: bool, flagged: bool) -> int:
    """Warps of a program that transforms a whole matrix: with others some GPU spills registers."""
    return 2 if double and not flagged else 8


def _whole(M: Tensor, Q: Tensor, B: Tensor) -> None:
    rows, columns = M.shape[1:]
    flags = torch.empty(len(M), dtype=torch.int32, device=M.device)
    tensors = *map(_numbers, (M, Q, B if B.numel() else Q)), flags
    for flagged in (False, True)[: 1 + (_REAL[M.dtype] == torch.float32)]:
        double = flagged or _REAL[M.dtype] == torch.float64
        eps = _eps(M) if not flagged else torch.finfo(torch.float64).eps
        triton_launch.launch(
            whole_kernel, (len(M),), M.device,
            *tensors, rows, columns, _ACCURATE * eps, _FAILED, _ORTHOGONAL * eps,
            DTYPE=tl.float64 if double else tl.float32, FLAGGED=flagged, KEEP=B.numel() > 0, COMPLEX=M.is_complex(),
            TILE=_WHOLE, TERMS=_TERMS, num_warps=_whole_warps(double, flagged),
        )  # fmt: skip


def _by_blocks(M: Tensor, Q: Tensor, B: Tensor) -> None:
    """As whole_kernel does, a launch for each step of it (README.md counts them)."""
    members, rows, columns = M.shape
    real, eps, tiles = _REAL[M.dtype], _eps(M), triton.cdiv(columns, TILE)
    wide, keep, constants = real == torch.float32, B.numel() > 0, {"COMPLEX": M.is_complex(), "TILE": TILE}
    flags = torch.empty(members, dtype=torch.int32, device=M.device)
    sums = torch.empty(members, tiles * tiles, 2, dtype=real, device=M.device)
    scale = torch.empty(members, 2, dtype=real, device=M.device)

    def decide(limit: float, polish: bool) -> None:
        triton_launch.launch(
            decide_kernel, (members,), M.device, sums, scale, flags, tiles * tiles, limit * eps, _FAILED,
            POLISH=polish, FLAGGED=not polish and wide, SUMS=lanes_for(tiles * tiles), num_warps=1,
        )  # fmt: skip

    original, one, other = (_workspace(M, tiles, real) for _ in range(3))
    found = _eliminate(M, original, one, other, None)
    residual = multiply(other if found is one else one, original, found, second=-1, identity=1, sums=sums)
    decide(_ACCURATE, False)
    corrected = multiply(original, found, residual, x=found, scale=scale)
    again = corrected
    if wide:
        first, second = (_workspace(M, tiles, torch.float64) for _ in range(2))
        again = _eliminate(M, first, second, first, flags)
    raw = torch.empty_like(Q)
    numbers = _numbers(raw), _numbers(B if keep else raw)
    triton_launch.launch(
        finish_kernel, (members * tiles * tiles,), M.device, corrected, again, flags, *numbers, rows, columns, tiles,
        KEEP=keep, FLAGGED=wide, **constants,
    )  # fmt: skip
    q = planar(raw)
    if keep:
        multiply(q[:, :, columns:], planar(M)[:, :, columns:], planar(B), second=-2)
    defect = residual[:, :, :columns, :columns]
    multiply(defect, q.mT, q, conjugate=(True, False), second=-1, identity=1, sums=sums)
    decide(_ORTHOGONAL, True)
    multiply(planar(Q), q, defect, x=q, scale=scale)


def _eliminate(M: Tensor, first: Tensor, second: Tensor, third: Tensor, flags: Tensor | None) -> Tensor:
    """The inverse of I + A, in the second or third tensor; I + A itself is formed in the first.

    With flags only that of the members whose flag is set.
    """
    members, parts, size, _ = first.shape
    tile = _elimination_tile(first.dtype == torch.float64, parts == 2)
    tiles, (rows, columns) = size // tile, M.shape[1:]
    inverses = first.new_empty(members, tiles, parts, tile, tile)
    flagged = inverses if flags is None else flags
    constants = {"FLAGGED": flags is not None, "COMPLEX": parts == 2, "TILE": tile}
    warps = _step_warps(first.dtype == torch.float64, parts == 2)
    grid = (members * tiles * tiles,)
    arguments = _numbers(M), first, inverses, flagged, rows, columns, tiles
    more = {"PRECISION": precision_of(first), "TERMS": _TERMS}
    triton_launch.launch(form_kernel, grid, M.device, *arguments, num_warps=_WARPS, **constants, **more)
    source = first
    for step in range(tiles):
        target = third if step % 2 else second
        arguments = source, target, inverses, flagged, columns, tiles, step
        triton_launch.launch(step_kernel, grid, M.device, *arguments, num_warps=warps, **constants)
        source = target
    return source


def _elimination_tile(double: bool, is_complex: bool) -> int:
    """Columns eliminated by a launch; with more, registers spill."""
    return TILE // 2 if double else TILE


def _step_warps(double: bool, is_complex: bool) -> int:
    """Warps of a step's programs: with others some GPU spills registers."""
    return 4 if is_complex and not double else _WARPS


def _tall_gradient(G: Tensor, M: Tensor, B: Tensor, out: Tensor) -> None:
    """The adjoint of README.md; G, M and out are tall."""
    columns = G.shape[3]
    upper, lower = G[:, :, :columns], G[:, :, columns:]
    V = M[:, :, columns:]
    first = multiply(_like(B), V.mT, lower, conjugate=(True, False), x=upper, second=-1)
    second = multiply(_like(B), B.mT, first, conjugate=(True, False))
    multiply(out[:, :, :columns], second, B.mT, conjugate=(False, True), second=-2, symmetry=-1)
    hermitian = multiply(_like(B), second, B.mT, conjugate=(False, True), second=-2, symmetry=1)
    # S = Sᴴ is read as the adjoint, as B is.
    also = V, hermitian.mT, -0.5
    multiply(out[:, :, columns:], lower, B.mT, conjugate=(False, True), also=also, second=-2)


def _like(X: Tensor) -> Tensor:
    """Room for a tensor (b, parts, n, n) as X is, or as the first rows of X are, its numbers in X's order."""
    members, parts, _, columns = X.shape
    room = X.new_empty(members, columns, columns, parts)
    return room.permute(0, 3, 1, 2)


def _workspace(M: Tensor, tiles: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(len(M), 1 + M.is_complex(), tiles * TILE, tiles * TILE, dtype=dtype, device=M.device)


def _numbers(X: Tensor) -> Tensor:
    return torch.view_as_real(X) if X.is_complex() else X


def _eps(M: Tensor) -> float:
    return torch.finfo(M.dtype).eps


def _plain(tensor: Tensor) -> Tensor:
    """Contiguous numbers as they are in memory, no conjugation or sign left to be done by who reads them."""
    return tensor.contiguous().resolve_conj().resolve_neg()


def _compilations(dtype: str, is_complex: bool) -> Iterator[triton_launch.Compilation]:
    """Every kernel; that which works on chip first."""
    number, single = f"*{dtype}", dtype == "fp32"
    sizes = {"rows": "i32", "columns": "i32", "tiles": "i32"}
    constants = {"COMPLEX": is_complex, "TILE": TILE}

    def entry(kernel: Any, pointers: dict[str, str], others: dict[str, str], warps: int = 4, **flags: Any) -> Any:
        return triton_launch.Compilation(
            kernel,
            pointers | others,
            {key: value for key, value in (constants | flags).items() if key in kernel.arg_names},
            warps,
        )

    pointers = dict.fromkeys(("p_m", "p_q", "p_b"), number) | {"p_flags": "*i32"}
    others = {"rows": "i32", "columns": "i32"} | dict.fromkeys(("accurate", "failed", "orthogonal"), "fp32")
    for flagged in (False, True)[: 1 + single]:
        double = flagged or not single
        flags = {"DTYPE": tl.float64 if double else tl.float32, "FLAGGED": flagged, "TERMS": _TERMS}
        for keep in (False, True)[: 2 * (single or not is_complex)]:
            warps = _whole_warps(double, flagged)
            yield entry(whole_kernel, pointers, others, warps, KEEP=keep, **flags | {"TILE": _WHOLE})
        working, precision = ("*fp64", "ieee") if double else ("*fp32", "tf32x3")
        flags = {"FLAGGED": flagged, "PRECISION": precision, "TILE": _elimination_tile(double, is_complex)}
        of_form = {"p_m": number, "p_w": working, "p_e": working, "p_flags": "*i32"}
        yield entry(form_kernel, of_form, sizes, _WARPS, TERMS=_TERMS, **flags)
        of_step = {"p_from": working, "p_to": working, "p_e": working, "p_flags": "*i32"}
        yield entry(step_kernel, of_step, sizes | {"step": "i32"}, _step_warps(double, is_complex), **flags)
    pointers = {"p_single": number, "p_double": "*fp64", "p_flags": "*i32", "p_q": number, "p_b": number}
    for keep in (False, True):
        yield entry(finish_kernel, pointers, sizes, KEEP=keep, FLAGGED=single)
    for polish in (False, True) if not is_complex else ():
        pointers = {"p_sums": number, "p_scale": number, "p_flags": "*i32"}
        others = {"count": "i32", "limit": "fp32", "failed": "fp32"}
        yield entry(decide_kernel, pointers, others, 1, POLISH=polish, FLAGGED=single and not polish, SUMS=64)
    yield compilation(dtype, is_complex, MEASURED=True)
    yield compilation(dtype, is_complex, SIGN_A=-1, MEASURED=True)
    yield compilation(dtype, is_complex, ADD=True, SCALED=True)
    yield compilation(dtype, is_complex, SIGN_B=-1, ADD=True)
    yield compilation(dtype, is_complex, SIGN_A=-1, ADD=True, SYMMETRY=-1)
    yield compilation(dtype, is_complex, SIGN_B=-1, SECOND=-0.5)


AOT = [
    entry for dtype in ("fp32", "fp64") for is_complex in (False, True) for entry in _compilations(dtype, is_complex)
]
