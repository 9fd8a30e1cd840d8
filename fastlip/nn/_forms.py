"""Layers of sequences and of volumes: each computes its weights by the methods of a two-dimensional layer.

They do not derive from that layer: a decorator gives a class the methods that it does not define itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from fastlip.nn.base import LipschitzLayer

Layer = TypeVar("Layer", bound=LipschitzLayer)
_FORMS: dict[tuple[type[nn.Module], int], type[LipschitzLayer]] = {}


class OneRow:
    """Stands for the layers of sequences in tables of rules, as an application does for others."""


class Volumes:
    """Stands for the layers of volumes in tables of rules, as an application does for others."""


_MARKS: dict[int, tuple[type, ...]] = {1: (OneRow,), 2: (), 3: (Volumes,)}


def with_methods_of(of_images: type[LipschitzLayer], axes: int) -> Callable[[type[Layer]], type[Layer]]:
    """Decorates a layer that computes its weights as a two-dimensional layer does, along another number of axes.

    Args:
        of_images: the two-dimensional layer; its methods name the class instead of calling ``super()``.
        axes: 1 for sequences, 3 for volumes.

    Returns:
        The decorator. The class takes over what it does not define itself, except ``__init__`` and the like.

    Raises:
        TypeError: a method calls ``super()`` without arguments, which finds no class but its own.
    """

    def decorate(cls: type[Layer]) -> type[Layer]:
        for name, value in vars(of_images).items():
            if name.startswith("__") or name in vars(cls):
                continue
            code = getattr(value, "__code__", None)
            if code is not None and "__class__" in code.co_freevars:
                raise TypeError(f"{of_images.__name__}.{name}: calls super(): name the class instead")
            setattr(cls, name, value)
        cls._axes, cls._of_images = axes, of_images
        _FORMS[of_images, axes] = cls
        return cls

    return decorate


def form_of(of_images: type[nn.Module], axes: int) -> type[LipschitzLayer] | None:
    """The layer with this number of axes that has the methods of a two-dimensional layer; None if there is none."""
    return _FORMS.get((of_images, axes))


def keys_of(kind: type, application: type) -> tuple[type, ...]:
    """Under which a table may have a rule for modules of a class: its classes, then what its layer is known by.

    A layer of sequences or of volumes is known as such, then every layer by its application. What the modules of
    other packages call so is no application.
    """
    classes = tuple([base for base in kind.__mro__ if base is not object])
    return (*classes, *_MARKS[kind._axes], application) if issubclass(kind, LipschitzLayer) else classes
