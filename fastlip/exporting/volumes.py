"""The rules of modules that only volumes have. Their layers have the rules of their applications."""

from __future__ import annotations

from torch import nn

from fastlip import nn as lip
from fastlip.exporting import plain
from fastlip.exporting.rules import Target, exported


@exported.register
def _unshuffle(module: lip.PixelUnshuffle3d, target: Target) -> nn.Module:
    return plain.freeze(plain.Patches(stride=module.downscale_factor, groups=1, position_first=False))


@exported.register
def _shuffle(module: lip.PixelShuffle3d, target: Target) -> nn.Module:
    return plain.freeze(plain.Spread(factor=module.upscale_factor))
