"""Names that attributes of layers had before they became internal: they still work, but ``dir`` hides them.

A layer reads and sets them by its names of today, and a layer that was pickled under them is loaded as one of today.
"""

from __future__ import annotations

from typing import Any

# Options that layers had to begin with did not have: what a layer is without them.
_ADDED = {"parametrization": "unconstrained", "quasi_residual": 0.0}


class EarlierName:
    """A class attribute: reads and sets the attribute of this name with an underscore before it.

    ``LipschitzLayer.__setattr__`` translates the name itself; ``__set__`` serves callers of ``object.__setattr__``.
    """

    name: str

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_{name}"

    def __get__(self, layer: Any, kind: type | None = None) -> Any:
        return self if layer is None else getattr(layer, self.name)

    def __set__(self, layer: Any, value: Any) -> None:
        setattr(layer, self.name, value)


def name_of_today(kind: type, name: str) -> str:
    """The name that an attribute of a layer has today, given that or its earlier one."""
    known = getattr(kind, name, None)
    return known.name if isinstance(known, EarlierName) else name


def state_of_today(kind: type, state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a layer that an earlier version may have pickled: names of today, and options added since."""
    found = {name_of_today(kind, name): value for name, value in state.items()}
    fixed: tuple[str, ...] = getattr(kind, "_fixed", ())
    added = {name_of_today(kind, name): value for name, value in _ADDED.items() if name in fixed}
    return added | found


def without_earlier(kind: type, names: list[str]) -> list[str]:
    """The names of a layer's attributes that are not earlier ones."""
    return [name for name in names if not isinstance(getattr(kind, name, None), EarlierName)]


def take_over_earlier(kind: type) -> None:
    """Defines what a class has under an earlier name under the name of today too, so that it takes effect."""
    for name, value in list(vars(kind).items()):
        inherited = (vars(base).get(name) for base in kind.__mro__[1:])
        if not isinstance(value, EarlierName) and any(isinstance(found, EarlierName) for found in inherited):
            setattr(kind, f"_{name}", value)
