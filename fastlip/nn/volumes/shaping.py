"""Shuffles of volumes: isometries between space and channels."""

from __future__ import annotations

import math

from torch import Tensor

from fastlip.kernels.common.literals import Sides3d
from fastlip.kernels.common.rearrange import channels_to_patches, space_to_depth
from fastlip.nn._recorded import WholeModule
from fastlip.nn.arguments import pair


class PixelUnshuffle3d(WholeModule):
    """Moves each block of voxels into channels, (n, c, d, h, w) -> (n, c fd fh fw, ceil(d / fd), ...). An isometry.

    As ``torch.nn.PixelUnshuffle`` in three dimensions, but a side that its factor does not divide is padded with
    zeros at its end.

    Args:
        downscale_factor: (fd, fh, fw), the sides of a block, or one int for all. (1, 2, 2) keeps a video's frames;
            default 2.

    Shapes: (n, c, d, h, w) or (c, d, h, w).

    Raises:
        ValueError: a factor below 1, or x of another number of dimensions.
        TypeError: the factor is neither an int nor a tuple of three.

    >>> lip.PixelUnshuffle3d(2)(torch.ones(1, 3, 5, 4, 4)).shape
    torch.Size([1, 24, 3, 2, 2])
    """

    def __init__(self, downscale_factor: Sides3d = 2):
        super().__init__()
        self.downscale_factor = pair("downscale_factor", downscale_factor, axes=3)

    def forward(self, x: Tensor) -> Tensor:
        """Each block of voxels becomes channels."""
        check_volumes(x)
        return space_to_depth(x, self.downscale_factor)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.downscale_factor}"


class PixelShuffle3d(WholeModule):
    """Moves channels into blocks of voxels, (n, c fd fh fw, d, h, w) -> (n, c, d fd, h fh, w fw). An isometry.

    It undoes :class:`PixelUnshuffle3d`, as ``torch.nn.PixelShuffle`` does in two dimensions.

    Args:
        upscale_factor: (fd, fh, fw), the sides of a block, or one int for all; their product divides the channels;
            default 2.

    Shapes: (n, c fd fh fw, d, h, w) or (c fd fh fw, d, h, w).

    Raises:
        ValueError: a factor below 1, one that does not divide the channels, or x of another number of dimensions.
        TypeError: the factor is neither an int nor a tuple of three.

    >>> lip.PixelShuffle3d((1, 2, 2))(torch.ones(1, 12, 5, 4, 4)).shape
    torch.Size([1, 3, 5, 8, 8])
    """

    def __init__(self, upscale_factor: Sides3d = 2):
        super().__init__()
        self.upscale_factor = pair("upscale_factor", upscale_factor, axes=3)

    def forward(self, x: Tensor) -> Tensor:
        """Channels become blocks of voxels."""
        check_volumes(x)
        if x.shape[-4] % math.prod(self.upscale_factor):
            factors = f"upscale_factor={self.upscale_factor}"
            raise ValueError(f"{factors}: expected a product that divides the {x.shape[-4]} channels of x")
        return channels_to_patches(x, self.upscale_factor)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.upscale_factor}"


def check_volumes(x: Tensor) -> None:
    """Raises ValueError unless x is (n, c, d, h, w) or (c, d, h, w)."""
    if x.dim() not in (4, 5):
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (n, c, d, h, w) or (c, d, h, w)")
