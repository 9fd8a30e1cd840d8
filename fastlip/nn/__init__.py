"""1-Lipschitz layers with torch.nn's argument order and names."""

from fastlip.nn.activations import Abs, GroupSort, HouseHolder, MaxMin
from fastlip.nn.aoc import AOCConv2d, AOCConvTranspose2d
from fastlip.nn.aol import AOLConv2d, AOLLinear
from fastlip.nn.bcop import BCOPConv2d, BjorckLinear
from fastlip.nn.bro import BROConv2d, BROLinear
from fastlip.nn.cayley import CayleyConv2d, CayleyLinear
from fastlip.nn.chain import Chain
from fastlip.nn.cpl import CPLConv2d, CPLLinear
from fastlip.nn.lot import LOTConv2d, LOTLinear
from fastlip.nn.normalized import NormalizedLinear
from fastlip.nn.pooling import L2NormPool2d, ScaledAvgPool2d
from fastlip.nn.shaping import FirstChannels, PixelUnshuffle, ZeroChannelPad
from fastlip.nn.sll import SLLConv2d, SLLLinear
from fastlip.nn.soc import SOCConv2d, SOCLinear

__all__ = [
    "AOCConv2d",
    "AOCConvTranspose2d",
    "AOLConv2d",
    "AOLLinear",
    "Abs",
    "BCOPConv2d",
    "BROConv2d",
    "BROLinear",
    "BjorckLinear",
    "CPLConv2d",
    "CPLLinear",
    "CayleyConv2d",
    "CayleyLinear",
    "Chain",
    "FirstChannels",
    "GroupSort",
    "HouseHolder",
    "L2NormPool2d",
    "LOTConv2d",
    "LOTLinear",
    "MaxMin",
    "NormalizedLinear",
    "PixelUnshuffle",
    "SLLConv2d",
    "SLLLinear",
    "SOCConv2d",
    "SOCLinear",
    "ScaledAvgPool2d",
    "ZeroChannelPad",
]
