"""gram_rowsum in C++ (csrc/gram_rowsum): float32 and float64, any strides, one to three spatial dimensions."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from fastlip.ops import _native
from fastlip.ops.gram_rowsum import sign_words

_native.require()

_NAMES = {torch.float32: "float32", torch.float64: "float64"}


def supports(weight: Tensor, psi: Tensor | None, groups: int) -> str:
    """Empty, or why these kernels cannot run."""
    if weight.dtype not in _NAMES:
        return f"no kernel for dtype {weight.dtype}"
    return _native.missing("gram_rowsum_forward_float32", weight.device.type)


def gram_rowsum_forward(weight: Tensor, psi: Tensor | None, groups: int) -> tuple[Tensor, Tensor]:
    """r, and the signs of v as bit planes."""
    geometry, words = _geometry(weight.shape, weight.stride(), groups)
    r = weight.new_empty(groups * weight.shape[1])
    signs = torch.empty(words, dtype=torch.int32, device=weight.device)
    psi = psi if psi is None else psi.contiguous()
    kernel = _kernel("forward", weight.dtype, weight.device.type)
    kernel(weight.data_ptr(), _address(psi), r.data_ptr(), signs.data_ptr(), *geometry)
    return r, signs


def gram_rowsum_backward(
    gradient: Tensor, weight: Tensor, psi: Tensor | None, r: Tensor | None, signs: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """The gradients for weight and psi; the latter is empty without psi."""
    weight_gradient = torch.empty_like(weight)
    psi_gradient = weight.new_empty(0 if psi is None else psi.shape[0])
    gradient, psi = gradient.contiguous(), psi if psi is None else psi.contiguous()
    kernel = _kernel("backward", weight.dtype, weight.device.type)
    kernel(
        gradient.data_ptr(),
        weight.data_ptr(),
        _address(psi),
        _address(r),
        signs.data_ptr(),
        weight_gradient.data_ptr(),
        psi_gradient.data_ptr(),
        *_geometry(weight.shape, weight.stride(), groups)[0],
        *_gradient_strides(weight_gradient.stride()),
    )
    return weight_gradient, psi_gradient


def _address(vector: Tensor | None) -> int:
    return 0 if vector is None else vector.data_ptr()


@lru_cache
def _kernel(name: str, dtype: torch.dtype, device_type: str) -> Callable[..., None]:
    return _native.kernel(f"gram_rowsum_{name}_{_NAMES[dtype]}", device_type)


@lru_cache(maxsize=256)
def _geometry(shape: torch.Size, stride: tuple[int, ...], groups: int) -> tuple[tuple[int, ...], int]:
    """What kernels need to know about the weight (with three spatial dimensions), and the words of its signs."""
    return (groups, *_padded(shape, 1), *_padded(stride, 0)), sign_words(shape, groups)


@lru_cache(maxsize=256)
def _gradient_strides(stride: tuple[int, ...]) -> tuple[int, ...]:
    return _padded(stride, 0)


def _padded(sizes: tuple[int, ...], fill: int) -> tuple[int, ...]:
    return (*sizes[:2], *(fill,) * (5 - len(sizes)), *sizes[2:])
