"""Transforms of small images in Triton: the product of one matrix with all pixels of an image, for each channel."""

# pyright: reportArgumentType=false, reportInvalidTypeForm=false
# Triton's own compiler reads the kernels: to pyright its constants are numbers, and its types are no types.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlip.kernels.common import gpu, triton_launch
from fastlip.kernels.spectral_conv.finish_triton import Finish, finished, variants

_ROWS, _COLUMNS = {torch.float32: 64, torch.float64: 32}, 64  # of a tile
# Of one step of its sums, and warps. Float64 numbers take two registers each: in larger tiles some GPUs spill.
_TERMS = {torch.float32: 32, torch.float64: 16}
_WARPS = {torch.float32: 4, torch.float64: 8}


def _rows(dtype: torch.dtype, device: torch.device) -> int:
    """The rows of a tile: with 64 on sm_120, float32 spills."""
    return 32 if gpu.is_generation(device, 12) else _ROWS[dtype]


@triton.jit
def _transform_kernel(
    p_table, p_x, p_bias, p_residual, p_y, factor: tl.float64, rows, terms, columns, channels, pairs,
    table_row, table_term, x_term, x_image, x_channel, y_row, y_image, y_channel,
    SCALED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """y[row] = Σ table[row, term] x[term], and what follows it, for each column: an image's channel.

    ``pairs`` is the number of columns of an image: its channels, rounded up to an even number where pairs are sorted.
    The tiles of the same columns are neighbours in the grid: the images that they all read are still in the cache.
    """
    DTYPE: tl.constexpr = p_table.dtype.element_ty
    tiles = tl.cdiv(rows, ROWS)
    o_row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    o_column = tl.program_id(0) // tiles * COLUMNS + tl.arange(0, COLUMNS)
    o_term = tl.arange(0, TERMS)
    image, channel = (o_column // pairs).to(tl.int64), o_column % pairs
    m_row, m_column = o_row < rows, (o_column < columns) & (channel < channels)
    p_left = p_table + (o_row * table_row)[:, None] + (o_term * table_term)[None, :]  # [ROWS, TERMS]
    o_x = image * x_image + channel * x_channel
    p_right = p_x + (o_term.to(tl.int64) * x_term)[:, None] + o_x[None, :]  # [TERMS, COLUMNS]
    total = tl.zeros((ROWS, COLUMNS), DTYPE)
    for start in range(0, terms, TERMS):
        m_term = start + o_term < terms
        left = tl.load(p_left + start * table_term, mask=m_row[:, None] & m_term[None, :], other=0)
        right = tl.load(
            p_right + start * tl.cast(x_term, tl.int64), mask=m_term[:, None] & m_column[None, :], other=0
        )
        total = tl.dot(left, right.to(DTYPE), total, input_precision=PRECISION, out_dtype=DTYPE)
    o_y = (o_row.to(tl.int64) * y_row)[:, None] + (image * y_image + channel * y_channel)[None, :]
    mask = m_row[:, None] & m_column[None, :]
    total = finished(
        total, p_bias, p_residual, factor, o_y, mask, channel, channels, SCALED, BIAS, RESIDUAL, ACTIVATION
    )
    tl.store(p_y + o_y, total, mask=mask)


def transform(
    table: Tensor, x: Tensor, x_strides: Any, y: Tensor, y_strides: Any, images: int, channels: int, last: Finish,
    precision: str,
) -> None:  # fmt: skip
    """y = table x and what follows it; strides are those of rows or terms, images, channels."""
    rows, terms = table.shape
    pairs = channels + channels % 2 if last.activation == "maxmin" else channels
    columns = images * pairs
    height = _rows(table.dtype, x.device)
    grid = (triton.cdiv(columns, _COLUMNS) * triton.cdiv(rows, height),)
    triton_launch.launch(
        _transform_kernel, grid, x.device, table, x, *last.tensors(table), y, last.factor,
        rows, terms, columns, channels, pairs, *table.stride(), *x_strides, *y_strides, **last.constants(),
        PRECISION=precision, ROWS=height, COLUMNS=_COLUMNS, TERMS=_TERMS[table.dtype],
        num_warps=_WARPS[table.dtype],
    )  # fmt: skip


_SIZES = ("rows", "terms", "columns", "channels", "pairs")
_STRIDES = ("table_row", "table_term", "x_term", "x_image", "x_channel", "y_row", "y_image", "y_channel")


def _compilation(dtype: str, x: str, y: str, **constants: Any) -> triton_launch.Compilation:
    """Strides named in constants are 1, which Triton makes constants; the others are multiples of 16, as most are."""
    constants |= {"PRECISION": "tf32x3" if dtype == "fp32" else "ieee"}
    real = torch.float32 if dtype == "fp32" else torch.float64
    constants |= {"ROWS": _ROWS[real], "COLUMNS": _COLUMNS, "TERMS": _TERMS[real]}
    pointers = {"p_table": dtype, "p_x": x, "p_bias": dtype, "p_residual": y, "p_y": y}
    signature = {name: f"*{kind}" for name, kind in pointers.items()} | {"factor": "fp64"}
    signature |= dict.fromkeys(_SIZES + _STRIDES, "i32")
    divisible = ("columns", "channels", "pairs", *_STRIDES)
    return triton_launch.Compilation(_transform_kernel, signature, constants, _WARPS[real], divisible)


def compilations(dtype: str, images: str) -> list[triton_launch.Compilation]:
    """The transform of images of this type, and the way back with everything that may follow it."""
    analysed, *synthesized = variants(images)
    return [
        _compilation(dtype, images, dtype, table_term=1, x_channel=1, y_channel=1, **analysed),
        *(
            _compilation(dtype, dtype, images, table_row=1, x_channel=1, y_row=1, **constants)
            for constants in synthesized
        ),
    ]
