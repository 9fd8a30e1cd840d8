"""Triton passes over channels-last images and the halos that circular convolutions read around them.

A program computes a tile of pixels × channels of the extended result: each of its pixels reads the pixel of the image
that it repeats. So the halo costs no pass of its own, what lies in it is computed again, and no program reads what
another one writes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlip.kernels.common import triton_launch
from fastlip.kernels.common.padding import Pads

_ELEMENTS = 2048  # of a program's tile
SUMS = ("p_sums", "p_products")  # names of pointers to sums
_GEOMETRY = ("height", "width", "extended_height", "extended_width", "left", "top", "shift_y", "shift_x")


@triton.jit
def source_pixels(
    o_pixel, pixels, height, width, extended_height, extended_width, left, top, shift_y, shift_x, HALO: tl.constexpr
):
    """The pixel of the image at each pixel of the extended image, and whether that lies within: its own."""
    if HALO:
        row = o_pixel // extended_width
        image = row // extended_height
        extended_x, extended_y = o_pixel - row * extended_width, row - image * extended_height
        y, x = (extended_y + shift_y) % height, (extended_x + shift_x) % width
        inside = (extended_y - top == y) & (extended_x - left == x) & (o_pixel < pixels)
        return (image.to(tl.int64) * height + y) * width + x, inside
    return o_pixel.to(tl.int64), o_pixel < pixels


def tile(channels: int) -> tuple[int, int]:
    """Pixels and bytes (sixteen channels each) of a program."""
    count = min(4, triton.next_power_of_2(triton.cdiv(channels, 16)))
    return _ELEMENTS // (16 * count), count


@triton.jit
def widened(value):
    """A tile as it is computed with: sixteen-bit numbers in float32."""
    return value if value.dtype == tl.float64 else value.to(tl.float32)


def partial_sums(image: Tensor, halo: Pads, *count: int) -> Tensor:
    """Memory for the sums per channel of each program, or for several kinds of them: in at least float32."""
    shape = *count, triton.cdiv(_extended_pixels(image, halo), tile(image.shape[1])[0]), image.shape[1]
    return image.new_empty(shape, dtype=torch.promote_types(image.dtype, torch.float32))


def launch(kernel: triton.JITFunction, image: Tensor, halo: Pads, *pointers: Tensor, **constants: int) -> None:
    """Runs a kernel of this form over the extended form of an image."""
    left, right, top, bottom = halo
    _, channels, height, width = image.shape
    pixels, (step, count) = _extended_pixels(image, halo), tile(channels)
    geometry = height, width, top + height + bottom, left + width + right, left, top, -top % height, -left % width
    triton_launch.launch(
        kernel, (triton.cdiv(pixels, step), triton.cdiv(channels, 16 * count)), image.device,
        *pointers, pixels, channels, (channels // 2 + 7) // 8, *geometry,
        HALO=any(halo), PIXELS=step, BYTES=count, **constants,
    )  # fmt: skip


def _extended_pixels(image: Tensor, halo: Pads) -> int:
    left, right, top, bottom = halo
    n, _, height, width = image.shape
    return n * (top + height + bottom) * (left + width + right)


def compilation(kernel: triton.JITFunction, dtype: str, pointers: Sequence[str], channels: int, **constants: int):
    """How to compile a kernel of this form ahead of time."""
    step, count = tile(channels)
    signature = {name: "*u8" if name == "p_mask" else f"*{dtype}" for name in pointers}
    signature |= {name: "*fp32" for name in SUMS if name in pointers and dtype != "fp64"}
    signature |= dict.fromkeys(("pixels", "channels", "mask_bytes", *_GEOMETRY), "i32")
    constants |= {"PIXELS": step, "BYTES": count}
    return triton_launch.Compilation(kernel, signature, constants, divisible=("channels",))
