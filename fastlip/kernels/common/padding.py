"""Zero and circular padding of images; circular padding wraps by index and may exceed the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Pads = tuple[int, int, int, int]  # left, right, top, bottom


def same_pads(kernel_size: tuple[int, ...], dilation: tuple[int, ...]) -> Pads:
    """The padding that keeps an image's size; an even kernel has the odd element after the image."""
    (height, width), (vertical, horizontal) = kernel_size, dilation
    down, across = vertical * (height - 1), horizontal * (width - 1)
    return across // 2, across - across // 2, down // 2, down - down // 2


def pad(x: Tensor, pads: Pads, mode: str) -> Tensor:
    """Pads the last two dimensions by (left, right, top, bottom); circular padding may exceed the image."""
    if not any(pads):
        return x
    if mode == "zeros":
        return F.pad(x, pads)
    left, right, top, bottom = pads
    height, width = x.shape[-2:]
    if max(left, right) <= width and max(top, bottom) <= height and x.numel() > 0:
        return F.pad(x, pads, mode="circular")
    rows = torch.arange(-top, height + bottom, device=x.device) % max(height, 1)
    columns = torch.arange(-left, width + right, device=x.device) % max(width, 1)
    return x[..., rows, :][..., columns]
