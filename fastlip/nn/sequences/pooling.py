"""Pooling of disjoint windows of sequences with norm exactly 1."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.common.literals import Side
from fastlip.nn._recorded import WholeModule
from fastlip.nn.arguments import require_floating
from fastlip.nn.pooling import norms_of_windows
from fastlip.nn.sequences.layer import one_int


def _windows(kernel_size: Any, stride: Any) -> tuple[int]:
    """Returns the windows' length, or raises ValueError for another stride: as in torch.nn, None means the same."""
    length = one_int("kernel_size", kernel_size)
    if stride is not None and one_int("stride", stride) != length:
        raise ValueError(
            f"stride={stride!r}: allowed is kernel_size={kernel_size!r}: the norm is 1 for disjoint windows"
        )
    return (length,)


def _check_windows(x: Tensor, length: int) -> None:
    """Raises ValueError unless x is (n, c, l) or (c, l) and holds at least one window; TypeError for integers."""
    require_floating(x)
    if x.dim() not in (2, 3) or x.shape[-1] < length:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (n, c, l) or (c, l) with l of at least {length}")


class ScaledAvgPool1d(WholeModule):
    r"""Average of k neighbours times sqrt(k), over disjoint windows: (n, c, l) to (n, c, floor(l / k)).

    The rows of this linear map are orthonormal, so its norm is 1; for that stride only. As in torch.nn, an
    incomplete last window is dropped.

    Args:
        kernel_size: k, the length of a window.
        stride: None, or ``kernel_size``.

    Shapes: (n, c, l) or (c, l).

    Raises:
        ValueError: another stride, or a sequence shorter than a window.
        TypeError: a size that is neither an int nor a tuple of one; integers x.

    >>> lip.ScaledAvgPool1d(4)(torch.ones(1, 1, 8)).flatten()
    tensor([2., 2.])
    """

    def __init__(self, kernel_size: Side, stride: Side | None = None):
        super().__init__()
        self.kernel_size = _windows(kernel_size, stride)

    @property
    def stride(self) -> tuple[int]:
        """The windows' length."""
        return self.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """The scaled averages of x."""
        _check_windows(x, self.kernel_size[0])
        return F.avg_pool1d(x, self.kernel_size[0]) * math.sqrt(self.kernel_size[0])

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """1, attained: a sequence that is constant on each window keeps its norm.

        Args:
            input_shape: not read.
        """
        return 1.0

    def extra_repr(self) -> str:
        """The arguments."""
        return f"kernel_size={self.kernel_size}"


class L2NormPool1d(WholeModule):
    r"""L2 norm of k neighbours, over disjoint windows: (n, c, l) to (n, c, floor(l / k)).

    1-Lipschitz by the triangle inequality, as the windows are disjoint, and preserves the norm of each sequence that
    they cover. The gradient of an all-zero window is 0. As in torch.nn, an incomplete last window is dropped.

    Args:
        kernel_size: k, the length of a window.
        stride: None, or ``kernel_size``.

    Shapes: (n, c, l) or (c, l).

    Raises:
        ValueError: another stride, or a sequence shorter than a window.
        TypeError: a size that is neither an int nor a tuple of one; integers x.

    >>> lip.L2NormPool1d(4)(torch.ones(1, 1, 8)).flatten()
    tensor([2., 2.])
    """

    def __init__(self, kernel_size: Side, stride: Side | None = None):
        super().__init__()
        self.kernel_size = _windows(kernel_size, stride)

    @property
    def stride(self) -> tuple[int]:
        """The windows' length."""
        return self.kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """The norm of each window of x."""
        (length,) = self.kernel_size
        _check_windows(x, length)
        windows = x[..., : x.shape[-1] // length * length].unflatten(-1, (-1, length))
        return torch.linalg.vector_norm(windows, dim=-1)

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """1, attained: a sequence that the windows cover keeps its norm.

        Args:
            input_shape: not read.
        """
        return 1.0

    def extra_repr(self) -> str:
        """The arguments."""
        return f"kernel_size={self.kernel_size}"


class AdaptiveL2NormPool1d(WholeModule):
    r"""L2 norm of disjoint windows that tile the sequence: (n, c, l) to (n, c, o), for sequences of any length.

    .. math:: y_i = \Big( \sum_r x_r^2 \Big)^{1/2}, \qquad
              \lfloor i l / o \rfloor \le r < \lfloor (i + 1) l / o \rfloor

    1-Lipschitz by the triangle inequality, and it keeps the norm of every sequence. ``output_size=1`` is a global
    pooling before a dense head. The gradient of an all-zero window is 0.

    Args:
        output_size: o, the length of the output; default 1.

    Shapes: (n, c, l) or (c, l) with l of at least the output's length.

    Raises:
        ValueError: a length below 1, or a sequence shorter than the output.
        TypeError: output_size is neither an int nor a tuple of one; integers x.

    >>> lip.AdaptiveL2NormPool1d(1)(torch.ones(1, 2, 9)).flatten()
    tensor([3., 3.])
    """

    def __init__(self, output_size: Side = 1):
        super().__init__()
        self.output_size = (one_int("output_size", output_size),)

    def forward(self, x: Tensor) -> Tensor:
        """The norm of each window of x."""
        _check_windows(x, self.output_size[0])
        return norms_of_windows(x.unsqueeze(-2), (1, self.output_size[0])).squeeze(-2)

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """1, attained: the norm of every sequence is kept.

        Args:
            input_shape: not read.
        """
        return 1.0

    def extra_repr(self) -> str:
        """The arguments."""
        return f"output_size={self.output_size}"
