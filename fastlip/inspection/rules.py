"""Finds what the audit, the certificate and the export know of a module, by its class or its application."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from torch import nn

from fastlip.nn._forms import keys_of
from fastlip.nn.base import LipschitzLayer

Rule = TypeVar("Rule")
_PACKAGE = "fastlip."


def nearest(table: Mapping[type, Rule], module: nn.Module) -> tuple[type, Rule] | None:
    """The key of a table that says most about a module, and its value; None if there is none.

    The classes of a module come first, from its own to ``torch.nn.Module``. A layer with a constrained weight is also
    known by its ``_application``, the object that says how it applies this weight: a method whose application is in
    the table needs no entry of its own.
    """
    return nearest_of(table, type(module), type(getattr(module, "_application", None)))


def nearest_of(table: Mapping[type, Rule], kind: type, application: type) -> tuple[type, Rule] | None:
    """:func:`nearest` for modules of a class with an application."""
    # A class derived from an application is another one.
    return next(((key, table[key]) for key in keys_of(kind, application) if key in table), None)


def of_images(table: Mapping[type, Rule], layer: LipschitzLayer) -> Rule:
    """The value of a table for the two-dimensional layer that a layer of sequences applies to images of one row."""
    return next(table[key] for key in keys_of(layer._of_images, type(layer._application)) if key in table)


def is_bounded_here(module: nn.Module) -> bool:
    """Whether a layer's application computes what its ``bound`` measures, as far as this can be told.

    Another package's application must define ``bound`` itself if it changes anything.
    """
    for base in type(getattr(module, "_application", None)).__mro__:
        if base.__module__.startswith((_PACKAGE, "builtins")):
            return True
        if "bound" in vars(base):
            return True
        if any(not name.startswith("__") or name == "__call__" for name in vars(base)):
            return False
    return True


def written_here(module: nn.Module) -> type:
    """The nearest class of a module that this package wrote; ``torch.nn.Module`` if there is none."""
    for base in type(module).__mro__:
        if base.__module__.startswith(_PACKAGE):
            return base
    return nn.Module


class Rules(Generic[Rule]):
    """A table of rules by class or application, filled with decorators."""

    def __init__(self) -> None:
        self.table: dict[type, Rule] = {}
        self._found: dict[tuple[type, type], Rule] = {}

    def register(self, *kinds: type) -> Callable[[Rule], Rule]:
        """Decorates the rule for some classes of modules or applications."""

        def decorate(rule: Rule) -> Rule:
            self.table.update(dict.fromkeys(kinds, rule))
            self._found.clear()
            return rule

        return decorate

    def rule_of(self, module: nn.Module) -> Rule | None:
        """The rule for a module, see :func:`nearest`; None if there is none."""
        key = type(module), type(getattr(module, "_application", None))
        if key not in self._found and (found := nearest_of(self.table, *key)) is not None:
            self._found[key] = found[1]
        return self._found.get(key)


def defines_outside(module: nn.Module, names: frozenset[str]) -> bool:
    """Whether a class of another package, derived from one of this package, or the module itself defines a name."""
    if not names.isdisjoint(vars(module)):
        return True
    for base in type(module).__mro__:
        if base.__module__.startswith(_PACKAGE):
            return False
        if not names.isdisjoint(vars(base)):
            return True
    return False
