"""Layers that only move, pad or drop entries: 1-Lipschitz by construction."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastlip import ops
from fastlip.kernels.common.dispatch import check_backend
from fastlip.kernels.common.literals import Backend
from fastlip.nn._recorded import WholeModule
from fastlip.nn.arguments import positive_int


class ZeroChannelPad(WholeModule):
    """Appends channels of zeros: (n, c, ...) -> (n, channels, ...). An isometry.

    Args:
        channels: number of channels of the output, at least that of the input.

    Raises:
        ValueError: an input with more channels.

    >>> lip.ZeroChannelPad(4)(torch.ones(1, 3, 2, 2)).shape
    torch.Size([1, 4, 2, 2])
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channels = positive_int("channels", channels)

    def forward(self, x: Tensor) -> Tensor:
        """x with zero channels appended; ValueError if it has more than ``channels`` already."""
        missing = self.channels - x.shape[1]
        if missing < 0:
            raise ValueError(f"channels={self.channels}: expected at least the {x.shape[1]} channels of x")
        return F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.channels}"


class FirstChannels(WholeModule):
    """Keeps the first channels: (n, c, ...) -> (n, channels, ...). A projection.

    Args:
        channels: number of channels that are kept, at most that of the input.

    Raises:
        ValueError: an input with fewer channels.

    >>> lip.FirstChannels(2)(torch.ones(1, 3, 2, 2)).shape
    torch.Size([1, 2, 2, 2])
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channels = positive_int("channels", channels)

    def forward(self, x: Tensor) -> Tensor:
        """The first channels of x; ValueError if it has fewer."""
        if x.shape[1] < self.channels:
            raise ValueError(f"channels={self.channels}: expected at most the {x.shape[1]} channels of x")
        return x[:, : self.channels]

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.channels}"


class PixelUnshuffle(WholeModule):
    """Space to depth, (n, c, h, w) -> (n, c f^2, ceil(h/f), ceil(w/f)). An isometry.

    As ``torch.nn.PixelUnshuffle``, but a size that the factor does not divide is padded with zeros at its end.

    Args:
        downscale_factor: f, height and width of a patch.
        backend: ``"auto"``, ``"reference"``, ``"native"`` or ``"triton"``.

    Raises:
        ValueError: a factor below 1, or another backend.

    >>> lip.PixelUnshuffle(2)(torch.ones(1, 3, 5, 4)).shape
    torch.Size([1, 12, 3, 2])
    """

    def __init__(self, downscale_factor: int = 2, backend: Backend = "auto"):
        super().__init__()
        self.downscale_factor = positive_int("downscale_factor", downscale_factor)
        self.backend: Backend = check_backend(backend)

    def forward(self, x: Tensor) -> Tensor:
        """Each f x f patch becomes f^2 channels."""
        bottom, right = -x.shape[-2] % self.downscale_factor, -x.shape[-1] % self.downscale_factor
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        return ops.pixel_unshuffle(x, self.downscale_factor, backend=self.backend)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.downscale_factor}"
