"""Shuffles of sequences: isometries between length and channels."""

from __future__ import annotations

from torch import Tensor

from fastlip.kernels.common.rearrange import space_to_depth
from fastlip.nn._recorded import WholeModule
from fastlip.nn.arguments import positive_int


class PixelUnshuffle1d(WholeModule):
    """Moves each f neighbours into channels, (n, c, l) -> (n, c f, ceil(l / f)). An isometry.

    As ``torch.nn.PixelUnshuffle`` in one dimension, but a length that the factor does not divide is padded with zeros
    at its end.

    Args:
        downscale_factor: f, the number of neighbours; default 2.

    Shapes: (n, c, l) or (c, l).

    Raises:
        ValueError: a factor below 1.
        TypeError: the factor is no int.

    >>> lip.PixelUnshuffle1d(2)(torch.arange(5.0).view(1, 1, 5))
    tensor([[[0., 2., 4.],
             [1., 3., 0.]]])
    """

    def __init__(self, downscale_factor: int = 2):
        super().__init__()
        self.downscale_factor = positive_int("downscale_factor", downscale_factor)

    def forward(self, x: Tensor) -> Tensor:
        """Each f neighbours become f channels."""
        return space_to_depth(x.unsqueeze(-2), (1, self.downscale_factor)).squeeze(-2)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.downscale_factor}"


class PixelShuffle1d(WholeModule):
    """Moves each f channels into neighbours, (n, c f, l) -> (n, c, l f): undoes PixelUnshuffle1d. An isometry.

    Args:
        upscale_factor: f, a divisor of the number of channels; default 2.

    Shapes: (n, c f, l) or (c f, l).

    Raises:
        ValueError: a factor below 1, or one that does not divide the channels.
        TypeError: the factor is no int.

    >>> lip.PixelShuffle1d(2)(torch.tensor([[[0.0, 2.0], [1.0, 3.0]]]))
    tensor([[[0., 1., 2., 3.]]])
    """

    def __init__(self, upscale_factor: int = 2):
        super().__init__()
        self.upscale_factor = positive_int("upscale_factor", upscale_factor)

    def forward(self, x: Tensor) -> Tensor:
        """Each f channels become f neighbours."""
        factor = self.upscale_factor
        if x.shape[-2] % factor:
            raise ValueError(f"upscale_factor={factor}: expected a divisor of the {x.shape[-2]} channels of x")
        return x.unflatten(-2, (-1, factor)).transpose(-1, -2).flatten(-2)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.upscale_factor}"
