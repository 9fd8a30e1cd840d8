"""Convolutions of volumes: the two-dimensional layers with one more axis."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fastlip.nn._forms import Layer, Volumes, form_of, with_methods_of
from fastlip.nn.base import LipschitzLayer

__all__ = ["Volumes", "of_volumes", "three_dimensional"]


def of_volumes(of_images: type[LipschitzLayer]) -> Callable[[type[Layer]], type[Layer]]:
    """Decorates a layer of volumes, (n, c, d, h, w), that is a two-dimensional layer with one more axis.

    ``@of_volumes(AOLConv2d)`` above ``class AOLConv3d(LipschitzLayer)``: the class has a constructor of its own, and
    computes its weights by the methods of ``AOLConv2d``. Its kernels, and the sizes of its geometry, have three axes
    (depth, height, width). No kernels of this package convolve volumes: convolutions and Fourier transforms are
    torch's. ``backend="native"`` and ``"triton"`` run where the method computes its weights by an op that has
    kernels for three axes, and raise otherwise.

    Args:
        of_images: the two-dimensional layer; its methods do not call ``super()``.
    """
    return with_methods_of(of_images, axes=3)


def three_dimensional(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The layer of volumes that computes its weights as a two-dimensional layer does; None if there is none."""
    return form_of(kind, 3)
