"""Space to depth: patches of images or volumes become channels, an isometry."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

Sizes = tuple[int, ...]


def space_to_depth(x: Tensor, stride: Sizes, groups: int = 1, position_first: bool = False) -> Tensor:
    """(..., c, h, w) -> (..., c sh sw, ceil(h / sh), ceil(w / sw)); sides are padded with zeros at their end.

    Args:
        x: images, or volumes (..., c, d, h, w) where the stride has three entries.
        stride: (sh, sw), height and width of a patch, or (sd, sh, sw).
        groups: groups of channels; the patches of each are next to each other in the result.
        position_first: within a group, whether the position in the patch comes before the channel, or after it.
    """
    if max(stride) == 1:
        return x
    if len(stride) == 2:
        bottom, right = -x.shape[-2] % stride[0], -x.shape[-1] % stride[1]
        x = F.pad(x, (0, right, 0, bottom)) if bottom or right else x
    else:
        x = F.pad(x, [missing for at in (-1, -2, -3) for missing in (0, -x.shape[at] % stride[at])])
    return patches_to_channels(x, stride, groups, position_first)


def patches_to_channels(x: Tensor, stride: Sizes, groups: int = 1, position_first: bool = False) -> Tensor:
    """:func:`space_to_depth` for sides that the stride divides."""
    axes = len(stride)
    patches = x.unflatten(-1 - axes, (groups, -1))
    for axis in range(-1, -1 - axes, -1):  # the axes after it take two dimensions each
        patches = patches.unflatten(2 * axis + 1, (-1, stride[axis]))
    # (group, channel, h / sh, sh, w / sw, sw)
    first = -2 * axes - position_first
    patches = patches.movedim(tuple(range(1 - 2 * axes, 0, 2)), tuple(range(first, first + axes)))
    return patches.flatten(-2 - 2 * axes, -1 - axes)


def channels_to_patches(x: Tensor, stride: Sizes) -> Tensor:
    """Undoes :func:`space_to_depth` of one group, where the channel comes before the position in the patch."""
    axes = len(stride)
    patches = x.unflatten(-1 - axes, (-1, *stride))  # (channel, sh, sw, h, w)
    patches = patches.movedim(tuple(range(-2 * axes, -axes)), tuple(range(1 - 2 * axes, 0, 2)))
    for axis in range(-axes, 0):  # the axes after it take two dimensions each
        patches = patches.flatten(2 * axis, 2 * axis + 1)
    return patches


def in_windows(x: Tensor, size: Sizes) -> Tensor:
    """A view (..., h / kh, kh, w / kw, kw) of disjoint windows; incomplete ones are dropped."""
    for axis in range(-1, -1 - len(size), -1):  # the axes after it take two dimensions each
        at, length = 2 * axis + 1, size[axis]
        count = x.shape[at] // length
        x = x.narrow(at, 0, count * length).unflatten(at, (-1, length))
    return x
