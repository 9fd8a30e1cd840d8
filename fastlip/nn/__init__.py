"""1-Lipschitz layers with torch.nn's argument order and names."""

from fastlip.nn.activations import Abs, GroupSort, HouseHolder, MaxMin, PartialAbs
from fastlip.nn.aoc import AOCConv2d, AOCConvTranspose2d
from fastlip.nn.aol import AOLConv2d, AOLLinear
from fastlip.nn.bcop import BCOPConv2d, BjorckLinear
from fastlip.nn.bro import BROConv2d, BROLinear
from fastlip.nn.cayley import CayleyConv2d, CayleyLinear
from fastlip.nn.centering import BatchCentering, LayerCentering
from fastlip.nn.chain import Chain
from fastlip.nn.cpl import CPLConv2d, CPLLinear
from fastlip.nn.lot import LOTConv2d, LOTLinear
from fastlip.nn.normalized import NormalizedLinear
from fastlip.nn.pixels import PerPixel
from fastlip.nn.pooling import AdaptiveL2NormPool2d, L2NormPool2d, ScaledAvgPool2d
from fastlip.nn.sandwich import SandwichConv2d, SandwichLinear
from fastlip.nn.scaling import LipschitzResidual, PositionBias, Scale
from fastlip.nn.sequences import (
    AdaptiveL2NormPool1d,
    AOCConv1d,
    AOLConv1d,
    BCOPConv1d,
    BROConv1d,
    CayleyConv1d,
    CPLConv1d,
    L2NormPool1d,
    LOTConv1d,
    PixelShuffle1d,
    PixelUnshuffle1d,
    SandwichConv1d,
    ScaledAvgPool1d,
    SLLConv1d,
    SOCConv1d,
)
from fastlip.nn.shaping import FirstChannels, PixelUnshuffle, SpatialShift, ZeroChannelPad
from fastlip.nn.sll import SLLConv2d, SLLLinear
from fastlip.nn.soc import SOCConv2d, SOCLinear
from fastlip.nn.volumes import (
    AdaptiveL2NormPool3d,
    AOLConv3d,
    BROConv3d,
    CayleyConv3d,
    CPLConv3d,
    L2NormPool3d,
    LOTConv3d,
    PixelShuffle3d,
    PixelUnshuffle3d,
    ScaledAvgPool3d,
    SLLConv3d,
)
from fastlip.nn.weighting import InputWeights

__all__ = [
    "AOCConv1d",
    "AOCConv2d",
    "AOCConvTranspose2d",
    "AOLConv1d",
    "AOLConv2d",
    "AOLConv3d",
    "AOLLinear",
    "Abs",
    "AdaptiveL2NormPool1d",
    "AdaptiveL2NormPool2d",
    "AdaptiveL2NormPool3d",
    "BCOPConv1d",
    "BCOPConv2d",
    "BROConv1d",
    "BROConv2d",
    "BROConv3d",
    "BROLinear",
    "BatchCentering",
    "BjorckLinear",
    "CPLConv1d",
    "CPLConv2d",
    "CPLConv3d",
    "CPLLinear",
    "CayleyConv1d",
    "CayleyConv2d",
    "CayleyConv3d",
    "CayleyLinear",
    "Chain",
    "FirstChannels",
    "GroupSort",
    "HouseHolder",
    "InputWeights",
    "L2NormPool1d",
    "L2NormPool2d",
    "L2NormPool3d",
    "LOTConv1d",
    "LOTConv2d",
    "LOTConv3d",
    "LOTLinear",
    "LayerCentering",
    "LipschitzResidual",
    "MaxMin",
    "NormalizedLinear",
    "PartialAbs",
    "PerPixel",
    "PixelShuffle1d",
    "PixelShuffle3d",
    "PixelUnshuffle",
    "PixelUnshuffle1d",
    "PixelUnshuffle3d",
    "PositionBias",
    "SLLConv1d",
    "SLLConv2d",
    "SLLConv3d",
    "SLLLinear",
    "SOCConv1d",
    "SOCConv2d",
    "SOCLinear",
    "SandwichConv1d",
    "SandwichConv2d",
    "SandwichLinear",
    "Scale",
    "ScaledAvgPool1d",
    "ScaledAvgPool2d",
    "ScaledAvgPool3d",
    "SpatialShift",
    "ZeroChannelPad",
]
