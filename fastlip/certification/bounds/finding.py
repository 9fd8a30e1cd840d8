"""Which bound holds for a module: by its own method, or by the table, and only if it computes what was bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fastlip import nn as lip
from fastlip.certification.bounds.layers import own_bound
from fastlip.certification.bounds.table import Bound, Shape, lipschitz_bound
from fastlip.exporting.plain import Plain
from fastlip.nn._calls import MEASURED, overridden

BoundRule = Callable[[Any, Shape, Shape], Bound]
_ALONG_A_DIMENSION = (lip.MaxMin, lip.GroupSort, lip.HouseHolder, nn.Softmax, Plain)


def rule_of(module: nn.Module) -> tuple[type, BoundRule] | None:
    """The class for which the module's bound was written, and the rule; None if there is none.

    The most derived class decides; a method ``lipschitz_bound`` of its own comes before the table.
    """
    table = lipschitz_bound.registry
    for base in type(module).__mro__:
        if "lipschitz_bound" in vars(base):
            return base, own_bound
        if base in table and base is not object:
            return base, table[base]
    return None


def bound_module(module: nn.Module, input_shape: Shape, output_shape: Shape) -> Bound:
    """The bound of a module for samples of these shapes; TypeError if there is none."""
    if isinstance(module, _ALONG_A_DIMENSION) and _is_along_samples(module, len(input_shape) + 1):
        raise ValueError(f"{type(module).__name__} with dim={module.dim} mixes samples: no bound holds for one")
    found = rule_of(module)
    rule = lipschitz_bound if found is None else found[1]
    return rule(module, input_shape, output_shape)


def understands(module: nn.Module) -> bool:
    """Whether a bound was written for exactly what this module computes.

    A subclass that computes something else is another module, unless it is of this package, written with its bound in
    mind; its own parametrization is measured.
    """
    found = rule_of(module)
    if found is None or "forward" in vars(module):
        return False
    return found[0] is type(module) or not overridden(module, found[0], allowed=MEASURED)


def _is_along_samples(module: Any, dims: int) -> bool:
    """Whether a module acts along the dimension of the samples, which keeps the shape of a batch."""
    dim = getattr(module, "dim", 1)
    if dim is None:  # torch's choice for Softmax
        return dims in (1, 3)
    return dim % dims == 0
