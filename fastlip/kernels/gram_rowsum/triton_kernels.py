"""gram_rowsum in Triton: no atomics, and every sum has a fixed order, so that results are reproducible.

Forward: one program per pair of channel tiles and offset computes its part of v in registers and leaves row and
column sums, and the signs. Backward: one program per tap and tile of the gradient, a matrix product with
signs(v) ∘ (E + Eᵀ). Within ``sign_words`` the order is this file's own: pairs of different tiles come first, then
the diagonal tiles.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlip.kernels.common import gpu, triton_launch
from fastlip.kernels.gram_rowsum.api import TILE, sign_words

_DTYPES = {torch.float32: "fp32", torch.float64: "fp64"}
# Output channels per step of the forward's sum; with 32 in float64, ptxas of Triton 3.6 spills.
_SUM = {"fp32": 32, "fp64": 16}
_OUT = 64  # output channels per program of the backward
_FORWARD_WARPS = 4


@triton.jit
def _find_signs(tile_i, tile_j, offset, tiles, channels, diagonals, OFFSETS: tl.constexpr, TILE: tl.constexpr):
    """First word of the signs of v[tile_i, tile_j, offset] within a group, and the rows of each of the two planes.

    For tile_i <= tile_j, and on the diagonal for offsets up to the centre. A row is one word: a bit per column.
    diagonals is the first word of the diagonal tiles, of which only the last may have fewer than TILE rows.
    """
    same = tile_i == tile_j
    rows = tl.where(same, tl.minimum(TILE, channels - tile_i * TILE), TILE)
    pair = tile_i * (2 * tiles - tile_i - 1) // 2 + tile_j - tile_i - 1
    before = tl.where(
        same,
        diagonals + tile_i.to(tl.int64) * ((OFFSETS + 1) // 2 * 2 * TILE),
        pair.to(tl.int64) * (OFFSETS * 2 * TILE),
    )
    return before + offset * 2 * rows, rows


@triton.jit
def _coordinates(index, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    return index // (HEIGHT * WIDTH), index // WIDTH % HEIGHT, index % WIDTH


@triton.jit
def _pack(bits, TILE: tl.constexpr):
    words = tl.sum(bits.to(tl.uint32) << tl.arange(0, TILE).to(tl.uint32)[None, :], 1)
    return words.to(tl.int32, bitcast=True)


@triton.jit
def _forward_kernel(
    p_w, p_psi, p_sums, p_signs, channels, depth, tiles, diagonals, words,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, WEIGHTED: tl.constexpr,
    PRECISION: tl.constexpr, TILE: tl.constexpr, SUM: tl.constexpr,
):  # fmt: skip
    """w is (groups, taps, channels, depth). sums is (groups, tiles, tiles, offsets, TILE): Σ_j over one tile."""
    OFFSETS: tl.constexpr = (2 * KD - 1) * (2 * KH - 1) * (2 * KW - 1)
    tile_i, tile_j = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    offset, group = tl.program_id(1), tl.program_id(2)
    if tile_i > tile_j or (tile_i == tile_j and offset > OFFSETS // 2):
        return  # v[j, i, −δ] = v[i, j, δ]

    dz, dy, dx = _coordinates(offset, 2 * KH - 1, 2 * KW - 1)
    dz, dy, dx = dz - (KD - 1), dy - (KH - 1), dx - (KW - 1)
    ny, nx = KH - tl.abs(dy), KW - tl.abs(dx)
    overlap = (KD - tl.abs(dz)) * ny * nx
    steps = tl.cdiv(depth, SUM)
    lane, o_sum = tl.arange(0, TILE), tl.arange(0, SUM)
    o_i, o_j = tile_i * TILE + lane, tile_j * TILE + lane
    m_i, m_j = o_i < channels, o_j < channels
    tap_stride = channels * tl.cast(depth, tl.int64)
    p_group = p_w + group * (KD * KH * KW * tap_stride) + lane[:, None] * depth + o_sum[None, :]
    p_a = p_group + (tile_i * TILE) * tl.cast(depth, tl.int64)
    p_b = p_group + (tile_j * TILE) * tl.cast(depth, tl.int64) + ((dz * KH + dy) * KW + dx) * tap_stride

    v = tl.zeros((TILE, TILE), p_w.dtype.element_ty)
    for step in range(overlap * steps):
        common = step // steps
        z = common // (ny * nx) + tl.maximum(0, -dz)
        y = common // nx % ny + tl.maximum(0, -dy)
        x = common % nx + tl.maximum(0, -dx)
        start = (step - common * steps) * SUM
        where = ((z * KH + y) * KW + x) * tap_stride + start
        m_sum = (start + o_sum < depth)[None, :]
        a = tl.load(p_a + where, mask=m_i[:, None] & m_sum, other=0)  # [TILE i, SUM o]
        b = tl.load(p_b + where, mask=m_j[:, None] & m_sum, other=0)  # [TILE j, SUM o]
        v = tl.dot(a, tl.trans(b), v, input_precision=PRECISION, out_dtype=p_w.dtype.element_ty)

    first, rows = _find_signs(tile_i, tile_j, offset, tiles, channels, diagonals, OFFSETS, TILE)
    p_words = p_signs + group * tl.cast(words, tl.int64) + first + lane
    tl.store(p_words, _pack(v > 0, TILE), mask=lane < rows)
    tl.store(p_words + rows, _pack(v < 0, TILE), mask=lane < rows)

    size = tl.abs(v)
    to_i, to_j = size, size
    if WEIGHTED:
        psi_i = tl.load(p_psi + group * channels + o_i, mask=m_i, other=0)
        psi_j = tl.load(p_psi + group * channels + o_j, mask=m_j, other=0)
        # A pair with v = 0 counts as 0 although exp may overflow.
        rise = tl.where(size > 0, psi_j[None, :] - psi_i[:, None], 0)
        to_i, to_j = size * tl.exp(rise), size * tl.exp(-rise)
    p_tile = p_sums + group * (tiles * tiles * tl.cast(OFFSETS * TILE, tl.int64)) + lane
    slot, mirror = tile_i * tiles + tile_j, tile_j * tiles + tile_i
    tl.store(p_tile + (slot.to(tl.int64) * OFFSETS + offset) * TILE, tl.sum(to_i, 1))
    if tile_i != tile_j or offset != OFFSETS // 2:
        tl.store(p_tile + (mirror.to(tl.int64) * OFFSETS + OFFSETS - 1 - offset) * TILE, tl.sum(to_j, 0))


@triton.jit
def _backward_kernel(
    p_gradient, p_w, p_psi, p_signs, p_out, channels, depth, tiles, diagonals, words,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, WEIGHTED: tl.constexpr,
    PRECISION: tl.constexpr, TILE: tl.constexpr, OUT: tl.constexpr,
):  # fmt: skip
    """out[i, τ] = Σ_{j,τ'} sign(v)[i, j, τ'−τ] (E_ij + E_ji) w[j, τ'], over depth; w and out as in the forward."""
    OFFSETS: tl.constexpr = (2 * KD - 1) * (2 * KH - 1) * (2 * KW - 1)
    tap, tile_i = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    tap_z, tap_y, tap_x = _coordinates(tap, KH, KW)
    group = tl.program_id(2)
    lane, o_out = tl.arange(0, TILE), tl.program_id(1) * OUT + tl.arange(0, OUT)
    o_i = tile_i * TILE + lane
    m_i, m_out = o_i < channels, o_out < depth
    p_gradient += group * channels
    p_psi += group * channels
    p_signs += group * tl.cast(words, tl.int64)
    tap_stride = channels * tl.cast(depth, tl.int64)
    group_start = group * (KD * KH * KW * tap_stride)
    tile_stride = TILE * tl.cast(depth, tl.int64)
    within = lane[:, None] * depth + o_out[None, :]  # [TILE, OUT]
    g_i = tl.load(p_gradient + o_i, mask=m_i, other=0)
    psi_i = tl.load(p_psi + o_i, mask=m_i, other=0) if WEIGHTED else g_i

    result = tl.zeros((TILE, OUT), p_w.dtype.element_ty)
    for tile_j in range(tiles):
        o_j = tile_j * TILE + lane
        m_j = o_j < channels
        g_j = tl.load(p_gradient + o_j, mask=m_j, other=0)
        if WEIGHTED:
            rise = tl.load(p_psi + o_j, mask=m_j, other=0)[None, :] - psi_i[:, None]
            weight = g_i[:, None] * tl.exp(rise) + g_j[None, :] * tl.exp(-rise)
        else:
            weight = g_i[:, None] + g_j[None, :]  # [TILE i, TILE j]
        p_w_j = p_w + group_start + tile_j * tile_stride + within
        for other in range(KD * KH * KW):
            other_z, other_y, other_x = _coordinates(other, KH, KW)
            dz, dy, dx = other_z - tap_z + KD - 1, other_y - tap_y + KH - 1, other_x - tap_x + KW - 1
            offset = (dz * (2 * KH - 1) + dy) * (2 * KW - 1) + dx
            # Kept as it is, or as its transpose at the opposite offset.
            upright = tile_i < tile_j or (tile_i == tile_j and offset <= OFFSETS // 2)
            first, rows = _find_signs(
                tl.minimum(tile_i, tile_j), tl.maximum(tile_i, tile_j),
                tl.where(upright, offset, OFFSETS - 1 - offset), tiles, channels, diagonals, OFFSETS, TILE,
            )  # fmt: skip
            up = tl.load(p_signs + first + lane, mask=lane < rows, other=0)
            down = tl.load(p_signs + first + rows + lane, mask=lane < rows, other=0)
            if upright:
                plus, minus = up[:, None] >> lane[None, :], down[:, None] >> lane[None, :]
            else:
                plus, minus = up[None, :] >> lane[:, None], down[None, :] >> lane[:, None]
            signed = tl.where(plus & 1 != 0, weight, tl.where(minus & 1 != 0, -weight, 0))
            w = tl.load(p_w_j + other * tap_stride, mask=m_j[:, None] & m_out[None, :], other=0)
            result = tl.dot(signed, w, result, input_precision=PRECISION, out_dtype=p_w.dtype.element_ty)

    p_result = p_out + group_start + tap * tap_stride + tile_i * tile_stride + within
    tl.store(p_result, result, mask=m_i[:, None] & m_out[None, :])


def supports(weight: Tensor, psi: Tensor | None, groups: int) -> str:
    """Empty, or why these kernels cannot run."""
    if weight.dtype not in _DTYPES:
        return f"no kernel for dtype {weight.dtype}"
    return triton_launch.why_not(weight, _forward_kernel)


def gram_rowsum_forward(weight: Tensor, psi: Tensor | None, groups: int) -> tuple[Tensor, Tensor]:
    """r, and the signs of v as bit planes."""
    signs = weight.new_empty(sign_words(weight.shape, groups), dtype=torch.int32)
    if weight.numel() == 0:
        return weight.new_zeros(groups * weight.shape[1]), signs
    packed = _pack_weight(weight, groups)
    tiles = triton.cdiv(weight.shape[1], TILE)
    offsets = math.prod(2 * k - 1 for k in weight.shape[2:])
    sums = weight.new_empty(groups, tiles, tiles * offsets, TILE)
    dtype = _DTYPES[weight.dtype]
    triton_launch.launch(
        _forward_kernel, (tiles * tiles, offsets, groups), weight.device,
        packed, _contiguous(psi, weight), sums, signs, *_sizes(weight, groups, signs), *_kernel_size(weight),
        WEIGHTED=psi is not None, PRECISION=_precision(weight), TILE=TILE, SUM=_SUM[dtype],
        num_warps=_forward_warps(dtype, psi is not None, weight.device),
    )  # fmt: skip
    return sums.sum(2).flatten(1)[:, : weight.shape[1]].flatten(), signs


def gram_rowsum_backward(
    gradient: Tensor, weight: Tensor, psi: Tensor | None, r: Tensor | None, signs: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """The gradients for weight and psi; the latter is empty without psi."""
    weight_gradient = torch.empty_like(weight)
    if weight.numel() > 0:
        packed = _pack_weight(weight, groups)
        result = torch.empty_like(packed)
        tiles, taps, out = triton.cdiv(weight.shape[1], TILE), packed.shape[1], _backward_out(weight)
        triton_launch.launch(
            _backward_kernel, (taps * tiles, triton.cdiv(packed.shape[3], out), groups), weight.device,
            gradient.contiguous(), packed, _contiguous(psi, weight), signs, result,
            *_sizes(weight, groups, signs), *_kernel_size(weight),
            WEIGHTED=psi is not None, PRECISION=_precision(weight), TILE=TILE, OUT=out,
        )  # fmt: skip
        unpacked = result.permute(0, 3, 2, 1).flatten(0, 1)  # (cout, cin / groups, taps)
        weight_gradient.copy_(unpacked.view(weight.shape))
    if psi is None or r is None or weight.shape[1] == 1:  # alone in its group, a channel is weighted by 1
        return weight_gradient, weight.new_zeros(0 if psi is None else groups)
    # ⟨W_k, W̄_k⟩ = Σ_j |v|_kj (E_kj + E_jk) = r̄_k r_k + (ψ̄_k + r̄_k r_k)
    products = (weight * weight_gradient).unflatten(0, (groups, -1)).transpose(1, 2).flatten(2)
    psi_gradient = products.sum(2, dtype=torch.float64).flatten() - 2 * gradient.double() * r.double()
    return weight_gradient, psi_gradient.to(weight.dtype)


def _forward_warps(dtype: str, weighted: bool, device: torch.device) -> int:
    """Warps of a forward's program: with the other number, ptxas spills a float32 sum on sm_90, or on sm_120."""
    return 2 if gpu.is_generation(device, 9) and dtype == "fp32" and not weighted else _FORWARD_WARPS


def _backward_out(weight: Tensor) -> int:
    """Output channels of a backward's program: with the other number, ptxas spills float64 on some GPU."""
    return 16 if gpu.is_generation(weight.device, 12) and weight.dtype == torch.float64 else _OUT


def _pack_weight(weight: Tensor, groups: int) -> Tensor:
    """(groups, taps, cin / groups, cout / groups): the summed channels are neighbours in memory."""
    per_group = weight.unflatten(0, (groups, -1))
    per_group = per_group[..., None] if weight.dim() == 2 else per_group.flatten(3)
    return per_group.permute(0, 3, 2, 1).contiguous()


def _contiguous(psi: Tensor | None, weight: Tensor) -> Tensor:
    return weight if psi is None else psi.contiguous()


def _sizes(weight: Tensor, groups: int, signs: Tensor) -> tuple[int, ...]:
    """Channels, depth, tiles, first word of the diagonal tiles, words: each of one group."""
    channels, tiles = weight.shape[1], triton.cdiv(weight.shape[1], TILE)
    offsets = math.prod(2 * k - 1 for k in weight.shape[2:])
    diagonals = tiles * (tiles - 1) // 2 * offsets * 2 * TILE
    return channels, weight.shape[0] // groups, tiles, diagonals, signs.numel() // groups


def _kernel_size(weight: Tensor) -> tuple[int, ...]:
    return (*(1,) * (5 - weight.dim()), *weight.shape[2:])


def _precision(weight: Tensor) -> str:
    """TF32 alone is not admissible: its error would exceed fp32's by a factor of a thousand."""
    return "tf32x3" if weight.dtype == torch.float32 and weight.is_cuda else "ieee"


def _compilations(
    dtype: str, size: int, weighted: bool, ones: tuple[str, ...] = ()
) -> list[triton_launch.Compilation]:
    """Both kernels; the integers named in ones are 1, which Triton makes constants."""
    precision = "tf32x3" if dtype == "fp32" else "ieee"
    constants = {"KD": 1, "KH": size, "KW": size, "WEIGHTED": weighted, "PRECISION": precision, "TILE": TILE}
    constants |= dict.fromkeys(ones, 1)
    sizes = dict.fromkeys(("channels", "depth", "tiles", "diagonals", "words"), "i32")
    forward = dict.fromkeys(("p_w", "p_psi", "p_sums"), f"*{dtype}") | {"p_signs": "*i32"} | sizes
    backward = dict.fromkeys(("p_gradient", "p_w", "p_psi", "p_out"), f"*{dtype}") | {"p_signs": "*i32"} | sizes
    even = ("channels", "depth")
    return [
        triton_launch.Compilation(
            _forward_kernel,
            forward,
            constants | {"SUM": _SUM[dtype]},
            2 if dtype == "fp32" and not weighted else _FORWARD_WARPS,
            even,
        ),
        triton_launch.Compilation(_backward_kernel, backward, constants | {"OUT": _OUT}, divisible=even),
    ]


AOT = [
    compilation
    for dtype in _DTYPES.values()
    for size in (1, 3)
    for weighted in (False, True)
    for compilation in _compilations(dtype, size, weighted)
] + _compilations("fp32", 3, True, ones=("channels", "depth", "tiles"))
