"""The worst-case rounding error of one module: by the rule for its type or application, else from what is stated."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import repeat
from operator import mul
from typing import Any

from torch import nn

from fastlip.certification.bounds import Bound
from fastlip.certification.rounding.terms import SLACK, Rounding, Unit, underflow
from fastlip.inspection.rules import Rules, of_images
from fastlip.nn._forms import keys_of
from fastlip.nn.sequences import OneRow, row_shape

Shape = tuple[int, ...]
Rule = Callable[[Any, Shape, Shape, float, Unit], Rounding]

_OURS = "fastlip.", "torch."
_FORWARDS = frozenset({"forward", "_conv_forward"})
_UNKNOWN = 4.0  # roundings of each entry that a module of which nothing is known reads or writes
_RULES: Rules[Rule] = Rules()
# Decorates the rule for some classes: a function of the module, its shapes, its Lipschitz bound and the unit.
register = _RULES.register


@register(OneRow)
def _of_sequences(layer: Any, input_shape: Shape, output_shape: Shape, value: float, unit: Unit) -> Rounding:
    rule = of_images(_RULES.table, layer)
    return rule(layer, row_shape(input_shape), row_shape(output_shape), value, unit)


@cache
def rule_for(kind: type, application: type) -> Rule | None:
    """The rule for modules of a class, whose forward must be this package's or torch's, or for an application."""
    for base in keys_of(kind, application):
        if base in kind.__mro__ and not (_FORWARDS.isdisjoint(vars(base)) or base.__module__.startswith(_OURS)):
            return None
        if base in _RULES.table:
            return _RULES.table[base]
    return None


def rule_of(module: nn.Module) -> Rule | None:
    """The rule for a module; None if there is none."""
    return rule_for(type(module), type(getattr(module, "_application", None)))


def worst_case(module: nn.Module, found: Any, input_shape: Shape, output_shape: Shape, unit: Unit) -> Rounding:
    """A bound of the rounding error of one module, in the worst case.

    By the rule for its type, if its forward is this package's or torch's. Other modules state it: by a method
    ``worst_roundings(input_shape)``, or by the ``roundings`` of the ``Bound`` that was registered; if they do not, a
    sum over all inputs is assumed for every output.

    Args:
        module: in eval mode.
        found: its ``Bound`` or row of the audit; ``roundings`` and ``constant`` are read where there is no rule.
        input_shape: without the batch, as output_shape.
        output_shape: see input_shape.
        unit: that of the dtype in which the module runs.
    """
    value = float(found.value if isinstance(found, Bound) else found.bound)
    rule = rule_for(type(module), type(getattr(module, "_application", None)))  # rule_of, without a call
    if rule is not None:
        own = rule(module, input_shape, output_shape, value, unit)
        return Rounding(*map(mul, own[:-1], repeat(1 + SLACK)), largest=own.largest)
    method = getattr(module, "worst_roundings", None)
    if method is not None:
        stated = method(input_shape)
        count, constant = stated if isinstance(stated, tuple) else (stated, 0.0)
    else:
        count, constant = _from_bound(found, value, input_shape, output_shape)
    outputs = math.prod(output_shape)
    if count == 0 and constant == 0:
        return underflow(unit, 1, outputs, 0.0)
    depth = count / max(value, 1)
    own = Rounding(unit.gamma(depth) * max(value, 1), unit.u * constant, 2 * unit.u)
    return own.plus(underflow(unit, depth + 4, outputs)).times(1 + SLACK)


def _from_bound(found: Any, value: float, input_shape: Shape, output_shape: Shape) -> tuple[float, float]:
    """Roundings and constant in the worst case from those of independent roundings, which add up in square."""
    if found.roundings is None:
        entries = math.prod(input_shape) + math.prod(output_shape)
        return _UNKNOWN * entries * max(value, 1), _UNKNOWN * entries
    depth = max(found.roundings / value, 1.0) if value > 0 else max(found.roundings, 1.0)
    return found.roundings * depth, found.constant * depth
