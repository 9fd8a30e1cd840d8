"""Sizes of images under this package's convolutions."""

from __future__ import annotations

from fastlip.kernels.common.geometry import ConvGeometry, Pair


def blocks(geometry: ConvGeometry, sides: tuple[int, ...]) -> Pair:
    """The size of an image after its stride x stride patches became channels; partial patches count."""
    axes = zip(sides[-geometry.axes :], geometry.stride, strict=True)
    return tuple([-(-side // step) for side, step in axes])
