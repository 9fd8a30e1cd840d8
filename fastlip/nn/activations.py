"""Activations that are 1-Lipschitz and preserve the gradient's norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx, nn

from fastlip.kernels.common.dispatch import check_backend
from fastlip.kernels.common.literals import Backend, Device, Pairing
from fastlip.kernels.maxmin.api import OPERATOR as MAXMIN
from fastlip.kernels.maxmin.api import PAIRINGS, check
from fastlip.nn._recorded import WholeModule, recorded_here, records_itself
from fastlip.nn.arguments import positive_int, require_floating
from fastlip.nn.base import at_least_float32


def _check_pairing(pairing: Pairing) -> Pairing:
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing={pairing!r}: allowed are {', '.join(map(repr, PAIRINGS))}")
    return pairing


class MaxMin(WholeModule):
    """Sorts pairs of channels, (a, b) -> (max, min) (Anil, Lucas, Grosse, ICML 2019). 1-Lipschitz.

    An odd last channel passes through.

    Args:
        pairing: ``"adjacent"`` (default) pairs channels (2i, 2i+1), ``"halves"`` pairs (i, i + c // 2).
        dim: dimension of the channels: 1 for batches, -3 for images and -2 for sequences with or without a batch;
            default 1.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.

    Raises:
        ValueError: another pairing or backend.

    >>> lip.MaxMin()(torch.tensor([[1.0, 3.0, 5.0, 2.0]]))
    tensor([[3., 1., 5., 2.]])
    """

    def __init__(self, pairing: Pairing = "adjacent", dim: int = 1, backend: Backend = "auto"):
        super().__init__()
        self.pairing: Pairing = _check_pairing(pairing)
        self.dim = dim
        self.backend: Backend = check_backend(backend)

    @records_itself
    def forward(self, x: Tensor) -> Tensor:
        """The pairs of x along dim, each sorted in descending order."""
        if isinstance(x, fx.Proxy) and (call := recorded_here(self, MaxMin.forward, x)) is not None:
            return call
        return MAXMIN(x, self.pairing, check(x, self.pairing, self.dim), self.backend)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"pairing={self.pairing!r}, dim={self.dim}, backend={self.backend!r}"


class GroupSort(WholeModule):
    """Sorts groups of channels in descending order (Anil, Lucas, Grosse, ICML 2019). 1-Lipschitz.

    Ties keep their order, so that gradients stay a permutation.

    Args:
        group_size: number of channels that are sorted together, a divisor of their number; None: all channels
            (FullSort). 2 is MaxMin with adjacent pairs; default 2.
        dim: dimension of the channels; default 1.

    Raises:
        ValueError: a group size that does not divide the number of channels.

    >>> lip.GroupSort(4)(torch.tensor([[1.0, 3.0, 5.0, 2.0]]))
    tensor([[5., 3., 2., 1.]])
    """

    def __init__(self, group_size: int | None = 2, dim: int = 1):
        super().__init__()
        self.group_size = None if group_size is None else positive_int("group_size", group_size)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """The groups of x along dim, each sorted in descending order."""
        channels = x.shape[self.dim]
        size = self.group_size or max(channels, 1)
        if channels % size:
            raise ValueError(f"group_size={size}: expected a divisor of the {channels} channels of x")
        dim = self.dim % x.dim()
        groups = x.unflatten(dim, (channels // size, size))
        return torch.sort(groups, dim=dim + 1, descending=True, stable=True).values.flatten(dim, dim + 1)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"group_size={self.group_size}, dim={self.dim}"


class Abs(WholeModule):
    """Absolute value, elementwise: 1-Lipschitz, with a gradient of absolute value 1 except at 0.

    Shapes: any to the same.

    >>> lip.Abs()(torch.tensor([-1.0, 2.0]))
    tensor([1., 2.])
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """|x|."""
        return x.abs()


class PartialAbs(WholeModule):
    r"""Absolute value of the first channels; the rest passes. 1-Lipschitz (*LipNeXt*, arXiv 2601.18513).

    .. math:: y_i = |x_i| \;\text{ for } i < k, \qquad y_i = x_i \;\text{ for } i \ge k

    Args:
        channels: number of channels of which the absolute value is taken.
        dim: the channel dimension: 1 for batches, -3 for images with or without a batch; default 1.

    Shapes: any, with at least that many channels, to the same.

    Raises:
        ValueError: channels below 1, or above those of x.
        TypeError: channels is no int.

    >>> lip.PartialAbs(1)(torch.tensor([[-1.0, -2.0]]))
    tensor([[ 1., -2.]])
    """

    def __init__(self, channels: int, dim: int = 1):
        super().__init__()
        self.channels = positive_int("channels", channels)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """X with the absolute values of its first channels."""
        rest = x.shape[self.dim] - self.channels
        if rest < 0:
            raise ValueError(f"channels={self.channels}: expected at most the {x.shape[self.dim]} channels of x")
        first, last = x.narrow(self.dim, 0, self.channels), x.narrow(self.dim, self.channels, rest)
        return torch.cat((first.abs(), last), self.dim)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.channels}, dim={self.dim}"


