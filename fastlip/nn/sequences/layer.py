"""Convolutions of sequences: the two-dimensional layers on images of one row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fastlip.kernels.common.literals import Padding
from fastlip.nn._forms import Layer, OneRow, form_of, with_methods_of
from fastlip.nn._recorded import record_forward
from fastlip.nn.base import LipschitzLayer

__all__ = ["OneRow", "of_sequences", "one_dimensional", "row_shape", "row_sizes", "row_weight"]
_Row = tuple[int, int]


def of_sequences(of_images: type[LipschitzLayer]) -> Callable[[type[Layer]], type[Layer]]:
    """Decorates a layer of sequences, (n, c, l) or (c, l), that is a two-dimensional layer on images of one row.

    ``@of_sequences(AOLConv2d)`` above ``class AOLConv1d(LipschitzLayer)``: the class has a constructor of its own,
    and computes its weights by the methods of ``AOLConv2d``. Its kernels have one row, and so has every image that
    it sees: (n, c, 1, l). Audit, export and rounding errors have one rule for all these layers, which asks the rule
    of the two-dimensional layer. ``kernel_size``, ``stride``, ``padding`` and ``dilation`` are tuples of one int, as
    in ``torch.nn.Conv1d``.

    Args:
        of_images: the two-dimensional layer; its methods do not call ``super()``.
    """

    def decorate(cls: type[Layer]) -> type[Layer]:
        cls.forward = _forward  # type: ignore[method-assign]
        cls.lipschitz_bound = _lipschitz_bound  # type: ignore[method-assign]
        record_forward(cls)
        return with_methods_of(of_images, axes=1)(cls)

    return decorate


def _forward(self: LipschitzLayer, x: Tensor) -> Tensor:
    """Applies the effective weights to sequences (n, in_channels, l) or (in_channels, l)."""
    if x.dim() not in (2, 3) or x.shape[-2] != self.in_channels:
        expected = f"(n, {self.in_channels}, l) or ({self.in_channels}, l)"
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected {expected}")
    return LipschitzLayer.forward(self, x.unsqueeze(-2)).squeeze(-2)


def _lipschitz_bound(self: LipschitzLayer, input_shape: tuple[int, ...]) -> float:
    """An upper bound of the L2 Lipschitz constant of this layer as it runs, from its effective weights.

    Args:
        input_shape: (in_channels, l).

    Returns:
        The bound, computed in float64 from the weights in the dtype in which they are used.
    """
    return self._of_images.lipschitz_bound(self, row_shape(input_shape))


def _only_row(self: LipschitzLayer) -> Tensor:
    """The effective kernel without its axis of rows."""
    return self._only_weight().squeeze(2)


# A layer with one kernel shows it as ``torch.nn.Conv1d`` does.
row_weight = property(
    _only_row, doc="The effective kernel (cout, cin / groups, k); differentiable in training, a copy in evaluation."
)


def row_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (c, l) of sequences as images (c, 1, l)."""
    return *shape[:-1], 1, shape[-1]


def row_sizes(
    kernel_size: Any, stride: Any, padding: Any, dilation: Any, groups: Any, padding_mode: Any
) -> tuple[_Row, _Row, Padding, _Row, Any, Any]:
    """These arguments of ``torch.nn.Conv1d`` for kernels of one row, or TypeError or ValueError."""
    return (
        (1, one_int("kernel_size", kernel_size)),
        (1, one_int("stride", stride)),
        padding if isinstance(padding, str) else (0, one_int("padding", padding, least=0)),  # type: ignore[return-value]
        (1, one_int("dilation", dilation)),
        groups,
        padding_mode,
    )


def one_int(name: str, value: Any, least: int = 1) -> int:
    """Returns an int, or that in a tuple of one, or raises TypeError or ValueError."""
    (only,) = value if isinstance(value, (tuple, list)) and len(value) == 1 else (value,)
    if isinstance(only, bool) or not isinstance(only, int):
        raise TypeError(f"{name}={value!r}: expected an int or a tuple of one")
    if only < least:
        raise ValueError(f"{name}={value!r}: expected at least {least}")
    return only


def one_dimensional(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The layer of sequences that computes its weights as a two-dimensional layer does; None if there is none."""
    return form_of(kind, 1)
