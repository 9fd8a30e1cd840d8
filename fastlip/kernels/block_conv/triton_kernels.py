"""block_conv in Triton: a launch for each factor, and in the backward two, with the sums of taps in the products.

Kernels are (b, h, w, m, c), contiguous, complex numbers as they are in memory. The backward computes the partial
kernels again.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportAssignmentType=false, reportCallIssue=false
# Triton's own compiler reads the kernels: to pyright its constants are numbers.

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlip.kernels.common import triton_launch
from fastlip.kernels.common.product_triton import precision_of
from fastlip.kernels.common.tiles_triton import adjoint_tile, load_tile, multiply_add, store_tile, zero_tile

_DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
_TILE, _TERMS, _WARPS = 32, 16, 8  # with more terms or fewer warps, registers spill


@triton.jit
def load_difference(p_from, p_next, m_from, m_next, o_row, o_column, m_tile, row_stride, COMPLEX: tl.constexpr):
    """A tile of one tap minus that of its neighbour; zeros stand for a tap that there is not."""
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    re, im = load_tile(p_from, o_row, o_column, m_tile & m_from, 1, row_stride, PARTS, m_tile, 1, COMPLEX)
    n_re, n_im = load_tile(p_next, o_row, o_column, m_tile & m_next, 1, row_stride, PARTS, m_tile, 1, COMPLEX)
    return re - n_re, im - n_im


@triton.jit
def factor_kernel(
    p_from, p_p, p_to, from_height, from_width, height, width, rows, columns, shift_y, shift_x,
    p_member, p_term, p_column, SIGN: tl.constexpr, COMPLEX: tl.constexpr, PRECISION: tl.constexpr,
    TILE: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """To[t] = From[t + shift] + (From[t] - From[t + shift]) P of each tap t, or with Pᴴ by its strides and sign."""
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    tiles = tl.cdiv(columns, TILE)
    per_tap = tl.cdiv(rows, TILE) * tiles
    tap, tile = tl.program_id(0) // per_tap, tl.program_id(0) % per_tap
    x, y = tap % width, tap // width % height
    member = (tap // (width * height)).to(tl.int64)
    lane = tl.arange(0, TILE)
    o_row, o_column = tile // tiles * TILE + lane, tile % tiles * TILE + lane
    m_row, m_column = (o_row < rows)[:, None], (o_column < columns)[None, :]
    stride, size = columns * PARTS, rows * columns * PARTS
    other_y, other_x = y + shift_y, x + shift_x
    nought = tl.zeros((1, 1), tl.int32)
    m_one = (nought + y < from_height) & (nought + x < from_width)
    m_other = (nought + other_y >= 0) & (nought + other_y < from_height)
    m_other &= (nought + other_x >= 0) & (nought + other_x < from_width)
    p_from += member * from_height * from_width * size
    p_one, p_other = p_from + (y * from_width + x) * size, p_from + (other_y * from_width + other_x) * size
    p_p += member * p_member
    re, im = zero_tile(p_to.dtype.element_ty, TILE, COMPLEX)
    for start in range(0, columns, TERMS):
        o_term = start + tl.arange(0, TERMS)
        m_a, m_b = m_row & (o_term < columns)[None, :], (o_term < columns)[:, None] & m_column
        a_re, a_im = load_difference(p_one, p_other, m_one, m_other, o_row, o_term, m_a, stride, COMPLEX)
        b_re, b_im = load_tile(p_p, o_term, o_column, m_b, 1, p_term, p_column, m_b, SIGN, COMPLEX)
        re, im = multiply_add(a_re, a_im, b_re, b_im, re, im, COMPLEX, PRECISION)
    m_tile = m_row & m_column
    k_re, k_im = load_tile(p_other, o_row, o_column, m_tile & m_other, 1, stride, PARTS, m_tile, 1, COMPLEX)
    p_to += tap.to(tl.int64) * size
    store_tile(p_to, o_row, o_column, m_tile, 1, stride, PARTS, re + k_re, im + k_im, COMPLEX)


@triton.jit
def projector_kernel(
    p_k, p_g, p_to, height, width, g_height, g_width, rows, columns, shift_y, shift_x, to_member,
    COMPLEX: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """The gradient of P: Σ_t K[t]ᴴ (G[t] - G[t + shift]) over the taps of K."""
    PARTS: tl.constexpr = 2 if COMPLEX else 1
    tiles = tl.cdiv(columns, TILE)
    member, tile = (tl.program_id(0) // (tiles * tiles)).to(tl.int64), tl.program_id(0) % (tiles * tiles)
    lane = tl.arange(0, TILE)
    o_row, o_column = tile // tiles * TILE + lane, tile % tiles * TILE + lane
    m_row, m_column = o_row < columns, o_column < columns
    stride, size = columns * PARTS, rows * columns * PARTS
    p_k, p_g = p_k + member * height * width * size, p_g + member * g_height * g_width * size
    re, im = zero_tile(p_to.dtype.element_ty, TILE, COMPLEX)
    steps = tl.cdiv(rows, TERMS)
    for step in range(height * width * steps):
        tap, o_term = step // steps, step % steps * TERMS + tl.arange(0, TERMS)
        y, x = tap // width, tap % width
        m_term = (o_term < rows)[:, None]
        p_one, p_other = p_g + (y * g_width + x) * size, p_g + ((y + shift_y) * g_width + x + shift_x) * size
        a_re, a_im = load_tile(
            p_k + tap * size, o_term, o_row, m_term & m_row[None, :], 1, stride, PARTS, m_term, 1, COMPLEX
        )
        a_re, a_im = adjoint_tile(a_re, a_im, COMPLEX)
        m_b = m_term & m_column[None, :]
        b_re, b_im = load_difference(p_one, p_other, m_b, m_b, o_term, o_column, m_b, stride, COMPLEX)
        re, im = multiply_add(a_re, a_im, b_re, b_im, re, im, COMPLEX, PRECISION)
    m_tile = m_row[:, None] & m_column[None, :]
    store_tile(p_to + member * to_member, o_row, o_column, m_tile, 1, stride, PARTS, re, im, COMPLEX)


def supports(kernel: Tensor, projectors: Tensor, axes: Sequence[int]) -> str:
    """Empty, or why these kernels cannot run."""
    if kernel.dtype not in _DTYPES:
        return f"no kernel for dtype {kernel.dtype}"
    if not axes or kernel.numel() == 0:
        return "there is nothing to multiply"
    return triton_launch.why_not(kernel, factor_kernel)


def block_conv_forward(kernel: Tensor, projectors: Tensor, axes: Sequence[int]) -> Tensor:
    """The kernel (..., kh, kw, m, c)."""
    *_, K = _partial_kernels(_batched(kernel, 4), _batched(projectors, 3), axes)
    return K.view(*kernel.shape[:-4], *K.shape[1:])


def block_conv_backward(
    gradient: Tensor, kernel: Tensor, projectors: Tensor, axes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The gradients of the kernel and of the projectors."""
    P, G = _batched(projectors, 3), _batched(gradient, 4)
    of_projectors = torch.empty_like(P)
    kernels = _partial_kernels(_batched(kernel, 4), P, axes[:-1])
    for i in reversed(range(len(axes))):
        K = kernels.pop()
        _project(K, G, of_projectors[:, i], axes[i])
        of_kernel = torch.empty_like(K)
        _multiply(G, P[:, i], of_kernel, axes[i], adjoint=True)
        G = of_kernel
    return G.view(kernel.shape), of_projectors.view(projectors.shape)


