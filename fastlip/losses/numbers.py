"""Checks of the numbers that losses take as parameters; each ValueError names the argument and its value."""

from __future__ import annotations

import math


def positive(name: str, value: float) -> float:
    """Returns a finite number above 0 as float; ValueError otherwise."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value!r}: expected a positive number")
    return float(value)


def at_least_zero(name: str, value: float) -> float:
    """Returns a finite number of at least 0 as float; ValueError otherwise."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value!r}: expected a number, at least 0")
    return float(value)


def fraction(name: str, value: float) -> float:
    """Returns a number from 0 to 1 as float; ValueError otherwise."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r}: expected a number from 0 to 1")
    return float(value)
