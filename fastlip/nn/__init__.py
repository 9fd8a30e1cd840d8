"""1-Lipschitz layers with torch.nn's argument order and names."""

from fastlip.nn.activations import Abs, GroupSort, MaxMin
from fastlip.nn.aol import AOLConv2d, AOLLinear
from fastlip.nn.shaping import FirstChannels, PixelUnshuffle, ZeroChannelPad

__all__ = [
    "AOLConv2d",
    "AOLLinear",
    "Abs",
    "FirstChannels",
    "GroupSort",
    "MaxMin",
    "PixelUnshuffle",
    "ZeroChannelPad",
]
