"""Zero channels in front of a layer, and truncation behind it, within each group: both 1-Lipschitz."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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
