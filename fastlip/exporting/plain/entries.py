"""Modules that sort, reflect, select, pad, rearrange or pool entries: no weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.exporting.plain._module import PASSES, Plain, Shape
from fastlip.kernels.common.rearrange import channels_to_patches, in_windows, patches_to_channels
from fastlip.nn.base import as_it_runs


class SortPairs(Plain):
    """MaxMin: pairs of channels in descending order."""

    pairing: str
    dim: int

    def forward(self, x: Tensor) -> Tensor:
        """The pairs of x, sorted."""
        dim, count = self.dim, x.shape[self.dim]
        paired, last = x.narrow(dim, 0, count // 2 * 2), x.narrow(dim, count // 2 * 2, count % 2)
        adjacent = self.pairing == "adjacent"
        at = dim + adjacent if dim >= 0 else dim - (not adjacent)
        a, b = paired.unflatten(dim, (-1, 2) if adjacent else (2, -1)).split(1, at)
        # As the layer decides: on a tie, and for NaN, nothing moves.
        swap = b > a
        both = torch.cat((torch.where(swap, b, a), torch.where(swap, a, b)), at)
        start = dim if dim >= 0 else dim - 1
        return torch.cat((both.flatten(start, start + 1), last), dim)


class SortGroups(Plain):
    """GroupSort: groups of channels in descending order."""

    group_size: int | None
    dim: int

    def forward(self, x: Tensor) -> Tensor:
        """The groups of x, sorted."""
        dim = self.dim
        if self.group_size is None:
            return torch.sort(x, dim=dim, descending=True, stable=True)[0]
        inner, start = (dim + 1, dim) if dim >= 0 else (dim, dim - 1)
        groups = x.unflatten(dim, (-1, self.group_size))
        return torch.sort(groups, dim=inner, descending=True, stable=True)[0].flatten(start, start + 1)


class Absolute(Plain):
    """|x|."""

    def forward(self, x: Tensor) -> Tensor:
        """|x|."""
        return torch.abs(x)


class Reflection(Plain):
    """HouseHolder: pairs beyond their line, reflected in it. table: cos, sin of theta, and of theta / 2."""

    TENSORS = ("table",)
    table: Tensor
    channels: int
    pairing: str
    dim: int
    rank: int

    def forward(self, x: Tensor) -> Tensor:
        """The pairs of x, those beyond their line reflected."""
        dim, pairs = self.dim % self.rank, self.channels // 2
        paired, last = x.narrow(dim, 0, 2 * pairs), x.narrow(dim, 2 * pairs, self.channels % 2)
        shape, at = ((2, pairs), dim) if self.pairing == "halves" else ((pairs, 2), dim + 1)
        a, b = paired.unflatten(dim, shape).split(1, at)
        broadcast = (4, *(pairs if axis == dim + (at == dim) else 1 for axis in range(self.rank + 1)))
        cosine, sine, half_cosine, half_sine = self.table.view(broadcast).split(1, 0)
        cosine, sine, half_cosine, half_sine = cosine[0], sine[0], half_cosine[0], half_sine[0]
        keep = a * half_sine >= b * half_cosine
        first = torch.where(keep, a, a * cosine + b * sine)
        second = torch.where(keep, b, a * sine - b * cosine)
        return torch.cat((torch.cat((first, second), at).flatten(dim, dim + 1), last), dim)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """The longest (cos, sin), as rounded; infinite if the lines are not those of the reflections."""
        cosine, sine, half_cosine, half_sine = as_it_runs(self.table)
        allowed = 16 * torch.finfo(self.table.dtype).eps
        jump = torch.hypot(half_cosine**2 - half_sine**2 - cosine, 2 * half_sine * half_cosine - sine)
        if (jump > allowed).any():
            return math.inf
        return torch.hypot(cosine, sine).amax().clamp_min(1).item() if cosine.numel() else 1.0

    def roundings(self, input_shape: Shape) -> float:
        """Two products and a sum."""
        return PASSES


class FirstEntries(Plain):
    """The first ``count`` entries along ``dim``, in each of ``groups`` groups."""

    count: int
    dim: int
    groups: int

    def forward(self, x: Tensor) -> Tensor:
        """A part of x."""
        if self.groups == 1:
            return x.narrow(self.dim, 0, self.count)
        return (
            x.unflatten(self.dim, (self.groups, -1)).narrow(self.dim, 0, self.count).flatten(self.dim - 1, self.dim)
        )


class PadChannels(Plain):
    """Appends zeros along dim 1 up to ``channels``, whatever the rank and number of channels of x."""

    channels: int

    def forward(self, x: Tensor) -> Tensor:
        """x with zero channels."""
        torch._assert(x.shape[1] <= self.channels, f"expected at most {self.channels} channels")
        return F.pad(x.movedim(1, -1), (0, self.channels - x.shape[1])).movedim(-1, 1)


class PadGroups(Plain):
    """Appends ``missing`` zero channels to each of ``groups`` groups of channels of images, or of other ``axes``."""

    groups: int
    missing: int
    axes: int = 2

    def forward(self, x: Tensor) -> Tensor:
        """x with zero channels."""
        at = -1 - self.axes
        return F.pad(x.unflatten(at, (self.groups, -1)), (*(0, 0) * self.axes, 0, self.missing)).flatten(at - 1, at)


class Patches(Plain):
    """Space to depth: patches become channels, ``position_first`` or after the channel, within each group.

    Sides that the stride does not divide are padded with zeros at their end. Three entries are those of volumes.
    """

    stride: tuple[int, ...]
    groups: int
    position_first: bool

    def forward(self, x: Tensor) -> Tensor:
        """(..., c, h, w) to (..., c sh sw, ceil(h / sh), ceil(w / sw))."""
        missing = [(0, -x.shape[-1 - at] % step) for at, step in enumerate(reversed(self.stride))]
        x = F.pad(x, tuple(side for ends in missing for side in ends))
        return patches_to_channels(x, self.stride, self.groups, self.position_first)


class Interleave(Plain):
    """Each ``factor`` channels of sequences become neighbours."""

    factor: int

    def forward(self, x: Tensor) -> Tensor:
        """(..., c f, l) to (..., c, l f)."""
        return x.unflatten(-2, (-1, self.factor)).transpose(-1, -2).flatten(-2)


class Spread(Plain):
    """Channels of volumes become blocks of voxels, of sides ``factor``."""

    factor: tuple[int, int, int]

    def forward(self, x: Tensor) -> Tensor:
        """(..., c fd fh fw, d, h, w) to (..., c, d fd, h fh, w fw)."""
        return channels_to_patches(x, self.factor)


class ScaledPool(Plain):
    """Average of disjoint windows times the root of their size, of images or of volumes."""

    kernel_size: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        """The scaled averages of x."""
        if len(self.kernel_size) == 3:
            return in_windows(x, self.kernel_size).sum((-5, -3, -1)) / math.sqrt(math.prod(self.kernel_size))
        return F.avg_pool2d(x, self.kernel_size) * math.sqrt(math.prod(self.kernel_size))

    def roundings(self, input_shape: Shape) -> float:
        """A sum over the window."""
        return PASSES * math.sqrt(math.prod(self.kernel_size))


class NormPool(Plain):
    """L2 norm of disjoint windows, of images or of volumes."""

    kernel_size: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        """The norm of each window of x."""
        if len(self.kernel_size) == 3:
            return torch.linalg.vector_norm(in_windows(x, self.kernel_size), dim=(-5, -3, -1))
        down, across = self.kernel_size
        height, width = x.shape[-2] // down, x.shape[-1] // across
        covered = x.narrow(-2, 0, height * down).narrow(-1, 0, width * across)
        windows = covered.unflatten(-1, (-1, across)).unflatten(-3, (-1, down))
        return torch.linalg.vector_norm(windows, dim=(-3, -1))

    def roundings(self, input_shape: Shape) -> float:
        """A sum over the window, and a root."""
        return PASSES * math.sqrt(math.prod(self.kernel_size))
