"""Pooling of disjoint windows with norm exactly 1."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.common.geometry import Pair
from fastlip.kernels.common.literals import Sides
from fastlip.nn._recorded import WholeModule
from fastlip.nn.arguments import pair, require_floating


def _windows(kernel_size: Any, stride: Any) -> Pair:
    """Returns the windows' size, or raises ValueError for another stride: as in torch.nn, None means the same."""
    size = pair("kernel_size", kernel_size)
    if stride is not None and pair("stride", stride) != size:
        raise ValueError(
            f"stride={stride!r}: allowed is kernel_size={kernel_size!r}: the norm is 1 for disjoint windows"
        )
    return size


def _check_windows(x: Tensor, size: Pair) -> None:
    """Raises ValueError unless x is (n, c, h, w) or (c, h, w) with at least one window; TypeError for integers."""
    require_floating(x)
    if x.dim() not in (3, 4) or x.shape[-2] < size[0] or x.shape[-1] < size[1]:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (n, c, h, w) or (c, h, w), at least {size}")


class ScaledAvgPool2d(WholeModule):
    r"""Average of disjoint windows times sqrt(kh kw): (n, c, h, w) to (n, c, floor(h / kh), floor(w / kw)).

    For a window of p x p pixels, p avg_pool(x, p, stride p). The rows of this linear map are orthonormal, so its
    norm is 1; for that stride only. As in torch.nn, an incomplete last window is dropped.

    Args:
        kernel_size: height and width of a window.
        stride: None, or ``kernel_size``.

    Raises:
        ValueError: another stride, or an image smaller than a window.
        TypeError: a size that is no int or pair of ints; integers x.

    >>> lip.ScaledAvgPool2d(2)(torch.ones(1, 1, 4, 4)).flatten()
    tensor([2., 2., 2., 2.])
    """

    def __init__(self, kernel_size: Sides, stride: Sides | None = None):
        super().__init__()
        self.kernel_size = _windows(kernel_size, stride)

    @property
    def stride(self) -> Pair:
        """The windows' size."""
        return self.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """The scaled averages of x."""
        _check_windows(x, self.kernel_size)
        return F.avg_pool2d(x, self.kernel_size) * math.sqrt(math.prod(self.kernel_size))

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """1, attained: an image that is constant on each window keeps its norm.

        Args:
            input_shape: the shape of one input, without the batch dimension.
        """
        return 1.0

    def extra_repr(self) -> str:
        """The arguments."""
        return f"kernel_size={self.kernel_size}"


class L2NormPool2d(WholeModule):
    r"""L2 norm of disjoint windows: (n, c, h, w) to (n, c, floor(h / kh), floor(w / kw)).

    1-Lipschitz by the triangle inequality, as the windows are disjoint, and preserves the norm of each image that
    they cover. The gradient of an all-zero window is 0. As in torch.nn, an incomplete last window is dropped.

    Args:
        kernel_size: height and width of a window.
        stride: None, or ``kernel_size``.

    Raises:
        ValueError: another stride, or an image smaller than a window.
        TypeError: a size that is no int or pair of ints; integers x.

    >>> lip.L2NormPool2d(2)(torch.ones(1, 1, 4, 4)).flatten()
    tensor([2., 2., 2., 2.])
    """

    def __init__(self, kernel_size: Sides, stride: Sides | None = None):
        super().__init__()
        self.kernel_size = _windows(kernel_size, stride)

    @property
    def stride(self) -> Pair:
        """The windows' size."""
        return self.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """The norm of each window of x."""
        _check_windows(x, self.kernel_size)
        (height, width), (down, across) = x.shape[-2:], self.kernel_size
        covered = x[..., : height - height % down, : width - width % across]
        windows = covered.unflatten(-1, (width // across, across)).unflatten(-3, (height // down, down))
        return torch.linalg.vector_norm(windows, dim=(-3, -1))

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """1, attained: an image that is constant on each window keeps its norm.

        Args:
            input_shape: the shape of one input, without the batch dimension.
        """
        return 1.0

    def extra_repr(self) -> str:
        """The arguments."""
        return f"kernel_size={self.kernel_size}"


class AdaptiveL2NormPool2d(WholeModule):
    r"""L2 norm of disjoint windows that tile the image: (n, c, h, w) to (n, c, oh, ow), for images of any size.

    .. math:: y_{i, j} = \Big( \sum_{r, \, s} x_{r, s}^2 \Big)^{1/2}, \qquad
              \lfloor i h / o_h \rfloor \le r < \lfloor (i + 1) h / o_h \rfloor,
              \lfloor j w / o_w \rfloor \le s < \lfloor (j + 1) w / o_w \rfloor

    1-Lipschitz by the triangle inequality, and it keeps the norm of every image, as the windows leave nothing out:
    those of ``torch.nn.AdaptiveAvgPool2d`` overlap where the size does not divide. ``output_size=1`` is the pooling
    before a dense head (*LipNeXt*, arXiv 2601.18513). The gradient of an all-zero window is 0.

    Args:
        output_size: height and width of the output; default 1.

    Shapes: (n, c, h, w) or (c, h, w), with sides of at least the output's.

    Raises:
        ValueError: a size below 1, or an image smaller than the output.
        TypeError: output_size is no int or pair of ints; integers x.

    >>> lip.AdaptiveL2NormPool2d(1)(torch.ones(1, 2, 3, 3)).flatten()
    tensor([3., 3.])
    """

    def __init__(self, output_size: Sides = 1):
        super().__init__()
        self.output_size = pair("output_size", output_size)

    def forward(self, x: Tensor) -> Tensor:
        """The norm of each window of x."""
        _check_windows(x, self.output_size)
        return norms_of_windows(x, self.output_size)

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """1, attained: the norm of every image is kept.

        Args:
            input_shape: not read.
        """
        return 1.0

    def extra_repr(self) -> str:
        """The arguments."""
        return f"output_size={self.output_size}"


def norms_of_windows(x: Tensor, output_size: Pair) -> Tensor:
    """The norms of the windows that tile an image, along one axis after the other."""
    axes = range(-len(output_size), 0)
    if max(output_size) == 1:
        return torch.linalg.vector_norm(x, dim=tuple(axes), keepdim=True)
    for dim, parts in zip(axes, output_size, strict=True):
        side = x.shape[dim]
        places = [(index * side // parts, (index + 1) * side // parts) for index in range(parts)]
        windows = [x.narrow(dim, start, end - start) for start, end in places]
        x = torch.stack([torch.linalg.vector_norm(window, dim=dim) for window in windows], dim)
    return x
