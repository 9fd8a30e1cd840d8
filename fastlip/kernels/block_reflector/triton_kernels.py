"""block_reflector in Triton: a blocked Cholesky factor of the small Gram matrix in float64, and batched products.

What is launched depends on sizes alone: nothing waits for the device (README.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from fastlip.kernels.block_reflector.on_chip import gram_kernel, step_kernel, unit_kernel
from fastlip.kernels.block_reflector.reference import NEGLIGIBLE
from fastlip.kernels.common import gpu, triton_launch
from fastlip.kernels.common.product_triton import compilation, multiply, planar

_DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_LARGEST = 1024  # columns
_TILE, _TERMS, _WARPS, _MEMBERS = 16, 16, 8, 128
# Newton-Schulz steps, which take the factor's error, up to 1e-3 of the largest one in rank, to a rounding.
_STEPS = {torch.float32: 2, torch.float64: 3}


def supports(V: Tensor, rows: int, columns: int) -> str:
    """Empty, or why these kernels cannot run."""
    if V.dtype not in _DTYPES:
        return f"no kernel for dtype {V.dtype}"
    if V.shape[-1] > _LARGEST:
        return f"V has {V.shape[-1]} columns: at most {_LARGEST}"
    return triton_launch.why_not(V, gram_kernel)


def block_reflector_forward(V: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """The part of Q, and R such that V R has orthonormal columns, or zeros."""
    *batch, _, n = V.shape
    Q, R = V.new_empty(*batch, rows, columns), V.new_empty(*batch, n, n)
    if V.numel() > 0:
        X = _orthonormal(_flat(V), planar(_flat(R)))
        upper, left = X[:, :, :rows], X[:, :, :columns].mT
        multiply(planar(_flat(Q)), upper, left, conjugate=(False, True), second=-2, identity=1)
    return Q, R


def block_reflector_backward(gradient: Tensor, V: Tensor, R: Tensor) -> Tensor:
    """-2 (I - X Xᴴ) (Q̄ + Q̄ᴴ) X Rᴴ with X = V R (README.md)."""
    result = torch.empty_like(V, memory_format=torch.contiguous_format)
    if V.numel() == 0:
        return result
    G, v, r = (planar(_flat(tensor)) for tensor in (gradient, V, R))
    rows, columns = G.shape[2:]
    X, A, small = (torch.empty(like.shape, dtype=v.dtype, device=v.device) for like in (v, v, r))
    multiply(X, v, r)
    if max(rows, columns) < v.shape[2]:
        A[:, :, max(rows, columns) :] = 0
    longer, shorter = (X[:, :, :columns], X[:, :, :rows]) if rows >= columns else (X[:, :, :rows], X[:, :, :columns])
    of_longer, of_shorter = (G, G.mT) if rows >= columns else (G.mT, G)
    signs = ((False, False), (True, False)) if rows >= columns else ((True, False), (False, False))
    multiply(A[:, :, : max(rows, columns)], of_longer, longer, conjugate=signs[0])
    part = A[:, :, : min(rows, columns)]
    multiply(part, of_shorter, shorter, conjugate=signs[1], x=part)
    multiply(small, X.mT, A, conjugate=(True, False))
    multiply(A, X, small, x=A, second=-1)
    multiply(planar(_flat(result)), A, r.mT, conjugate=(False, True), second=-2)
    return result


def _orthonormal(V: Tensor, R: Tensor) -> Tensor:
    """X, planar, of V's columns; writes R, planar: X = V R."""
    members = len(V)
    peak = torch.linalg.vector_norm(V, float("inf"), dim=(1, 2))
    unit, scale = (torch.empty(members, *more, dtype=torch.float64, device=V.device) for more in ((), (2,)))
    tiny = torch.finfo(V.dtype).tiny
    triton_launch.launch(
        unit_kernel, (triton.cdiv(members, _MEMBERS),), V.device, peak, unit, scale, members,
        SMALLEST=torch.finfo(torch.float64).tiny, NO_GRADIENT=tiny**0.5, COUNT=_MEMBERS, num_warps=4,
    )  # fmt: skip
    wide = planar(V * unit[:, None, None])
    R_wide, X = _inverse_factor(wide), wide.new_empty(wide.shape)
    multiply(X, wide, R_wide)
    for step in range(1, _STEPS[R.dtype] + 1):
        defect, X_next, R_next = (torch.empty_like(like) for like in (R_wide, X, R_wide))
        multiply(defect, X.mT, X, conjugate=(True, False), second=-1, identity=1)
        multiply(X_next, X, defect, x=X, second=0.5)
        last = scale if step == _STEPS[R.dtype] else None
        multiply(R_next, R_wide, defect, x=R_wide, second=0.5, scale=last)
        X, R_wide = X_next, R_next
    R.copy_(R_wide)
    return X.to(R.dtype)


