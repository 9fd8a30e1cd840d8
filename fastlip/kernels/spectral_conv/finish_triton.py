"""The last stage of a convolution in Triton: bias, residual and activation, before pixels are stored."""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportInvalidTypeForm=false
# Triton's own compiler reads the kernels: to pyright its constants are numbers, and its types are no types.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastlip.kernels.common import triton_launch

_PIXELS, _CHANNELS = 32, 32  # of a program, whatever the memory formats


class Finish(NamedTuple):
    """activation(factor z + bias), or activation(residual - factor z - bias).

    The residual has the strides of the result.
    """

    bias: Tensor | None = None
    residual: Tensor | None = None
    activation: str = "none"
    factor: float = 1.0

    def tensors(self, absent: Tensor) -> tuple[Tensor, Tensor]:
        """Bias and residual; ``absent`` in place of what there is not."""
        bias = absent if self.bias is None else self.bias.contiguous()
        return bias, absent if self.residual is None else self.residual

    def constants(self) -> dict[str, Any]:
        """The cases for which kernels are compiled."""
        present = {"BIAS": self.bias is not None, "RESIDUAL": self.residual is not None}
        return {"SCALED": self.factor != 1, **present, "ACTIVATION": self.activation}


@triton.jit
def finished(
    z, p_bias, p_residual, factor, o_y, mask, o_channel, channels, SCALED: tl.constexpr, BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """See :class:`Finish`. z is [rows, columns]; columns 2i and 2i + 1 are the channels 2j and 2j + 1 of a pixel."""
    if SCALED:
        z *= (tl.zeros((1, 1), tl.float64) + factor).to(z.dtype)
    if BIAS:
        z += tl.load(p_bias + o_channel, mask=o_channel < channels, other=0)[None, :]
    if RESIDUAL:
        z = tl.load(p_residual + o_y, mask=mask, other=0).to(z.dtype) - z
    if ACTIVATION == "relu":
        z = tl.where(z < 0, 0, z)
    if ACTIVATION == "maxmin":
        # A last channel without a partner stays as it is, since nothing is less than this.
        z = tl.where((o_channel < channels)[None, :], z, float("-inf"))
        a, b = tl.split(tl.reshape(z, (z.shape[0], z.shape[1] // 2, 2)))
        swap = b > a
        z = tl.reshape(tl.join(tl.where(swap, b, a), tl.where(swap, a, b)), (z.shape[0], z.shape[1]))
    return z


@triton.jit
def _finish_kernel(
    p_z, p_bias, p_residual, p_y, factor: tl.float64, channels, width, pixels,
    z_row, z_column, z_image, z_channel, y_row, y_column, y_image, y_channel,
    SCALED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """y of z, both (images, channels, rows, columns) of any strides."""
    blocks, tiles = tl.cdiv(channels, CHANNELS), tl.cdiv(pixels, PIXELS)
    image, tile = (tl.program_id(0) // (blocks * tiles)).to(tl.int64), tl.program_id(0) % (blocks * tiles)
    o_pixel = tile // blocks * PIXELS + tl.arange(0, PIXELS)
    o_channel = tile % blocks * CHANNELS + tl.arange(0, CHANNELS)
    mask = (o_pixel < pixels)[:, None] & (o_channel < channels)[None, :]
    row, column = o_pixel // width, o_pixel % width
    o_z = image * z_image + (row * z_row + column * z_column)[:, None] + (o_channel * z_channel)[None, :]
    o_y = image * y_image + (row * y_row + column * y_column)[:, None] + (o_channel * y_channel)[None, :]
    z = tl.load(p_z + o_z, mask=mask, other=0)
    z = finished(z, p_bias, p_residual, factor, o_y, mask, o_channel, channels, SCALED, BIAS, RESIDUAL, ACTIVATION)
    tl.store(p_y + o_y, z, mask=mask)


def strides(x: Tensor) -> tuple[int, int, int, int]:
    """Strides of rows, columns, images and channels."""
    image, channel, row, column = x.stride()
    return row, column, image, channel


def finish(z: Tensor, y: Tensor, last: Finish) -> None:
    """Writes y, which may have another memory format and type than z."""
    n, channels, height, width = y.shape
    tiles = triton.cdiv(height * width, _PIXELS) * triton.cdiv(channels, _CHANNELS)
    triton_launch.launch(
        _finish_kernel, (n * tiles,), y.device, z, *last.tensors(z), y, last.factor,
        channels, width, height * width, *strides(z), *strides(y), **last.constants(),
        PIXELS=_PIXELS, CHANNELS=_CHANNELS,
    )  # fmt: skip


def variants(images: str) -> list[dict[str, Any]]:
    """Constants of the last stages for images of a type: without anything, with a bias, and after fixed matrices."""
    plain = {"SCALED": False, "BIAS": True, "RESIDUAL": False, "ACTIVATION": "none"}
    found = [plain | {"BIAS": False}, plain]
    if images in ("fp32", "fp64"):
        maxmin = plain | {"ACTIVATION": "maxmin"}
        found += [maxmin, plain | {"ACTIVATION": "relu"}, maxmin | {"SCALED": True, "RESIDUAL": True}]
    return found


def _compilation(dtype: str, images: str, constants: dict[str, Any]) -> triton_launch.Compilation:
    axes = tuple(f"{tensor}_{axis}" for tensor in "zy" for axis in ("row", "column", "image", "channel"))
    integers = ("channels", "width", "pixels", *axes)
    signature = {"p_z": f"*{dtype}", "p_bias": f"*{dtype}", "p_residual": f"*{images}", "p_y": f"*{images}"}
    signature |= {"factor": "fp64"} | dict.fromkeys(integers, "i32")
    constants = constants | {"z_column": 1, "y_channel": 1, "PIXELS": _PIXELS, "CHANNELS": _CHANNELS}
    return triton_launch.Compilation(_finish_kernel, signature, constants, divisible=integers)


_TYPES = ("fp32", "fp32"), ("fp64", "fp64"), ("fp32", "fp16"), ("fp32", "bf16")
AOT = [_compilation(dtype, images, constants) for dtype, images in _TYPES for constants in variants(images)]
