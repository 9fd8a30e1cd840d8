"""Transforms of images of up to 32 x 32 pixels in Triton: one launch, by rows and columns, planes stay on the chip.

A program takes an image's channels, some at a time, through two products. The first transforms the rows: the real
and the imaginary part at each k_x, which are 32 numbers, since those of k_x = 0 and 16 are real and share a pair. The
second transforms the columns of a pair as one complex vector; those of the shared pair, which are real, by a matrix
of their own. ``tables.planes`` has the matrices, and where each number is in a spectrum. The way back is the
transposed matrices in the other order.
"""

# pyright: reportInvalidTypeForm=false
# Triton's own compiler reads the kernels: to pyright its types are no types.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlip.kernels.common import triton_launch
from fastlip.kernels.common.fourier import Size, count_frequencies, own_frequencies
from fastlip.kernels.spectral_conv import tables
from fastlip.kernels.spectral_conv.finish_triton import Finish, finished, strides, variants

_ANALYSED, _SYNTHESIZED, _WARPS = 8, 4, 8  # channels of a program of either kernel: with more, registers spill


@triton.jit
def _matrix(p_table, ROWS: tl.constexpr, TRANSPOSED: tl.constexpr):
    lane = tl.arange(0, ROWS)
    if TRANSPOSED:
        return tl.load(p_table + lane[None, :] * ROWS + lane[:, None])
    return tl.load(p_table + lane[:, None] * ROWS + lane[None, :])


@triton.jit
def _columns(p_table, x, shared, SIDE: tl.constexpr, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr):
    """The transform of columns, [2 SIDE, pairs x channels]; of the shared pair by the second matrix."""
    matrix = _matrix(p_table + SIDE * SIDE, 2 * SIDE, TRANSPOSED)
    y = tl.dot(matrix, tl.where(shared[None, :], 0, x), input_precision=PRECISION, out_dtype=x.dtype)
    matrix = _matrix(p_table + 5 * SIDE * SIDE, 2 * SIDE, TRANSPOSED)
    return tl.dot(matrix, tl.where(shared[None, :], x, 0), y, input_precision=PRECISION, out_dtype=x.dtype)