class HouseHolder(WholeModule):
    r"""Reflects pairs of channels that lie on one side of a learnable line (Singla, Singla, Feizi, ICLR 2022).

    .. math:: (a, b) \mapsto (a, b) \text{ if } a \sin(\theta/2) \ge b \cos(\theta/2), \text{ else }
              (a \cos\theta + b \sin\theta,\; a \sin\theta - b \cos\theta)

    *Improved deterministic l2 robustness on CIFAR-10 and CIFAR-100*. The two pieces agree on the line, and both
    are orthogonal: continuous, 1-Lipschitz, gradient-norm preserving. It starts at theta = pi / 2, MaxMin.

    An odd last channel passes through. Parameter: ``theta`` (channels // 2).

    Args:
        channels: number of channels along ``dim``.
        pairing: ``"adjacent"`` (default) or ``"halves"``, as in :class:`MaxMin`.
        dim: dimension of the channels; default 1.
        device: of the parameter; default None: torch's default device.
        dtype: of the parameter; default None: torch's default dtype.

    Raises:
        ValueError: another pairing, or an input with another number of channels.
        TypeError: integers x.

    >>> lip.HouseHolder(4)(torch.tensor([[1.0, 3.0, 5.0, 2.0]])).detach().round()
    tensor([[3., 1., 5., 2.]])
    """

    def __init__(
        self,
        channels: int,
        pairing: Pairing = "adjacent",
        dim: int = 1,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.channels = positive_int("channels", channels)
        self.pairing: Pairing = _check_pairing(pairing)
        self.dim = dim
        self.theta = nn.Parameter(torch.empty(channels // 2, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """theta = pi / 2, MaxMin."""
        nn.init.constant_(self.theta, math.pi / 2)

    def forward(self, x: Tensor) -> Tensor:
        """The input with the pairs beyond their line reflected in it."""
        require_floating(x)
        if x.shape[self.dim] != self.channels:
            raise ValueError(f"channels={self.channels}: got {x.shape[self.dim]} along dim={self.dim} of x")
        dim, pairs = self.dim % x.dim(), self.channels // 2
        paired, last = x.split((2 * pairs, self.channels - 2 * pairs), dim)
        shape, at = ((2, pairs), dim) if _check_pairing(self.pairing) == "halves" else ((pairs, 2), dim + 1)
        a, b = paired.unflatten(dim, shape).unbind(at)
        theta = at_least_float32(self.theta).view(-1, *[1] * (x.dim() - 1 - dim))
        cosine, sine = theta.cos().to(x.dtype), theta.sin().to(x.dtype)
        keep = a * (theta / 2).sin() >= b * (theta / 2).cos()
        first = torch.where(keep, a, a * cosine + b * sine)
        second = torch.where(keep, b, a * sine - b * cosine)
        return torch.cat((torch.stack((first, second), at).flatten(dim, dim + 1), last), dim)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.channels}, pairing={self.pairing!r}, dim={self.dim}"
