"""The table of Lipschitz bounds by module type, which anyone may extend."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple

from torch import nn

Shape = tuple[int, ...]


class Bound(NamedTuple):
    """A Lipschitz bound, how it was found, and the module's own rounding.

    With unit roundoff u, the module's arithmetic adds an error of L2 norm about u (roundings |x| + constant + 2 |y|)
    for input x and output y, if independent roundings add up. For a sum of n products ``roundings`` is about
    ``value`` times sqrt(n).

    Attributes:
        value: the bound.
        how: what it comes from, for the audit's table.
        roundings: see above. 0: the module only moves, compares or drops entries, without any error. None: nothing
            is known, and a sum over all inputs is assumed. Certificates read it only for modules that are neither of
            this package nor of torch: in the worst case roundings^2 / value takes its place, or what the module's
            ``worst_roundings(input_shape)`` states.
        constant: see above.
        exact: whether the value is attained, up to rounding.

    Example:
        >>> fastlip.certification.Bound(2.0, "by hand").exact
        False
    """

    value: float
    how: str
    roundings: float | None = None
    constant: float = 0.0
    exact: bool = False


@singledispatch
def lipschitz_bound(module: nn.Module, input_shape: Shape, output_shape: Shape) -> Bound:
    """An upper bound of the L2 Lipschitz constant of a module in eval mode.

    Extend it with ``@lipschitz_bound.register(MyModule)``, or give the module a method
    ``lipschitz_bound(input_shape) -> float``.

    Args:
        module: in eval mode.
        input_shape: that of one sample, without the batch.
        output_shape: that of its output.

    Returns:
        A :class:`Bound`.

    Raises:
        TypeError: no rule for this type.

    Example:
        >>> fastlip.certification.lipschitz_bound(torch.nn.Sigmoid(), (3,), (3,))
        Bound(value=0.25, how='largest slope', roundings=16.0, constant=0.0, exact=True)
    """
    raise TypeError(f"no bound is registered for {type(module).__name__}")


def register(*kinds: type[nn.Module]) -> Callable[[Any], Any]:
    """Decorates the rule for several types."""

    def decorate(rule: Any) -> Any:
        for kind in kinds:
            lipschitz_bound.register(kind)(rule)
        return rule

    return decorate
