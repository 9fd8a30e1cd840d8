"""Names that attributes of layers had before they became internal: they still work, but ``dir`` hides them."""

from __future__ import annotations

from typing import Any


class EarlierName:
    """A class attribute: reads and sets the attribute of this name with an underscore before it."""

    name: str

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = f"_{name}"

    def __get__(self, layer: Any, kind: type | None = None) -> Any:
        return self if layer is None else getattr(layer, self.name)

    def __set__(self, layer: Any, value: Any) -> None:
        setattr(layer, self.name, value)


def without_earlier(kind: type, names: list[str]) -> list[str]:
    """The names of a layer's attributes that are not earlier ones."""
    return [name for name in names if not isinstance(getattr(kind, name, None), EarlierName)]


def take_over_earlier(kind: type) -> None:
    """What a class defines under an earlier name takes effect: it is defined under the name of today too."""
    for name, value in list(vars(kind).items()):
        inherited = (vars(base).get(name) for base in kind.__mro__[1:])
        if not isinstance(value, EarlierName) and any(isinstance(found, EarlierName) for found in inherited):
            setattr(kind, f"_{name}", value)
