"""MaxMin in C++ and CUDA (csrc/maxmin): float64, float32, float16 and bfloat16, any shape."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.ops import _native
from fastlip.ops.maxmin import FORMATS, dense_format, layout, mask_bytes

_native.require()

_NAMES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


def supports(x: Tensor, pairing: str, dim: int) -> str:
    """Empty, or why these kernels cannot run."""
    if x.dtype not in _NAMES:
        return f"no kernel for dtype {x.dtype}"
    return _native.missing("maxmin_forward_float32", x.device.type)


def maxmin_forward(x: Tensor, pairing: str, dim: int) -> tuple[Tensor, Tensor]:
    """Sorted pairs, and the mask of those that were swapped."""
    x = x.contiguous(memory_format=dense_format(x, dim))
    shape = layout(x, dim)
    mask = torch.empty(mask_bytes(*shape), dtype=torch.uint8, device=x.device)
    return _launch("maxmin_forward_", x, mask, shape, pairing), mask


def maxmin_swap(x: Tensor, mask: Tensor, channels_last: bool, pairing: str, dim: int) -> Tensor:
    """x with the masked pairs swapped."""
    x = x.contiguous(memory_format=FORMATS[channels_last])
    return _launch("maxmin_swap_", x, mask, layout(x, dim), pairing)


def _launch(name: str, x: Tensor, mask: Tensor, shape: tuple[int, int, int], pairing: str) -> Tensor:
    y = torch.empty_like(x)
    pointers = x.data_ptr(), y.data_ptr(), mask.data_ptr()
    _native.launch(name + _NAMES[x.dtype], x.device, *pointers, *shape, pairing == "halves")
    return y
