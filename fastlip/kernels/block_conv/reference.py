"""Block convolution (Li et al. 2019), one projector at a time: K <- [K P, K - K P] along the projector's axis."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def block_conv(kernel: Tensor, projectors: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Makes the kernel (..., kh, kw, m, c) from (..., th, tw, m, c) and projectors (..., n, c, c)."""
    K = kernel
    for P, axis in zip(projectors.unbind(-3), axes, strict=True):
        KP = K @ P[..., None, None, :, :]
        K = _after(KP, axis) + _before(K - KP, axis)
    return K


def _after(K: Tensor, axis: int) -> Tensor:
    """K with a tap of zeros appended."""
    return F.pad(K, (0, 0, 0, 0, 0, axis, 0, 1 - axis))


def _before(K: Tensor, axis: int) -> Tensor:
    """K with a tap of zeros in front of it."""
    return F.pad(K, (0, 0, 0, 0, axis, 0, 1 - axis, 0))


def alternating_axes(kernel_size: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a kernel's factors: width and height in turn, as the 2 x 2 blocks have them, then the longer."""
    height, width = kernel_size[0] - 1, kernel_size[1] - 1
    both = min(height, width)
    return (1, 0) * both + (0,) * (height - both) + (1,) * (width - both)
