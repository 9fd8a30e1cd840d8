"""MaxMin in Triton: the memory layout of csrc/maxmin, hence the same mask."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlip.kernels.common import triton_launch
from fastlip.kernels.maxmin.api import FORMATS, dense_format, layout

_DTYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# Bytes of the mask per program: a thousand pairs, of which ptxas spills one in float64 on sm_80.
_BYTES = {torch.float64: 64, torch.float32: 128, torch.float16: 128, torch.bfloat16: 128}


@triton.jit
def _maxmin_kernel(
    p_x, p_y, p_mask, total_bytes, run_bytes, length, groups, image_stride, group_stride, second,
    INDEX: tl.constexpr, NEIGHBOURS: tl.constexpr, COMPARE: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Each row of a tile is one byte of the mask: eight pairs of a run, see csrc/maxmin/maxmin_cpu.cpp.

    NEIGHBOURS: a pair's elements are neighbours in memory; otherwise the second is at a distance.
    """
    o_byte = tl.program_id(0).to(INDEX) * BYTES + tl.arange(0, BYTES)  # [BYTES]
    m_byte = o_byte < total_bytes
    run = o_byte // run_bytes
    image = run // groups
    o_pair = (o_byte - run * run_bytes) * 8  # of each byte's first pair, within its run
    o_run = image.to(tl.int64) * image_stride + (run - image * groups).to(tl.int64) * group_stride
    bit = tl.arange(0, 8)[None, :]

    if NEIGHBOURS:
        lane = tl.arange(0, 16)[None, :]
        o_both = (o_run + 2 * o_pair)[:, None] + lane  # [BYTES, 16]
        m_both = m_byte[:, None] & (2 * o_pair[:, None] + lane < 2 * length)
        a, b = tl.split(tl.reshape(tl.load(p_x + o_both, mask=m_both, other=0), (BYTES, 8, 2)))
    else:
        o_a = (o_run + o_pair)[:, None] + bit  # [BYTES, 8]
        m_a = m_byte[:, None] & (o_pair[:, None] + bit < length)
        a = tl.load(p_x + o_a, mask=m_a, other=0)
        b = tl.load(p_x + o_a + second, mask=m_a, other=0)

    if COMPARE:
        # Widened explicitly: the interpreter would compare the bits of bfloat16.
        swap = b > a if b.dtype == tl.float64 else b.to(tl.float32) > a.to(tl.float32)
        tl.store(p_mask + o_byte, tl.sum(swap.to(tl.int32) << bit, 1).to(tl.uint8), mask=m_byte)
    else:
        swap = ((tl.load(p_mask + o_byte, mask=m_byte, other=0).to(tl.int32)[:, None] >> bit) & 1) != 0
    high, low = tl.where(swap, b, a), tl.where(swap, a, b)

    if NEIGHBOURS:
        tl.store(p_y + o_both, tl.reshape(tl.join(high, low), (BYTES, 16)), mask=m_both)
    else:
        tl.store(p_y + o_a, high, mask=m_a)
        tl.store(p_y + o_a + second, low, mask=m_a)


def supports(x: Tensor, pairing: str, dim: int) -> str:
    """Empty, or why this kernel cannot run."""
    if x.dtype not in _DTYPES:
        return f"no kernel for dtype {x.dtype}"
    return triton_launch.why_not(x, _maxmin_kernel)


def maxmin_forward(x: Tensor, pairing: str, dim: int) -> tuple[Tensor, Tensor]:
    """Sorted pairs, and the mask of those that were swapped."""
    x = x.contiguous(memory_format=dense_format(x, dim))
    mask = torch.empty(layout(x, dim)[3], dtype=torch.uint8, device=x.device)
    return _launch(x, mask, pairing, dim, compare=True), mask


def maxmin_swap(x: Tensor, mask: Tensor, channels_last: bool, pairing: str, dim: int) -> Tensor:
    """x with the masked pairs swapped."""
    x = x.contiguous(memory_format=FORMATS[channels_last])
    return _launch(x, mask, pairing, dim, compare=False)


def _launch(x: Tensor, mask: Tensor, pairing: str, dim: int, compare: bool) -> Tensor:
    y = torch.empty_like(x)
    _, channels, inner, _ = layout(x, dim)
    pairs, halves = channels // 2, pairing == "halves"
    if channels % 2 != 0:
        y.select(dim, -1).copy_(x.select(dim, -1))
    if mask.numel() == 0:
        return y
    run_bytes, length, groups = ((pairs + 7) // 8, pairs, 1) if inner == 1 else ((inner + 7) // 8, inner, pairs)
    group_stride, second = (inner, pairs * inner) if halves else (2 * inner, inner)
    # 64-bit divisions would cost as much as the memory traffic.
    step = _BYTES[x.dtype]
    index = tl.int32 if mask.numel() + step < 2**28 else tl.int64
    triton_launch.launch(
        _maxmin_kernel, (triton.cdiv(mask.numel(), step),), x.device,
        x, y, mask, mask.numel(), run_bytes, length, groups, channels * inner, group_stride, second,
        INDEX=index, NEIGHBOURS=inner == 1 and not halves, COMPARE=compare, BYTES=step,
    )  # fmt: skip
    return y


def _compilation(
    kind: torch.dtype, integer: str, neighbours: bool, compare: bool, **ones: int
) -> triton_launch.Compilation:
    sizes = ("total_bytes", "run_bytes", "length", "groups", "image_stride", "group_stride", "second")
    dtype = _DTYPES[kind]
    pointers = {"p_x": f"*{dtype}", "p_y": f"*{dtype}", "p_mask": "*u8"}
    index = tl.int32 if integer == "i32" else tl.int64
    constants = {"INDEX": index, "NEIGHBOURS": neighbours, "COMPARE": compare, "BYTES": _BYTES[kind]} | ones
    divisible = ("length", "image_stride", "group_stride", "second")
    return triton_launch.Compilation(
        _maxmin_kernel, pointers | dict.fromkeys(sizes, integer), constants, divisible=divisible
    )


AOT = [
    _compilation(dtype, integer, neighbours, compare)
    for dtype in _DTYPES
    for integer in ("i32", "i64")
    if integer == "i32" or dtype == torch.float32
    for neighbours in (True, False)
    for compare in (True, False)
] + [
    _compilation(torch.float32, "i32", neighbours, True, run_bytes=1, groups=1, second=1)
    for neighbours in (True, False)
]
