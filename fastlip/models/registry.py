"""The methods: every module of ``fastlip.nn`` that has a ``METHOD`` is one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Set
from typing import Any, cast

from fastlip import nn as lip
from fastlip._names import check_keywords, keywords_of
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


def check_layer_options(build: Callable[..., Any], method: Method, options: Mapping[str, Any], own: Set[str]) -> None:
    """TypeError for an option that neither a network nor its method's convolutions have; it lists all.

    Args:
        build: the function of the network.
        method: the method.
        options: what the network was given besides its own arguments.
        own: arguments of the convolutions that the network sets itself.
    """
    further = [name for name in keywords_of(method.convolution) if name not in own]
    check_keywords(
        f"{build.__name__} of {method.name!r}", options, list(dict.fromkeys([*keywords_of(build), *further]))
    )


def owners_of(network: str) -> tuple[str, ...]:
    """The methods whose layers alone this network consists of; empty for a network that takes any method."""
    return tuple(name for name, method in REGISTRY.items() if network in method.networks)
