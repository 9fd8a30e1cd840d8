"""Layers of sequences (n, c, l): the methods' convolutions in one dimension."""

from fastlip.nn.sequences.exponential import SOCConv1d
from fastlip.nn.sequences.kernels import AOCConv1d, AOLConv1d, BCOPConv1d
from fastlip.nn.sequences.layer import OneRow, of_sequences, one_dimensional, row_shape
from fastlip.nn.sequences.pooling import AdaptiveL2NormPool1d, L2NormPool1d, ScaledAvgPool1d
from fastlip.nn.sequences.residual import CPLConv1d, SandwichConv1d, SLLConv1d
from fastlip.nn.sequences.shaping import PixelShuffle1d, PixelUnshuffle1d
from fastlip.nn.sequences.spectral import BROConv1d, CayleyConv1d, LOTConv1d

__all__ = [
    "AOCConv1d",
    "AOLConv1d",
    "AdaptiveL2NormPool1d",
    "BCOPConv1d",
    "BROConv1d",
    "CPLConv1d",
    "CayleyConv1d",
    "L2NormPool1d",
    "LOTConv1d",
    "OneRow",
    "PixelShuffle1d",
    "PixelUnshuffle1d",
    "SLLConv1d",
    "SOCConv1d",
    "SandwichConv1d",
    "ScaledAvgPool1d",
    "of_sequences",
    "one_dimensional",
    "row_shape",
]
