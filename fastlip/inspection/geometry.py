"""The geometry of this package's convolutions as one value, and the norm of a convolution of that geometry."""

from __future__ import annotations

from torch import Tensor

from fastlip import ops
from fastlip.kernels.common.geometry import ConvGeometry, Pair


def norm_of_convolution(weight: Tensor, geometry: ConvGeometry, image: Pair) -> float:
    """An upper bound of the norm of a convolution with this kernel on images of this size."""
    return ops.spectral_norm(
        weight, image, geometry.stride, geometry.pads, geometry.dilation, geometry.groups, geometry.padding_mode
    ).item()


def blocks(geometry: ConvGeometry, sides: tuple[int, ...]) -> Pair:
    """The size of an image after its stride x stride patches became channels; partial patches count."""
    axes = zip(sides[-geometry.axes :], geometry.stride, strict=True)
    return tuple([-(-side // step) for side, step in axes])
