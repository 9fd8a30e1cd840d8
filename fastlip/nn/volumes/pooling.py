"""Pooling of disjoint windows of volumes with norm exactly 1."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.literals import Sides3d
from fastlip.kernels.common.rearrange import in_windows
from fastlip.nn._recorded import WholeModule
from fastlip.nn.arguments import pair, require_floating
from fastlip.nn.pooling import norms_of_windows

_POSITIONS = (-5, -3, -1)  # of an entry in its window


def _windows(kernel_size: Any, stride: Any) -> tuple[int, ...]:
    """Returns the windows' size, or raises ValueError for another stride: as in torch.nn, None means the same."""
    size = pair("kernel_size", kernel_size, axes=3)
    if stride is not None and pair("stride", stride, axes=3) != size:
        raise ValueError(
            f"stride={stride!r}: allowed is kernel_size={kernel_size!r}: the norm is 1 for disjoint windows"
        )
    return size


def _check_windows(x: Tensor, size: tuple[int, ...]) -> None:
    """Raises ValueError unless x is (n, c, d, h, w) or (c, d, h, w) with a whole window; TypeError for integers."""
    require_floating(x)
    if x.dim() not in (4, 5) or any([side < least for side, least in zip(x.shape[-3:], size, strict=True)]):
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (n, c, d, h, w) or (c, d, h, w), at least {size}")


class ScaledAvgPool3d(WholeModule):
    r"""Average of disjoint windows times sqrt(kd kh kw): (n, c, d, h, w) to (n, c, floor(d / kd), ...).

    The rows of this linear map are orthonormal, so its norm is 1; for that stride only. As in torch.nn, an
    incomplete last window is dropped.

    Args:
        kernel_size: (depth, height, width) of a window, or one int for all.
        stride: None, or ``kernel_size``.

    Shapes: (n, c, d, h, w) or (c, d, h, w).

    Raises:
        ValueError: another stride, or a volume smaller than a window.
        TypeError: a size that is neither an int nor a tuple of three; integers x.

    >>> lip.ScaledAvgPool3d((1, 2, 2))(torch.ones(1, 1, 1, 2, 4)).flatten()
    tensor([2., 2.])
    """

    def __init__(self, kernel_size: Sides3d, stride: Sides3d | None = None):
        super().__init__()
        self.kernel_size = _windows(kernel_size, stride)

    @property
    def stride(self) -> tuple[int, ...]:
        """The windows' size."""
        return self.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """The scaled averages of x."""
        _check_windows(x, self.kernel_size)
        # Not avg_pool3d, which torch has not for every dtype on a CPU.
        return in_windows(x, self.kernel_size).sum(_POSITIONS) / math.sqrt(math.prod(self.kernel_size))

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """1, attained: a volume that is constant on each window keeps its norm.

        Args:
            input_shape: not read.
        """
        return 1.0

    def extra_repr(self) -> str:
        """The arguments."""
        return f"kernel_size={self.kernel_size}"


class L2NormPool3d(WholeModule):
    r"""L2 norm of disjoint windows: (n, c, d, h, w) to (n, c, floor(d / kd), floor(h / kh), floor(w / kw)).

    1-Lipschitz by the triangle inequality, as the windows are disjoint, and preserves the norm of each volume that
    they cover. The gradient of an all-zero window is 0. As in torch.nn, an incomplete last window is dropped.

    Args:
        kernel_size: (depth, height, width) of a window, or one int for all.
        stride: None, or ``kernel_size``.

    Shapes: (n, c, d, h, w) or (c, d, h, w).

    Raises:
        ValueError: another stride, or a volume smaller than a window.
        TypeError: a size that is neither an int nor a tuple of three; integers x.

    >>> lip.L2NormPool3d((1, 2, 2))(torch.ones(1, 1, 1, 2, 4)).flatten()
    tensor([2., 2.])
    """

    def __init__(self, kernel_size: Sides3d, stride: Sides3d | None = None):
        super().__init__()
        self.kernel_size = _windows(kernel_size, stride)

    @property
    def stride(self) -> tuple[int, ...]:
        """The windows' size."""
        return self.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """The norm of each window of x."""
        _check_windows(x, self.kernel_size)
        return torch.linalg.vector_norm(in_windows(x, self.kernel_size), dim=_POSITIONS)

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """1, attained: a volume that the windows cover keeps its norm.

        Args:
            input_shape: not read.
        """
        return 1.0

    def extra_repr(self) -> str:
        """The arguments."""
        return f"kernel_size={self.kernel_size}"


class AdaptiveL2NormPool3d(WholeModule):
    r"""L2 norm of disjoint windows that tile the volume: (n, c, d, h, w) to (n, c, od, oh, ow), for any size.

    .. math:: y_i = \Big( \sum_r x_r^2 \Big)^{1/2}, \qquad
              \lfloor i l / o \rfloor \le r < \lfloor (i + 1) l / o \rfloor

    along each axis, of l entries. 1-Lipschitz by the triangle inequality, and it keeps the norm of every volume.
    ``output_size=1`` is a global pooling before a dense head. The gradient of an all-zero window is 0.

    Args:
        output_size: o, (depth, height, width) of the output, or one int for all; default 1.

    Shapes: (n, c, d, h, w) or (c, d, h, w), with sides of at least the output's.

    Raises:
        ValueError: a size below 1, or a volume smaller than the output.
        TypeError: output_size is neither an int nor a tuple of three; integers x.

    >>> lip.AdaptiveL2NormPool3d(1)(torch.ones(1, 2, 4, 2, 2)).flatten()
    tensor([4., 4.])
    """

    def __init__(self, output_size: Sides3d = 1):
        super().__init__()
        self.output_size = pair("output_size", output_size, axes=3)

    def forward(self, x: Tensor) -> Tensor:
        """The norm of each window of x."""
        _check_windows(x, self.output_size)
        return norms_of_windows(x, self.output_size)

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """1, attained: the norm of every volume is kept.

        Args:
            input_shape: not read.
        """
        return 1.0

    def extra_repr(self) -> str:
        """The arguments."""
        return f"output_size={self.output_size}"
