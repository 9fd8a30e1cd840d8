"""The methods: every module of ``fastlip.nn`` that has a ``METHOD`` is one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import cast

from fastlip import nn as lip
from fastlip.models.literals import MethodName
from fastlip.nn.method import Method


def _discovered() -> dict[str, Method]:
    """The methods by name, in alphabetical order."""
    modules = (
        importlib.import_module(f"{lip.__name__}.{info.name}")
        for info in pkgutil.iter_modules(lip.__path__)
        if not info.name.startswith("_")
    )
    methods = [module.METHOD for module in modules if hasattr(module, "METHOD")]
    return {method.name: method for method in sorted(methods, key=lambda method: method.name)}


REGISTRY: Mapping[str, Method] = _discovered()
METHODS = cast(tuple[MethodName, ...], tuple(REGISTRY))
# As the papers write them, for tables and plots.
TITLES = {name: method.title for name, method in REGISTRY.items()}


def method_of(name: str) -> Method:
    """The method of this name; ValueError for one that is not known."""
    if name not in REGISTRY:
        raise ValueError(f"method={name!r}: allowed are {', '.join(map(repr, METHODS))}")
    return REGISTRY[name]


def owners_of(network: str) -> tuple[str, ...]:
    """The methods whose layers alone this network consists of; empty for a network that takes any method."""
    return tuple(name for name, method in REGISTRY.items() if network in method.networks)
