"""MaxMin in C++ and CUDA (csrc/maxmin): float64, float32, float16 and bfloat16, any shape."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.common.binding import CPU
from fastlip.kernels.common.sizes import surely_below
from fastlip.kernels.maxmin.api import FORMATS, dense_format, layout, layout_of

binding.require()

_FORWARD = {
    torch.float64: "maxmin_forward_float64",
    torch.float32: "maxmin_forward_float32",
    torch.float16: "maxmin_forward_float16",
    torch.bfloat16: "maxmin_forward_bfloat16",
}
_SWAP = {dtype: name.replace("forward", "swap") for dtype, name in _FORWARD.items()}
_kept_layout = lru_cache(maxsize=1024)(layout_of)
_WORTHWHILE = 2**14  # numbers, in a compiled program on the CPU


def supports(x: Tensor, pairing: str, dim: int) -> str:
    """Empty, or why these kernels cannot run."""
    name = _FORWARD.get(x.dtype)
    if name is None:
        return f"no kernel for dtype {x.dtype}"
    return "" if x.is_cpu and name in CPU else binding.missing(name, x.device)


def unprofitable_compiled(x: Tensor, pairing: str, dim: int) -> str:
    """Empty, or why the reference is faster in a program that is being compiled."""
    if not x.is_cuda and surely_below(x.numel(), _WORTHWHILE):
        return "the compiler's own code for so few numbers takes less time than a call"
    return ""


def maxmin_forward(x: Tensor, pairing: str, dim: int) -> tuple[Tensor, Tensor]:
    """Sorted pairs, and the mask of those that were swapped."""
    x = x if x.is_contiguous() else x.contiguous(memory_format=dense_format(x, dim))
    outer, channels, inner, size = _kept_layout(x.shape, dim, not x.is_contiguous())
    mask, y = x.new_empty(size, dtype=torch.uint8), torch.empty_like(x)
    name = _FORWARD[x.dtype]
    arguments = x.data_ptr(), y.data_ptr(), mask.data_ptr(), outer, channels, inner, pairing == "halves"
    if x.is_cpu:
        CPU[name](*arguments)
    else:
        binding.launch(name, x.device, *arguments)
    return y, mask


def maxmin_swap(x: Tensor, mask: Tensor, channels_last: bool, pairing: str, dim: int) -> Tensor:
    """x with the masked pairs swapped."""
    x = x.contiguous(memory_format=FORMATS[channels_last])
    y = torch.empty_like(x)
    addresses, sizes = (x.data_ptr(), y.data_ptr(), mask.data_ptr()), layout(x, dim)[:3]
    binding.launch(_SWAP[x.dtype], x.device, *addresses, *sizes, pairing == "halves")
    return y