def _inverse_factor(V: Tensor) -> Tensor:
    """R with R Rᴴ = (VᴴV)⁻¹, upper triangular, in float64; columns of zeros where V lacks rank."""
    members, parts, rows, columns = V.shape
    tiles = triton.cdiv(columns, _TILE)
    size = tiles * _TILE
    W, R = V.new_empty(members, parts, size, 2 * size), V.new_zeros(members, parts, size, size)
    E = V.new_empty(members, tiles, parts, _TILE, _TILE)
    sizes = torch.linalg.vector_norm(V, dim=(1, 2)).amax(1)
    grid, negligible = (2 * members * tiles * tiles,), NEGLIGIBLE * columns
    constants = {"COMPLEX": parts == 2, "TILE": _TILE, "num_warps": _WARPS}
    # With eight warps on sm_120, ptxas of Triton 3.6 spills a real sum.
    gram = {"num_warps": 2} if parts == 1 and gpu.is_generation(V.device, 12) else {}
    triton_launch.launch(
        gram_kernel, grid, V.device, V, W, E, sizes, rows, columns, tiles, negligible, *V.stride(),
        TERMS=_TERMS, **constants | gram,
    )  # fmt: skip
    for step in range(tiles):
        triton_launch.launch(step_kernel, grid, V.device, W, E, R, sizes, tiles, step, negligible, **constants)
    return R[:, :, :columns, :columns]


def _flat(V: Tensor) -> Tensor:
    """(b, m, n), contiguous numbers as they are in memory."""
    return V.reshape(-1, *V.shape[-2:]).contiguous().resolve_conj().resolve_neg()


def _compilations(dtype: str, is_complex: bool) -> Iterator[triton_launch.Compilation]:
    """Every kernel for V of this dtype; what works in float64 for that of float64 only."""
    tiny = torch.finfo(torch.float32 if dtype == "fp32" else torch.float64).tiny
    signature: dict[str, str] = {"p_peak": f"*{dtype}", "p_unit": "*fp64", "p_scale": "*fp64", "members": "i32"}
    constants = {"SMALLEST": torch.finfo(torch.float64).tiny, "NO_GRADIENT": tiny**0.5, "COUNT": _MEMBERS}
    if not is_complex:
        yield triton_launch.Compilation(unit_kernel, signature, constants)
    for flags in ({}, {"SIGN_A": -1}, {"SIGN_A": -1, "ADD": True}, {"SIGN_B": -1}, {"ADD": True}):
        yield compilation(dtype, is_complex, **flags)
    if dtype == "fp64":
        yield compilation(dtype, is_complex, ADD=True, SCALED=True)
        yield from _eliminations(is_complex)


def _eliminations(is_complex: bool) -> Iterator[triton_launch.Compilation]:
    def entry(kernel: Any, pointers: tuple[str, ...], sizes: tuple[str, ...], **more: int) -> Any:
        signature: dict[str, str] = dict.fromkeys(pointers, "*fp64")
        signature |= dict.fromkeys(sizes, "i32") | {"negligible": "fp32"}
        constants = {"COMPLEX": is_complex, "TILE": _TILE, **more}
        return triton_launch.Compilation(kernel, signature, constants, _WARPS)

    sizes = "rows", "columns", "tiles", "v_member", "v_part", "v_row", "v_column"
    yield entry(gram_kernel, ("p_v", "p_w", "p_e", "p_norm"), sizes, TERMS=_TERMS)
    yield entry(step_kernel, ("p_w", "p_e", "p_r", "p_norm"), ("tiles", "step"))


AOT = [
    entry for dtype in ("fp32", "fp64") for is_complex in (False, True) for entry in _compilations(dtype, is_complex)
]