@triton.jit
def _analyse_kernel(
    p_table, p_places, p_x, p_y, images, channels, height, width, own, count, x_row, x_column, x_image, x_channel,
    SIDE: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y, (2, count, images, channels), of the images x."""
    blocks = tl.cdiv(channels, CHANNELS)
    image, first = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks * CHANNELS
    o_x, o_plane = tl.arange(0, SIDE), tl.arange(0, SIDE * CHANNELS)
    o_y, o_channel = o_plane // CHANNELS, first + o_plane % CHANNELS
    mask = (o_x < width)[:, None] & ((o_y < height) & (o_channel < channels))[None, :]
    o_image = (o_x * x_column)[:, None] + (o_y * x_row + o_channel * x_channel)[None, :]
    x = tl.load(p_x + image * x_image + o_image, mask=mask, other=0)  # [SIDE x, SIDE y × CHANNELS]
    x = x.to(p_table.dtype.element_ty)
    z = tl.dot(_matrix(p_table, SIDE, False), x, input_precision=PRECISION, out_dtype=x.dtype)  # type: ignore[arg-type]
    z = tl.permute(tl.reshape(z, (SIDE // 2, 2, SIDE, CHANNELS)), (1, 2, 0, 3))
    z = tl.reshape(z, (2 * SIDE, SIDE // 2 * CHANNELS))

    o_column, o_row = tl.arange(0, SIDE // 2 * CHANNELS), tl.arange(0, 2 * SIDE)
    pair, o_channel = o_column // CHANNELS, first + o_column % CHANNELS
    y = _columns(p_table, z, pair == 0, SIDE, False, PRECISION)  # type: ignore[arg-type]
    place = tl.load(p_places + (o_row * (SIDE // 2))[:, None] + pair[None, :])
    size = images * channels.to(tl.int64)
    p_result = p_y + image * channels + o_channel[None, :]
    tl.store(p_result + place * size, y, mask=(place >= 0) & (o_channel < channels)[None, :])
    # Self-conjugate frequencies have no imaginary parts.
    o_own, o_channel = tl.arange(0, 4), first + tl.arange(0, CHANNELS)
    p_zero = p_y + image * channels + (count + o_own)[:, None] * size + o_channel[None, :]
    tl.store(p_zero, tl.zeros((4, CHANNELS), x.dtype), mask=(o_own < own)[:, None] & (o_channel < channels)[None, :])


@triton.jit
def _synthesize_kernel(
    p_table, p_places, p_x, p_bias, p_residual, p_y, factor: tl.float64, images, channels, height, width,
    y_row, y_column, y_image, y_channel,
    SCALED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    SIDE: tl.constexpr, CHANNELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The images y of the spectrum x, (2, F, images, channels), and what follows them."""
    blocks = tl.cdiv(channels, CHANNELS)
    image, first = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks * CHANNELS
    o_column, o_row = tl.arange(0, SIDE // 2 * CHANNELS), tl.arange(0, 2 * SIDE)
    pair, o_channel = o_column // CHANNELS, first + o_column % CHANNELS
    place = tl.load(p_places + (o_row * (SIDE // 2))[:, None] + pair[None, :])
    p_spectrum = p_x + image * channels + o_channel[None, :] + place * (images * channels.to(tl.int64))
    x = tl.load(p_spectrum, mask=(place >= 0) & (o_channel < channels)[None, :], other=0)
    z = _columns(p_table, x, pair == 0, SIDE, True, PRECISION)  # type: ignore[arg-type]
    z = tl.permute(tl.reshape(z, (2, SIDE, SIDE // 2, CHANNELS)), (2, 0, 1, 3))
    z = tl.reshape(z, (SIDE, SIDE * CHANNELS))
    y = tl.dot(_matrix(p_table, SIDE, True), z, input_precision=PRECISION, out_dtype=x.dtype)  # type: ignore[arg-type]

    o_x, o_plane = tl.arange(0, SIDE), tl.arange(0, SIDE * CHANNELS)
    o_y, o_channel = o_plane // CHANNELS, first + o_plane % CHANNELS
    mask = (o_x < width)[:, None] & ((o_y < height) & (o_channel < channels))[None, :]
    o_image = image * y_image + (o_x * y_column)[:, None] + (o_y * y_row + o_channel * y_channel)[None, :]
    y = finished(
        y, p_bias, p_residual, factor, o_image, mask, o_channel, channels, SCALED, BIAS, RESIDUAL, ACTIVATION
    )
    tl.store(p_y + o_image, y, mask=mask)


def fits(fft_size: Size, dtype: torch.dtype) -> bool:
    """Whether a transform of this size runs here."""
    return dtype == torch.float32 and max(fft_size) <= tables.PLANE


def analyse(x: Tensor, fft_size: Size, weighted: bool, dtype: torch.dtype, precision: str) -> Tensor:
    """The spectrum of the images x, at the origin of an image of the FFT size."""
    n, channels, height, width = x.shape
    matrices, places = tables.planes(fft_size, weighted, x.device)
    spectrum = x.new_empty(2, count_frequencies(fft_size), n, channels, dtype=dtype)
    triton_launch.launch(
        _analyse_kernel, (n * triton.cdiv(channels, _ANALYSED),), x.device, matrices, places, x, spectrum,
        n, channels, height, width, own_frequencies(fft_size), spectrum.shape[1], *strides(x),
        SIDE=tables.PLANE, CHANNELS=_ANALYSED, PRECISION=precision, num_warps=_WARPS,
    )  # fmt: skip
    return spectrum


def synthesize(spectrum: Tensor, fft_size: Size, y: Tensor, last: Finish, weighted: bool, precision: str) -> None:
    """Writes the images y of a spectrum, and what follows them."""
    n, channels, height, width = y.shape
    matrices, places = tables.planes(fft_size, weighted, y.device)
    triton_launch.launch(
        _synthesize_kernel, (n * triton.cdiv(channels, _SYNTHESIZED),), y.device, matrices, places, spectrum,
        *last.tensors(matrices), y, last.factor, n, channels, height, width, *strides(y), **last.constants(),
        SIDE=tables.PLANE, CHANNELS=_SYNTHESIZED, PRECISION=precision, num_warps=_WARPS,
    )  # fmt: skip


_SIZES = ("images", "channels", "height", "width")
_POINTERS = {"p_table": "*fp32", "p_places": "*i32"}


def _compilation(kernel: Any, axis: str, pointers: dict[str, str], more: dict[str, str], **constants: Any) -> Any:
    strides = tuple(f"{axis}_{name}" for name in ("row", "column", "image", "channel"))
    channels = _ANALYSED if kernel is _analyse_kernel else _SYNTHESIZED
    signature = _POINTERS | {name: f"*{kind}" for name, kind in pointers.items()} | more
    signature |= dict.fromkeys((*_SIZES, *strides), "i32")
    constants |= {"SIDE": tables.PLANE, "CHANNELS": channels, "PRECISION": "tf32x3", f"{axis}_channel": 1}
    return triton_launch.Compilation(kernel, signature, constants, _WARPS, (*_SIZES, *strides))


def compilations(images: str) -> list[triton_launch.Compilation]:
    """Both kernels for images of this type, the second with everything that may follow it."""
    spectrum = {"p_x": "fp32", "p_bias": "fp32", "p_residual": images, "p_y": images}
    return [
        _compilation(_analyse_kernel, "x", {"p_x": images, "p_y": "fp32"}, {"own": "i32", "count": "i32"}),
        *(
            _compilation(_synthesize_kernel, "y", spectrum, {"factor": "fp64"}, **constants)
            for constants in variants(images)
        ),
    ]
