"""How the size of a function's output follows from those of its inputs: Lipschitz bounds, and errors likewise."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple


class Growth(NamedTuple):
    r"""The size of an output, from the sizes s_i of the live inputs, each as often as it occurs.

    .. math:: \textstyle\sum_i c_i s_i, \quad \sqrt{\sum_i (c_i s_i)^2} \quad \text{or} \quad \max_i c_i s_i

    A size is a number or a tensor: a Lipschitz bound, or the error of each sample.

    Attributes:
        kind: ``"sum"``, ``"root"`` or ``"largest"``.
        factors: the c_i, at least 0.
    """

    kind: Literal["sum", "root", "largest"]
    factors: tuple[float, ...]

    def __call__(self, *sizes: Any) -> Any:
        """The size of the output."""
        terms = [factor * size for factor, size in zip(self.factors, sizes, strict=True) if factor]
        if not terms:
            return 0 * sizes[0]
        if self.kind == "largest":
            return functools.reduce(_larger, terms)
        if self.kind == "root":
            return sum([term * term for term in terms]) ** 0.5
        return sum(terms)

    @property
    def largest(self) -> float:
        """The most by which an entry of an input is multiplied."""
        return max(self.factors)


def times(factor: float) -> Growth:
    """The growth of a function of one input."""
    return Growth("sum", (factor,))


def _larger(one: Any, other: Any) -> Any:
    return max(one, other) if isinstance(one, float) else one.maximum(other)
