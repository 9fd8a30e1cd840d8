"""Brings images to the channels on which a square operator acts, and back to those asked for. Both are 1-Lipschitz."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def space_to_depth(x: Tensor, stride: tuple[int, int], groups: int) -> Tensor:
    """Moves each stride x stride patch into channels: (..., c, h, w) -> (..., c s s, ceil(h/s), ceil(w/s)).

    Sides that the stride does not divide are padded with zeros at their end. Within a group the position in the
    patch stands before the channel.
    """
    if stride == (1, 1):
        return x
    down, across = stride
    bottom, right = -x.shape[-2] % down, -x.shape[-1] % across
    x = F.pad(x, (0, right, 0, bottom)) if bottom or right else x
    patches = x.unflatten(-3, (groups, -1)).unflatten(-1, (-1, across)).unflatten(-3, (-1, down))
    return patches.movedim((-3, -1), (-5, -4)).flatten(-6, -3)


def pad_channels(x: Tensor, width: int, groups: int) -> Tensor:
    """Appends zero channels to each group, up to ``width`` channels in total."""
    if x.shape[-3] == width:
        return x
    channels = x.unflatten(-3, (groups, -1))
    return F.pad(channels, (0, 0, 0, 0, 0, width // groups - channels.shape[-3])).flatten(-4, -3)


def first_channels(x: Tensor, channels: int, groups: int) -> Tensor:
    """Keeps the first channels of each group, ``channels`` in total."""
    if x.shape[-3] == channels:
        return x
    return x.unflatten(-3, (groups, -1))[..., : channels // groups, :, :].flatten(-4, -3)
