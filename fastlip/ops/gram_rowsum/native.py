"""gram_rowsum in C++ (csrc/gram_rowsum): float32 and float64, any strides, one to three spatial dimensions."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.ops import _native
from fastlip.ops.gram_rowsum import sign_words

_NAMES = {torch.float32: "float32", torch.float64: "float64"}


def supports(weight: Tensor, psi: Tensor | None, groups: int) -> str:
    """Empty, or why these kernels cannot run."""
    if weight.dtype not in _NAMES:
        return f"no kernel for dtype {weight.dtype}"
    return _native.missing("gram_rowsum_forward_float32", weight.device.type)


def gram_rowsum_forward(weight: Tensor, psi: Tensor | None, groups: int) -> tuple[Tensor, Tensor]:
    """r, and the signs of v as bit planes."""
    r = weight.new_empty(groups * weight.shape[1])
    signs = weight.new_empty(sign_words(weight.shape, groups), dtype=torch.int32)
    psi = psi if psi is None else psi.contiguous()
    kernel = _native.kernel("gram_rowsum_forward_" + _NAMES[weight.dtype], weight.device.type)
    kernel(
        weight.data_ptr(),
        0 if psi is None else psi.data_ptr(),
        r.data_ptr(),
        signs.data_ptr(),
        *_geometry(weight, groups),
    )
    return r, signs


def gram_rowsum_backward(
    gradient: Tensor, weight: Tensor, psi: Tensor | None, r: Tensor, signs: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """The gradients for weight and psi; the latter is empty without psi."""
    weight_gradient = torch.empty_like(weight)
    psi_gradient = weight.new_empty(0 if psi is None else r.shape[0])
    gradient = gradient.contiguous()
    psi = psi if psi is None else psi.contiguous()
    kernel = _native.kernel("gram_rowsum_backward_" + _NAMES[weight.dtype], weight.device.type)
    kernel(
        gradient.data_ptr(),
        weight.data_ptr(),
        0 if psi is None else psi.data_ptr(),
        r.data_ptr(),
        signs.data_ptr(),
        weight_gradient.data_ptr(),
        psi_gradient.data_ptr(),
        *_geometry(weight, groups),
        *_padded(weight_gradient.stride(), 0),
    )
    return weight_gradient, psi_gradient


def _geometry(weight: Tensor, groups: int) -> tuple[int, ...]:
    """Groups, then the shape and the strides of weight with three spatial dimensions."""
    return (groups, *_padded(weight.shape, 1), *_padded(weight.stride(), 0))


def _padded(sizes: tuple[int, ...], fill: int) -> tuple[int, ...]:
    return (*sizes[:2], *(fill,) * (5 - len(sizes)), *sizes[2:])
