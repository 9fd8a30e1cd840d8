"""Convolutions of volumes: the two-dimensional layers with one more axis."""

from __future__ import annotations

from typing import ClassVar

import torch

from fastlip.kernels.common.literals import Padding3d
from fastlip.nn.base import LipschitzLayer


class Volumes(LipschitzLayer):
    """Makes a two-dimensional layer one of volumes, (n, c, d, h, w): ``class AOLConv3d(Volumes, AOLConv2d)``.

    Its kernels, and the sizes of its geometry, have three axes (depth, height, width). No kernels of this package
    convolve volumes: convolutions and Fourier transforms are those of torch. ``backend="native"`` and ``"triton"``
    run where the method computes its weights by an op that has kernels for three axes, and raise otherwise.
    """

    _axes: ClassVar[int] = 3
    kernel_size: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: Padding3d
    dilation: tuple[int, int, int]


def three_dimensional(kind: type[torch.nn.Module]) -> type[torch.nn.Module] | None:
    """The layer of volumes that a two-dimensional layer is the base of; None if there is none."""
    for found in Volumes.__subclasses__():
        if kind in found.__bases__:
            return found
    return None