def _partial_kernels(K: Tensor, P: Tensor, axes: Sequence[int]) -> list[Tensor]:
    """The kernels (b, h, w, m, c) before the first factor and after each."""
    kernels = [K]
    for i, axis in enumerate(axes):
        members, height, width, rows, columns = kernels[-1].shape
        longer = K.new_empty(members, height + 1 - axis, width + axis, rows, columns)
        _multiply(kernels[-1], P[:, i], longer, axis, adjoint=False)
        kernels.append(longer)
    return kernels


def _multiply(source: Tensor, P: Tensor, target: Tensor, axis: int, adjoint: bool) -> None:
    """The factor's product, or its adjoint, which shortens the kernel."""
    members, height, width, rows, columns = target.shape
    shift = 1 if adjoint else -1
    parts, tile = 1 + source.is_complex(), _tile(source)
    term, column = (parts, columns * parts) if adjoint else (columns * parts, parts)
    grid = (members * height * width * triton.cdiv(rows, tile) * triton.cdiv(columns, tile),)
    triton_launch.launch(
        factor_kernel, grid, source.device, *map(_numbers, (source, P, target)), *source.shape[1:3], height, width,
        rows, columns, (1 - axis) * shift, axis * shift, P.stride(0) * parts, term, column,
        SIGN=-1 if adjoint else 1, COMPLEX=parts == 2, PRECISION=precision_of(source.real), TILE=tile, TERMS=_TERMS,
        num_warps=_WARPS,
    )  # fmt: skip


def _project(K: Tensor, G: Tensor, target: Tensor, axis: int) -> None:
    members, height, width, rows, columns = K.shape
    parts, tile = 1 + K.is_complex(), _tile(K)
    triton_launch.launch(
        projector_kernel, (members * triton.cdiv(columns, tile) ** 2,), K.device, *map(_numbers, (K, G, target)),
        height, width, *G.shape[1:3], rows, columns, 1 - axis, axis, target.stride(0) * parts,
        COMPLEX=parts == 2, PRECISION=precision_of(K.real), TILE=tile, TERMS=_TERMS,
        num_warps=_project_warps(K.dtype == torch.complex128),
    )  # fmt: skip


def _tile(K: Tensor) -> int:
    """Rows and columns of a tile: of complex double ones with more, registers spill."""
    return _TILE // 2 if K.dtype == torch.complex128 else _TILE


def _project_warps(widest: bool) -> int:
    """Warps for the gradient of projectors: with others, registers spill."""
    return 2 * _WARPS if widest else _WARPS


def _numbers(X: Tensor) -> Tensor:
    return torch.view_as_real(X) if X.is_complex() else X


def _batched(tensor: Tensor, dims: int) -> Tensor:
    """Leading dimensions as one; contiguous numbers as they are in memory."""
    tensor = tensor.reshape(tensor.shape[:-dims].numel(), *tensor.shape[-dims:])
    return tensor.contiguous().resolve_conj().resolve_neg()


def _compilations(dtype: str, is_complex: bool) -> Iterator[triton_launch.Compilation]:
    constants = {"COMPLEX": is_complex, "PRECISION": "tf32x3" if dtype == "fp32" else "ieee", "TERMS": _TERMS}
    constants["TILE"] = _TILE // 2 if dtype == "fp64" and is_complex else _TILE
    for kernel, more in ((factor_kernel, {"SIGN": 1}), (factor_kernel, {"SIGN": -1}), (projector_kernel, {})):
        names = [name for name in kernel.arg_names if name.islower()]
        signature = {name: f"*{dtype}" if name in names[:3] else "i32" for name in names}
        warps = _project_warps(dtype == "fp64" and is_complex) if kernel is projector_kernel else _WARPS
        yield triton_launch.Compilation(kernel, signature, constants | more, warps)


AOT = [
    entry for dtype in ("fp32", "fp64") for is_complex in (False, True) for entry in _compilations(dtype, is_complex)
]
