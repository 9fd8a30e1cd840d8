"""gram_rowsum in C++ (csrc/gram_rowsum): float32 and float64, any strides, one to three spatial dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from fastlip.kernels.common import binding
from fastlip.kernels.common.binding import CPU
from fastlip.kernels.gram_rowsum.api import sign_words

binding.require()

_LITTLE = 1 << 15  # products, below which a pass gains less from wide vectors than it loses by the core's lower clock
_NAMES = {torch.float32: "float32", torch.float64: "float64"}


def supports(weight: Tensor, psi: Tensor | None, groups: int) -> str:
    """Empty, or why these kernels cannot run."""
    if weight.dtype not in _NAMES:
        return f"no kernel for dtype {weight.dtype}"
    name = "gram_rowsum_forward_float32"
    return "" if weight.is_cpu and name in CPU else binding.missing(name, weight.device)


class _Plan(NamedTuple):
    """Sizes of a weight that a call needs: one look-up instead of many small computations."""

    forward: Callable[..., None]
    backward: Callable[..., None]
    channels: int
    words: int
    geometry: tuple[int, ...]
    gradient_strides: tuple[int, ...]


def gram_rowsum_forward(weight: Tensor, psi: Tensor | None, groups: int) -> tuple[Tensor, Tensor]:
    """r, and the signs of v as bit planes."""
    plan = _plan(weight.shape, weight.stride(), weight.dtype, groups)
    r = weight.new_empty(plan.channels)
    signs = weight.new_empty(plan.words, dtype=torch.int32)
    psi = psi if psi is None else psi.contiguous()
    address = 0 if psi is None else psi.data_ptr()
    plan.forward(weight.data_ptr(), address, r.data_ptr(), signs.data_ptr(), *plan.geometry)
    return r, signs


def gram_rowsum_backward(
    gradient: Tensor, weight: Tensor, psi: Tensor | None, r: Tensor | None, signs: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """The gradients for weight and psi; the latter is empty without psi."""
    plan = _plan(weight.shape, weight.stride(), weight.dtype, groups)
    weight_gradient = torch.empty_like(weight)
    psi_gradient = weight.new_empty(0 if psi is None else plan.channels)
    gradient, psi = gradient.contiguous(), psi if psi is None else psi.contiguous()
    plan.backward(
        gradient.data_ptr(),
        weight.data_ptr(),
        _address(psi),
        _address(r),
        signs.data_ptr(),
        weight_gradient.data_ptr(),
        psi_gradient.data_ptr(),
        *plan.geometry,
        *plan.gradient_strides,
    )
    return weight_gradient, psi_gradient


def _address(vector: Tensor | None) -> int:
    return 0 if vector is None else vector.data_ptr()


@lru_cache(maxsize=256)
def _plan(shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype, groups: int) -> _Plan:
    # The strides that empty_like gives the gradient; kernels see every kernel as three-dimensional.
    gradient_stride = torch.empty_like(torch.empty_strided(shape, stride, device="meta")).stride()
    products = shape.numel() * math.prod(shape[1:])
    find = binding.narrow_kernel if products <= _LITTLE else _kernel
    return _Plan(
        find(f"gram_rowsum_forward_{_NAMES[dtype]}"),
        find(f"gram_rowsum_backward_{_NAMES[dtype]}"),
        groups * shape[1],
        sign_words(shape, groups),
        (groups, *_padded(shape, 1), *_padded(stride, 0)),
        _padded(gradient_stride, 0),
    )


def _kernel(name: str) -> Callable[..., None]:
    return binding.kernel(name, torch.device("cpu"))


def _padded(sizes: tuple[int, ...], fill: int) -> tuple[int, ...]:
    return (*sizes[:2], *(fill,) * (5 - len(sizes)), *sizes[2:])
