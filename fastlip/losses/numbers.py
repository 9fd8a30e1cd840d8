"""Checks of the numbers that losses take as parameters; each error names the argument and its value."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any


def positive(name: str, value: float) -> float:
    """Returns a finite number above 0 as float; ValueError or TypeError otherwise."""
    if not (math.isfinite(_number(name, value)) and value > 0):
        raise ValueError(f"{name}={value!r}: expected a positive number")
    return float(value)


def at_least_zero(name: str, value: float) -> float:
    """Returns a finite number of at least 0 as float; ValueError or TypeError otherwise."""
    if not (math.isfinite(_number(name, value)) and value >= 0):
        raise ValueError(f"{name}={value!r}: expected a number, at least 0")
    return float(value)


def fraction(name: str, value: float) -> float:
    """Returns a number from 0 to 1 as float; ValueError or TypeError otherwise."""
    if not 0 <= _number(name, value) <= 1:
        raise ValueError(f"{name}={value!r}: expected a number from 0 to 1")
    return float(value)


def _number(name: str, value: Any) -> float:
    """The value, if it is a real number; TypeError otherwise. Numbers of numpy are real numbers, texts are not."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: expected a number, got {type(value).__name__}")
    return float(value)
