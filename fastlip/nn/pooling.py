"""Pooling of disjoint windows with norm exactly 1."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.nn._conv import Pair, make_pair
from fastlip.nn._whole import WholeModule


class _DisjointPool2d(WholeModule):
    """Windows of kernel_size at a stride of kernel_size; as in torch.nn, an incomplete last window is dropped."""

    def __init__(self, kernel_size: int | Pair, stride: int | Pair | None = None):
        super().__init__()
        self.kernel_size = make_pair("kernel_size", kernel_size)
        if stride is not None and make_pair("stride", stride) != self.kernel_size:
            raise ValueError(
                f"stride={stride!r}: allowed is kernel_size={kernel_size!r}: the norm is 1 for disjoint windows"
            )

    @property
    def stride(self) -> Pair:
        """The windows' size."""
        return self.kernel_size

    def check_input(self, x: Tensor) -> None:
        """Raises ValueError unless x is (n, c, h, w) or (c, h, w) and holds at least one window."""
        if x.dim() not in (3, 4) or x.shape[-2] < self.kernel_size[0] or x.shape[-1] < self.kernel_size[1]:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected (n, c, h, w) or (c, h, w), at least {self.kernel_size}"
            )

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """1, attained: an image that is constant on each window keeps its norm."""
        return 1.0

    def extra_repr(self) -> str:
        """The arguments."""
        return f"kernel_size={self.kernel_size}"


class ScaledAvgPool2d(_DisjointPool2d):
    r"""Average of disjoint windows times sqrt(kh kw): (n, c, h, w) to (n, c, floor(h / kh), floor(w / kw)).

    For a window of p x p pixels, p avg_pool(x, p, stride p). The rows of this linear map are orthonormal, so its
    norm is 1; for that stride only. ValueError for any other, and for an image smaller than a window.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The scaled averages of x."""
        self.check_input(x)
        return F.avg_pool2d(x, self.kernel_size) * math.sqrt(math.prod(self.kernel_size))


class L2NormPool2d(_DisjointPool2d):
    r"""L2 norm of disjoint windows: (n, c, h, w) to (n, c, floor(h / kh), floor(w / kw)).

    1-Lipschitz by the triangle inequality, as the windows are disjoint, and preserves the norm of each image that
    they cover. The gradient of an all-zero window is 0. ValueError for any stride but kernel_size, and for an
    image smaller than a window.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The norm of each window of x."""
        self.check_input(x)
        (height, width), (down, across) = x.shape[-2:], self.kernel_size
        covered = x[..., : height - height % down, : width - width % across]
        windows = covered.unflatten(-1, (width // across, across)).unflatten(-3, (height // down, down))
        return torch.linalg.vector_norm(windows, dim=(-3, -1))
