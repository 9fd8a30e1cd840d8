"""Layers of volumes (n, c, d, h, w): convolutions, pools and shuffles in three dimensions."""

from fastlip.nn.volumes.kernels import AOLConv3d
from fastlip.nn.volumes.layer import Volumes, of_volumes, three_dimensional
from fastlip.nn.volumes.pooling import AdaptiveL2NormPool3d, L2NormPool3d, ScaledAvgPool3d
from fastlip.nn.volumes.residual import CPLConv3d, SLLConv3d
from fastlip.nn.volumes.shaping import PixelShuffle3d, PixelUnshuffle3d
from fastlip.nn.volumes.spectral import BROConv3d, CayleyConv3d, LOTConv3d

__all__ = [
    "AOLConv3d",
    "AdaptiveL2NormPool3d",
    "BROConv3d",
    "CPLConv3d",
    "CayleyConv3d",
    "L2NormPool3d",
    "LOTConv3d",
    "PixelShuffle3d",
    "PixelUnshuffle3d",
    "SLLConv3d",
    "ScaledAvgPool3d",
    "Volumes",
    "of_volumes",
    "three_dimensional",
]
