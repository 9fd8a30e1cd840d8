"""The part of an error about the names that are allowed: all of a few, the closest of many."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import partial

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
