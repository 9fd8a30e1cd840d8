"""Truncated exponential of a convolution (Singla, Feizi 2021), by Horner's rule."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastlip.ops._padding import pad


def conv_exp(
    x: Tensor, kernel: Tensor, terms: int, dilation: tuple[int, int], groups: int, padding_mode: str
) -> Tensor:
    """x + K(x + K(x + ...)/2)/1, innermost first."""
    y = x
    for t in range(terms, 0, -1):
        y = x + _convolve(y, kernel / t, dilation, groups, padding_mode)
    return y


def _convolve(x: Tensor, kernel: Tensor, dilation: tuple[int, int], groups: int, padding_mode: str) -> Tensor:
    vertical, horizontal = (d * (k // 2) for d, k in zip(dilation, kernel.shape[2:], strict=True))
    if padding_mode == "zeros":
        return F.conv2d(x, kernel, padding=(vertical, horizontal), dilation=dilation, groups=groups)
    x = pad(x, (horizontal, horizontal, vertical, vertical), padding_mode)
    return F.conv2d(x, kernel, dilation=dilation, groups=groups)
