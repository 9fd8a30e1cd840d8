"""Convolutions of sequences: the two-dimensional layers on images of one row."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fastlip.kernels.common.literals import Padding, Padding1d
from fastlip.nn.base import LipschitzLayer

_Row = tuple[int, int]


class OneRow(LipschitzLayer):
    """Makes a two-dimensional layer one of sequences, (n, c, l) or (c, l): ``class AOLConv1d(OneRow, AOLConv2d)``.

    Its kernels have one row, and so has every image that it sees: (n, c, 1, l). This is the one place where the two
    differ. Audit, export and rounding errors have one rule for this class, which asks the rule of the two-dimensional
    layer. ``kernel_size``, ``stride``, ``padding`` and ``dilation`` are tuples of one int, as in ``torch.nn.Conv1d``.
    """

    _axes: ClassVar[int] = 1
    in_channels: int
    kernel_size: tuple[int]
    stride: tuple[int]
    padding: Padding1d
    dilation: tuple[int]

    def forward(self, x: Tensor) -> Tensor:
        """Applies the effective weights to sequences (n, in_channels, l) or (in_channels, l)."""
        if x.dim() not in (2, 3) or x.shape[-2] != self.in_channels:
            expected = f"(n, {self.in_channels}, l) or ({self.in_channels}, l)"
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected {expected}")
        return LipschitzLayer.forward(self, x.unsqueeze(-2)).squeeze(-2)

    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """An upper bound of the L2 Lipschitz constant of this layer as it runs, from its effective weights.

        Args:
            input_shape: (in_channels, l).

        Returns:
            The bound, computed in float64 from the weights in the dtype in which they are used.
        """
        return super().lipschitz_bound(row_shape(input_shape))

    def _only_row(self) -> Tensor:
        """The effective kernel without its axis of rows."""
        return self._only_weight().squeeze(2)


# A layer with one kernel shows it as ``torch.nn.Conv1d`` does.
row_weight = property(
    OneRow._only_row,
    doc="The effective kernel (cout, cin / groups, k); differentiable in training, a copy in evaluation.",
)


def row_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (c, l) of sequences as images (c, 1, l)."""
    return *shape[:-1], 1, shape[-1]


def row_arguments(kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> tuple[_Row, _Row, Padding, _Row]:
    """The four arguments of ``torch.nn.Conv1d`` for a kernel of one row, or TypeError or ValueError."""
    return (
        (1, one_int("kernel_size", kernel_size)),
        (1, one_int("stride", stride)),
        padding if isinstance(padding, str) else (0, one_int("padding", padding, least=0)),  # type: ignore[return-value]
        (1, one_int("dilation", dilation)),
    )


def one_int(name: str, value: Any, least: int = 1) -> int:
    """Returns an int, or that in a tuple of one, or raises TypeError or ValueError."""
    (only,) = value if isinstance(value, (tuple, list)) and len(value) == 1 else (value,)
    if isinstance(only, bool) or not isinstance(only, int):
        raise TypeError(f"{name}={value!r}: expected an int or a tuple of one")
    if only < least:
        raise ValueError(f"{name}={value!r}: expected at least {least}")
    return only


def one_dimensional(kind: type[torch.nn.Module]) -> type[torch.nn.Module] | None:
    """The layer of sequences that a two-dimensional layer is the base of; None if there is none."""
    for found in OneRow.__subclasses__():
        if kind in found.__bases__:
            return found
    return None
