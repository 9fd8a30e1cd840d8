"""pixel_unshuffle in Triton: channels-last images, whose channels may be a slice."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlip.kernels.common import triton_launch
from fastlip.kernels.pixel_unshuffle.api import _fake_shuffle, _fake_unshuffle

_DTYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_BYTES = 16384  # of a program's tile: with more, float64 spills on sm_86
_ELEMENTS = 4096  # at most, in a tile
_POSITIONS, _CHANNELS = 64, 256  # at most, in a tile


@triton.jit
def _shuffle_kernel(
    p_from, p_to, pixels, channels, height, width, channel_tiles, image_stride, row_stride, pixel_stride,
    FACTOR: tl.constexpr, INVERSE: tl.constexpr,
    PIXELS: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Moves, for each pixel of the small image, a tile of positions in its patch × channels of the large image.

    The small image is dense, the large one has the strides. Each is read or written along its own channels.
    """
    o_pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    o_position = tl.program_id(1) // channel_tiles * POSITIONS + tl.arange(0, POSITIONS)
    o_channel = tl.program_id(1) % channel_tiles * CHANNELS + tl.arange(0, CHANNELS)
    m_pixel, m_position, m_channel = o_pixel < pixels, o_position < FACTOR * FACTOR, o_channel < channels
    row = o_pixel // width
    image = (row // height).to(tl.int64)
    x, y = (o_pixel % width).to(tl.int64), (row % height).to(tl.int64)
    o_patch = image * image_stride + y * FACTOR * row_stride + x * FACTOR * pixel_stride
    o_within = (o_position // FACTOR).to(tl.int64) * row_stride + (o_position % FACTOR).to(tl.int64) * pixel_stride

    o_large = o_patch[:, None, None] + o_within[None, :, None] + o_channel[None, None, :]
    m_large = m_pixel[:, None, None] & m_position[None, :, None] & m_channel[None, None, :]
    o_small = (o_pixel.to(tl.int64) * channels)[:, None, None] * (FACTOR * FACTOR)
    o_small += (o_channel * FACTOR * FACTOR)[None, :, None] + o_position[None, None, :]
    m_small = m_pixel[:, None, None] & m_channel[None, :, None] & m_position[None, None, :]
    if INVERSE:
        value = tl.load(p_from + o_small, mask=m_small)  # [PIXELS, CHANNELS, POSITIONS]
        tl.store(p_to + o_large, tl.permute(value, (0, 2, 1)), mask=m_large)
    else:
        value = tl.load(p_from + o_large, mask=m_large)  # [PIXELS, POSITIONS, CHANNELS]
        tl.store(p_to + o_small, tl.permute(value, (0, 2, 1)), mask=m_small)


def supports(x: Tensor, factor: int) -> str:
    """Empty, or why this kernel cannot run."""
    if x.dtype not in _DTYPES or x.dim() != 4:
        return f"no kernel for dtype {x.dtype} with {x.dim()} dimensions"
    return triton_launch.why_not(x, _shuffle_kernel)


def unprofitable(x: Tensor, factor: int) -> str:
    """Empty, or why torch's function does better."""
    return "the image is not channels-last" if x.stride(1) != 1 or x.shape[1] == 1 else ""


def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """(n, c, f h, f w) -> (n, c f², h, w)."""
    if x.stride(1) != 1:
        x = x.contiguous(memory_format=torch.channels_last)
    y = _fake_unshuffle(x, factor, "triton")
    _launch(x, y, y, x, factor, inverse=False)
    return y


def pixel_shuffle(y: Tensor, factor: int) -> Tensor:
    """The adjoint."""
    y = y.contiguous(memory_format=torch.channels_last)
    x = _fake_shuffle(y, factor, "triton")
    _launch(y, x, y, x, factor, inverse=True)
    return x


def _launch(source: Tensor, target: Tensor, small: Tensor, large: Tensor, factor: int, inverse: bool) -> None:
    if source.numel() == 0:
        return
    n, _, height, width = small.shape
    channels = large.shape[1]
    pixels, positions, columns = _tile(factor, channels, source.element_size())
    channel_tiles = triton.cdiv(channels, columns)
    grid = triton.cdiv(n * height * width, pixels), triton.cdiv(factor * factor, positions) * channel_tiles
    triton_launch.launch(
        _shuffle_kernel, grid, source.device, source, target, n * height * width, channels, height, width,
        channel_tiles, large.stride(0), large.stride(2), large.stride(3),
        FACTOR=factor, INVERSE=inverse, PIXELS=pixels, POSITIONS=positions, CHANNELS=columns,
    )  # fmt: skip


def _tile(factor: int, channels: int, itemsize: int) -> tuple[int, int, int]:
    """Pixels, positions and channels of a program."""
    positions = min(_POSITIONS, triton.next_power_of_2(factor * factor))
    columns = min(_CHANNELS, triton.next_power_of_2(channels))
    return max(1, min(_ELEMENTS, _BYTES // itemsize) // (positions * columns)), positions, columns


def _compilation(dtype: torch.dtype, inverse: bool, factor: int, channels: int) -> triton_launch.Compilation:
    pixels, positions, columns = _tile(factor, channels, dtype.itemsize)
    strides = "image_stride", "row_stride", "pixel_stride"
    signature: dict[str, str] = dict.fromkeys(("p_from", "p_to"), f"*{_DTYPES[dtype]}")
    signature |= dict.fromkeys(("pixels", "channels", "height", "width", "channel_tiles", *strides), "i32")
    constants = {"FACTOR": factor, "INVERSE": inverse, "PIXELS": pixels, "POSITIONS": positions, "CHANNELS": columns}
    divisible = "pixels", "channels", *strides
    return triton_launch.Compilation(_shuffle_kernel, signature, constants, divisible=divisible)


AOT = [
    _compilation(dtype, inverse, factor, channels)
    for dtype in _DTYPES
    for inverse in (False, True)
    for factor, channels in ((2, 32), (2, 256), (3, 16), (4, 3))
]
