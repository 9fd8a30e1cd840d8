"""block_conv in C++ (csrc/block_conv): real kernels on the CPU. Others by torch's products (products.py)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from fastlip.kernels.block_conv import products
from fastlip.kernels.block_conv.api import kernel_shape
from fastlip.kernels.common import binding
from fastlip.kernels.common.dispatch import registered

binding.require()

_NAMES = {torch.float32: "float32", torch.float64: "float64"}
# Channels at which products are nearly all of the time: then recomputing partial kernels is what tells.
_LARGE = 256


def supports(kernel: Tensor, projectors: Tensor, axes: Sequence[int]) -> str:
    """Empty, or why these products cannot run."""
    if kernel.device.type == "meta":
        return "no products on the meta device"
    if kernel.dtype.itemsize < 4:
        return f"sixteen-bit products are not exact enough for {kernel.dtype}"
    return binding.missing("block_conv_forward_float32", kernel.device) if _in_cpp(kernel) else ""


def unprofitable(kernel: Tensor, projectors: Tensor, axes: Sequence[int]) -> str:
    """Empty, or why the reference is faster."""
    if kernel.is_complex() and kernel.device.type == "cpu":
        return "complex products are torch's, and recomputing partial kernels costs more than it saves"
    if kernel.is_cuda and not registered["block_conv"].why_not("triton", kernel, projectors, axes):
        return "Triton's kernels take one launch for each factor"
    if torch.compiler.is_compiling() and kernel.shape[-1] >= _LARGE:
        return "compiled, the reference keeps its partial kernels and has fewer products to compute"
    return "" if axes and kernel.numel() else "there is nothing to multiply"


def block_conv_forward(kernel: Tensor, projectors: Tensor, axes: Sequence[int]) -> Tensor:
    """The kernel (..., kh, kw, m, c)."""
    if not _in_cpp(kernel) or not axes:
        return products.forward(kernel, projectors, axes)
    kernel, projectors = kernel.contiguous(), projectors.contiguous()
    result = kernel.new_empty(kernel_shape(kernel, axes))
    _launch("block_conv_forward", kernel, axes, kernel, projectors, result)
    return result


def block_conv_backward(
    gradient: Tensor, kernel: Tensor, projectors: Tensor, axes: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The gradients of the kernel and of the projectors."""
    if not _in_cpp(kernel) or not axes:
        return products.backward(gradient, kernel, projectors, axes)
    gradient, kernel, projectors = gradient.contiguous(), kernel.contiguous(), projectors.contiguous()
    for_kernel, for_projectors = torch.empty_like(kernel), torch.empty_like(projectors)
    _launch("block_conv_backward", kernel, axes, gradient, kernel, projectors, for_kernel, for_projectors)
    return for_kernel, for_projectors


def _in_cpp(kernel: Tensor) -> bool:
    return kernel.dtype in _NAMES and kernel.device.type == "cpu"


def _launch(name: str, kernel: Tensor, axes: Sequence[int], *tensors: Tensor) -> None:
    height, width, rows, columns = kernel.shape[-4:]
    pointers = [tensor.data_ptr() for tensor in (*tensors, _numbers(tuple(axes)))]
    sizes = len(axes), kernel.shape[:-4].numel(), height, width, rows, columns
    binding.launch(f"{name}_{_NAMES[kernel.dtype]}", kernel.device, *pointers, *sizes)


@cache
def _numbers(axes: tuple[int, ...]) -> Tensor:
    return torch.tensor(axes, dtype=torch.int64)
