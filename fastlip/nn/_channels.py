"""Zero channels before a layer, and truncation after it, within each group: both are 1-Lipschitz."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pad_channels(x: Tensor, width: int, groups: int, axes: int = 2) -> Tensor:
    """Appends zero channels to each group, up to ``width`` channels in total, of images or other ``axes``."""
    at = -1 - axes
    if x.shape[at] == width:
        return x
    channels = x.unflatten(at, (groups, -1))
    return F.pad(channels, (*(0, 0) * axes, 0, width // groups - channels.shape[at])).flatten(at - 1, at)


def first_channels(x: Tensor, channels: int, groups: int, axes: int = 2) -> Tensor:
    """Keeps the first channels of each group, ``channels`` in total."""
    at = -1 - axes
    if x.shape[at] == channels:
        return x
    return x.unflatten(at, (groups, -1)).narrow(at, 0, channels // groups).flatten(at - 1, at)
