"""Marks of functions for ``torch.compile``, set without importing the compiler, which takes over a second."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., object])
_is_tracing = torch.compiler.is_dynamo_compiling


def constant(function: Function) -> Function:
    """Decorates a function that a trace calls once, keeping its result: ``torch.compiler.assume_constant_result``.

    Sets the attribute by which the compiler knows such a function.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def left_whole(function: Function) -> Function:
    """Decorates a function whose call stays whole in the compiler's graph: ``torch.compiler.allow_in_graph``.

    The first trace that meets it tells the compiler so.
    """

    @constant
    def tell() -> None:
        torch.compiler.allow_in_graph(function)

    @functools.wraps(function)
    def call(*args: object, **options: object) -> object:
        if _is_tracing():
            tell()
        return function(*args, **options)

    return call  # type: ignore[return-value]
