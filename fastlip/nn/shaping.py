"""Layers that only move, pad or drop entries: 1-Lipschitz by construction."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fastlip.kernels.common.dispatch import check_backend
from fastlip.kernels.common.literals import Backend
from fastlip.kernels.pixel_unshuffle.api import OPERATOR as PIXEL_UNSHUFFLE
from fastlip.nn._recorded import WholeModule, recorded_here, records_itself
from fastlip.nn.arguments import positive_int


class ZeroChannelPad(WholeModule):
    """Appends channels of zeros: (n, c, ...) -> (n, channels, ...). An isometry.

    Args:
        channels: number of channels of the output, at least that of the input.
        input_shape: the shape (c, ...) of one input, where a network is built for one shape; None: any.

    Raises:
        ValueError: an input with more channels, or of another shape than ``input_shape``.

    >>> lip.ZeroChannelPad(4)(torch.ones(1, 3, 2, 2)).shape
    torch.Size([1, 4, 2, 2])
    """

    input_shape: tuple[int, ...] | None = None

    def __init__(self, channels: int, input_shape: tuple[int, ...] | None = None):
        super().__init__()
        self.channels = positive_int("channels", channels)
        self.input_shape = input_shape and tuple(input_shape)
        if input_shape and input_shape[0] > channels:
            raise ValueError(f"input_shape={input_shape}: expected at most the {channels} channels of the output")

    @records_itself
    def forward(self, x: Tensor) -> Tensor:
        """x with zero channels appended."""
        if isinstance(x, fx.Proxy) and (call := recorded_here(self, ZeroChannelPad.forward, x)) is not None:
            return call
        shape = self.input_shape
        if shape and x.dim() <= len(shape) + 1 and x.shape[1:] != shape:
            expected = ", ".join(map(str, shape))
            how = "; use x.unsqueeze(0) for one image" if x.shape == shape else ""
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected (n, {expected}), that of the network's images{how}"
            )
        missing = self.channels - x.shape[1]
        if missing < 0:
            raise ValueError(f"channels={self.channels}: expected at least the {x.shape[1]} channels of x")
        return F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing)) if missing else x

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.channels}, input_shape={self.input_shape}" if self.input_shape else f"{self.channels}"


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

    @records_itself
    def forward(self, x: Tensor) -> Tensor:
        """The first channels of x; ValueError if it has fewer."""
        if isinstance(x, fx.Proxy) and (call := recorded_here(self, FirstChannels.forward, x)) is not None:
            return call
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
        downscale_factor: f, height and width of a patch; default 2.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.

    Raises:
        ValueError: a factor below 1, or another backend.

    >>> lip.PixelUnshuffle(2)(torch.ones(1, 3, 5, 4)).shape
    torch.Size([1, 12, 3, 2])
    """

    def __init__(self, downscale_factor: int = 2, backend: Backend = "auto"):
        super().__init__()
        self.downscale_factor = positive_int("downscale_factor", downscale_factor)
        self.backend: Backend = check_backend(backend)

    @records_itself
    def forward(self, x: Tensor) -> Tensor:
        """Each f x f patch becomes f^2 channels."""
        if isinstance(x, fx.Proxy) and (call := recorded_here(self, PixelUnshuffle.forward, x)) is not None:
            return call
        bottom, right = -x.shape[-2] % self.downscale_factor, -x.shape[-1] % self.downscale_factor
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        if x.dim() not in (3, 4):
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (n, c, h, w) or (c, h, w)")
        return PIXEL_UNSHUFFLE(x, self.downscale_factor, self.backend)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.downscale_factor}"


class SpatialShift(WholeModule):
    r"""Moves groups of channels by some pixels, up, down, left and right, circularly. An isometry.

    .. math:: y_{i, j} = x_{i + s, j}, \quad x_{i - s, j}, \quad x_{i, j + s}, \quad x_{i, j - s}, \quad x_{i, j}

    for the first four groups of ``channels`` channels and the rest. It lets pixels see their neighbours without a
    spatial convolution, between products along the channels (*LipNeXt*, arXiv 2601.18513).

    Args:
        channels: number of channels that move in each of the four directions.
        step: s, by how many pixels they move; default 1.

    Shapes: (n, c, h, w) or (c, h, w) with c at least 4 ``channels``, to the same.

    Raises:
        ValueError: an argument below 1, or x has fewer channels.
        TypeError: an argument that is no int.

    >>> x = torch.zeros(4, 3, 3)
    >>> x[:, 1, 1] = 1
    >>> [tuple(place) for place in lip.SpatialShift(1)(x).nonzero()[:, 1:].tolist()]
    [(0, 1), (2, 1), (1, 0), (1, 2)]
    """

    def __init__(self, channels: int, step: int = 1):
        super().__init__()
        self.channels = positive_int("channels", channels)
        self.step = positive_int("step", step)

    def forward(self, x: Tensor) -> Tensor:
        """X with its first four groups of channels moved; ValueError if it has fewer channels."""
        if x.dim() not in (3, 4) or x.shape[-3] < 4 * self.channels:
            raise ValueError(
                f"channels={self.channels}: expected images of at least {4 * self.channels} channels, "
                f"got shape {tuple(x.shape)}"
            )
        return shifted(x, self.channels, self.step, _rolled)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.channels}, step={self.step}"


def shifted(x: Tensor, channels: int, step: int, roll: Callable[[Tensor, int, int], Tensor] = torch.roll) -> Tensor:
    """x with four groups of channels moved by a step, up, down, left and right."""
    up, down, left, right = (x.narrow(-3, index * channels, channels) for index in range(4))
    rest = x.narrow(-3, 4 * channels, x.shape[-3] - 4 * channels)
    moved = (roll(up, -step, -2), roll(down, step, -2), roll(left, -step, -1), roll(right, step, -1))
    return torch.cat((*moved, rest), -3)


def _rolled(x: Tensor, step: int, dim: int) -> Tensor:
    """As ``torch.roll``, which would leave channels-last memory format."""
    size = x.shape[dim]
    last = step % max(size, 1)
    return torch.cat((x.narrow(dim, size - last, last), x.narrow(dim, 0, size - last)), dim)
