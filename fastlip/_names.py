"""The part of an error about the names that are allowed: all of a few, the closest of many."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

Called = TypeVar("Called", bound=Callable[..., Any])

_SHOWN = 200  # characters: a longer list is not read
_CLOSEST = 3


def allowed(value: str, names: Sequence[str], place: str, more: str = "") -> str:
    """Returns the part of an error after "NAME=VALUE: ".

    Args:
        value: what was given.
        names: those that are allowed.
        place: where all of many are listed, such as ``"fastlip train --help"``.
        more: what is allowed besides.
    """
    text = f"allowed are {', '.join(map(repr, names))}{more}"
    if len(text) <= _SHOWN:
        return text
    closest = sorted(names, key=partial(_likeness, value), reverse=True)[:_CLOSEST]
    return f"closest are {', '.join(map(repr, closest))} of the {len(names)} in {place}{more}"


def _likeness(value: str, name: str) -> float:
    """How much a name, or a part of it between dots, is like what was given: ``lr`` stands for ``optimizer.lr``."""
    return max(difflib.SequenceMatcher(None, value, part).ratio() for part in (name, *name.split(".")))


def check_keywords(owner: str, given: Iterable[str], names: Sequence[str]) -> None:
    """Raises TypeError for a keyword that is not among the names, with all of them and the closest one."""
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            meant = f" (perhaps {close[0]} is meant)" if close else ""
            raise TypeError(f"{name}: {owner} has no such argument{meant}; allowed are {', '.join(names)}")


def keywords_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the arguments that a function or a class takes by name."""
    parameters = inspect.signature(function).parameters.values()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(parameter.name for parameter in parameters if parameter.kind in by_name and parameter.name != "self")


def lists_keywords(function: Called) -> Called:
    """Decorates a function or a constructor: the error for a keyword that it does not take lists those it takes."""
    if any(part.kind is part.VAR_KEYWORD for part in inspect.signature(function).parameters.values()):
        return function
    names, owner = keywords_of(function), function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            check_keywords(owner, kwargs, names)
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]


def constructor_lists_keywords(cls: type) -> None:
    """Decorates the constructor that a class defines itself by :func:`lists_keywords`."""
    if (init := vars(cls).get("__init__")) is not None:
        cls.__init__ = lists_keywords(init)
