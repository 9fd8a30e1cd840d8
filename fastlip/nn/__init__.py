"""1-Lipschitz layers with torch.nn's argument order and names."""

from fastlip.nn.activations import Abs, GroupSort, MaxMin
from fastlip.nn.aol import AOLConv2d, AOLLinear
from fastlip.nn.cayley import CayleyConv2d, CayleyLinear
from fastlip.nn.lot import LOTConv2d, LOTLinear
from fastlip.nn.shaping import FirstChannels, PixelUnshuffle, ZeroChannelPad

__all__ = [
    "AOLConv2d",
    "AOLLinear",
    "Abs",
    "CayleyConv2d",
    "CayleyLinear",
    "FirstChannels",
    "GroupSort",
    "LOTConv2d",
    "LOTLinear",
    "MaxMin",
    "PixelUnshuffle",
    "ZeroChannelPad",
]
