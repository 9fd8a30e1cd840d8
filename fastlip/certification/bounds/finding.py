"""Finds the bound of a module: by its own method or by the table, and only if it computes what was bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from fastlip import nn as lip
from fastlip.certification.bounds.layers import own_bound
from fastlip.certification.bounds.table import Bound, Shape, lipschitz_bound
from fastlip.exporting.plain import Plain
from fastlip.inspection.rules import is_bounded_here
from fastlip.nn._calls import MEASURED, overridden

BoundRule = Callable[[Any, Shape, Shape], Bound]
_ALONG_A_DIMENSION = (lip.MaxMin, lip.GroupSort, lip.HouseHolder, lip.PartialAbs, nn.Softmax, Plain)


def rule_of(module: nn.Module) -> BoundRule | None:
    """The rule that was written for exactly what this module computes; None if there is none.

    The most derived class decides; a method ``lipschitz_bound`` of its own comes before the table. A subclass that
    computes something else is another module, unless it is of this package, written with its bound in mind; its own
    parametrization is measured.
    """
    table = lipschitz_bound.registry
    for base in type(module).__mro__:
        rule = own_bound if "lipschitz_bound" in vars(base) else table.get(base)
        if rule is not None and base is not object:
            replaced = base is not type(module) and overridden(module, base, allowed=MEASURED)
            is_ours = rule is own_bound and base.__module__.startswith("fastlip.")
            refused = replaced or "forward" in vars(module) or (is_ours and not is_bounded_here(module))
            return None if refused else rule
    return None


def bound_module(module: nn.Module, input_shape: Shape, output_shape: Shape, rule: BoundRule | None = None) -> Bound:
    """The bound of a module for samples of these shapes, by a rule that was found for it before, or by the table.

    TypeError if there is none.
    """
    if isinstance(module, _ALONG_A_DIMENSION):
        dim: Any = getattr(module, "dim", 1)
        dims = len(input_shape) + 1
        # That of the samples keeps the shape of a batch. None is torch's choice for Softmax.
        if dims in (1, 3) if dim is None else dim % dims == 0:
            raise ValueError(f"{type(module).__name__} with dim={dim} mixes samples: no bound holds for one")
    return (rule or rule_of(module) or lipschitz_bound)(module, input_shape, output_shape)
