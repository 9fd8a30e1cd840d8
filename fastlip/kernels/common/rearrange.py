"""Space to depth: patches of images become channels, an isometry."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


def space_to_depth(x: Tensor, stride: Pair, groups: int = 1, position_first: bool = False) -> Tensor:
    """(..., c, h, w) -> (..., c sh sw, ceil(h / sh), ceil(w / sw)); sides are padded with zeros at their end.

    Args:
        x: images.
        stride: (sh, sw), height and width of a patch.
        groups: groups of channels; the patches of each are next to each other in the result.
        position_first: within a group, whether the position in the patch comes before the channel, or after it.
    """
    if stride == (1, 1):
        return x
    bottom, right = -x.shape[-2] % stride[0], -x.shape[-1] % stride[1]
    x = F.pad(x, (0, right, 0, bottom)) if bottom or right else x
    return patches_to_channels(x, stride, groups, position_first)


def patches_to_channels(x: Tensor, stride: Pair, groups: int = 1, position_first: bool = False) -> Tensor:
    """:func:`space_to_depth` for sides that the stride divides."""
    # (group, channel, h / sh, sh, w / sw, sw)
    patches = x.unflatten(-3, (groups, -1)).unflatten(-1, (-1, stride[1])).unflatten(-3, (-1, stride[0]))
    return patches.movedim((-3, -1), (-5, -4) if position_first else (-4, -3)).flatten(-6, -3)
