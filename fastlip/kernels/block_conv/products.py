"""block_conv by torch's matrix products, one for all taps of a factor, for what csrc/block_conv does not take.

The backward recomputes the partial kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.common.precision import full_precision


def forward(kernel: Tensor, projectors: Tensor, axes: Sequence[int]) -> Tensor:
    """The kernel (..., kh, kw, m, c)."""
    with full_precision(kernel.device):
        *_, K = _partial_kernels(kernel, projectors, axes)
        return _new(K, axes).reshape(*kernel.shape[:-4], *K.shape[1:])


def backward(gradient: Tensor, kernel: Tensor, projectors: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The gradients of the kernel and of the projectors."""
    with full_precision(kernel.device):
        last = len(axes) - 1
        kernels = _partial_kernels(kernel, projectors[..., :last, :, :], axes[:last]) if axes else []
        matrices = _batched(projectors, 3)
        G = _batched(gradient, 4)
        for_projectors = torch.empty_like(matrices, memory_format=torch.contiguous_format)
        for i in reversed(range(len(axes))):
            K = kernels.pop()
            to_product, to_rest = (G.narrow(1 + axes[i], start, K.shape[1 + axes[i]]) for start in (0, 1))
            D = (to_product - to_rest).flatten(1, 3)
            for_projectors[:, i] = torch.bmm(K.flatten(1, 3).mH, D)
            G = torch.baddbmm(to_rest.flatten(1, 3), D, matrices[:, i].mH).view_as(K)
        return _new(G, axes).reshape(kernel.shape), for_projectors.reshape(projectors.shape)


def _partial_kernels(kernel: Tensor, projectors: Tensor, axes: Sequence[int]) -> list[Tensor]:
    """The kernels (b, h, w, m, c) before the first factor and after each."""
    kernels = [_batched(kernel, 4)]
    for P, axis in zip(_batched(projectors, 3).unbind(1), axes, strict=True):
        K = kernels[-1]
        KP = torch.bmm(K.flatten(1, 3), P).view_as(K)
        longer = F.pad(KP, (0, 0, 0, 0, 0, axis, 0, 1 - axis))
        longer.narrow(1 + axis, 1, K.shape[1 + axis]).add_(K - KP)
        kernels.append(longer)
    return kernels


def _new(tensor: Tensor, axes: Sequence[int]) -> Tensor:
    """Returns a copy if there are no factors: an operator must not return its input."""
    return tensor if axes else tensor.clone(memory_format=torch.contiguous_format)


def _batched(tensor: Tensor, dims: int) -> Tensor:
    """The tensor with its leading dimensions (any number of them) flattened into one."""
    count = tensor.shape[:-dims].numel()
    return tensor.reshape(count, *tensor.shape[-dims:])
