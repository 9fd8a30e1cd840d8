"""Zero and circular padding of images; circular padding wraps by index and may exceed the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Pads = tuple[int, ...]  # left, right, top, bottom, and of volumes front, back


def same_pads(kernel_size: tuple[int, ...], dilation: tuple[int, ...]) -> Pads:
    """The padding that keeps an image's size; an even kernel has the odd element after the image."""
    if len(kernel_size) != 2:
        reaches = [distance * (taps - 1) for taps, distance in zip(kernel_size, dilation, strict=True)]
        return tuple(side for reach in reversed(reaches) for side in (reach // 2, reach - reach // 2))
    (height, width), (vertical, horizontal) = kernel_size, dilation
    down, across = vertical * (height - 1), horizontal * (width - 1)
    return across // 2, across - across // 2, down // 2, down - down // 2


def pad(x: Tensor, pads: Pads, mode: str) -> Tensor:
    """Pads the last dimensions by (left, right, top, bottom, ...); circular padding may exceed the image."""
    if not any(pads):
        return x
    if mode == "zeros":
        return F.pad(x, pads)
    for axis in range(0, len(pads), 2):
        if max(pads[axis], pads[axis + 1]) > x.shape[-1 - axis // 2] or x.numel() == 0:
            return _pad_by_index(x, pads)
    return F.pad(x, pads, mode="circular")


def _pad_by_index(x: Tensor, pads: Pads) -> Tensor:
    """Circular padding that exceeds the image, which torch repeats only once."""
    for axis, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True), 1):
        side = x.shape[-axis]
        x = x.index_select(-axis, torch.arange(-before, side + after, device=x.device) % max(side, 1))
    return x
