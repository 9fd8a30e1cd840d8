"""Rules for the values of a recipe's fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

# The networks compute in float32: its largest number, and its smallest one of full precision.
_LARGEST, _SMALLEST = torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny


def about(key: str, help: str, **rules: Any) -> dict[str, Any]:
    """A field's key in recipe files, the text of its option, and the rules of :func:`check_value`."""
    return {"key": key, "help": help, **rules}


def check_value(name: str, value: Any, rules: Mapping[str, Any]) -> None:
    """Raises ValueError unless the value is finite and keeps its field's choices, least, most, above and below."""
    # "other" says which texts are allowed besides the choices.
    if "choices" in rules and value not in rules["choices"] and not rules.get("other", lambda _: False)(value):
        raise ValueError(f"{name}={value!r}: allowed are {', '.join(map(repr, rules['choices']))}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value!r}: must be finite")
    if type(value) in (int, float) and value and not _SMALLEST <= abs(value) <= _LARGEST:
        raise ValueError(
            f"{name}={value!r}: must be 0 or of a magnitude from {_SMALLEST:.3g} to {_LARGEST:.3g} (float32)"
        )
    if "least" in rules and value < rules["least"]:
        raise ValueError(f"{name}={value!r}: must be at least {rules['least']}")
    if "most" in rules and value > rules["most"]:
        raise ValueError(f"{name}={value!r}: must be at most {rules['most']}")
    if "above" in rules and value <= rules["above"]:
        raise ValueError(f"{name}={value!r}: must be above {rules['above']}")
    if "below" in rules and value >= rules["below"]:
        raise ValueError(f"{name}={value!r}: must be below {rules['below']}")
