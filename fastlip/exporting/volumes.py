"""The rules of modules of volumes without a weight. Layers of volumes have the rules of their applications."""

from __future__ import annotations

from torch import nn

from fastlip import nn as lip
from fastlip.exporting import plain
from fastlip.exporting.rules import Target, exported


@exported.register
def _scaled_pool(module: lip.ScaledAvgPool3d, target: Target) -> nn.Module:
    return plain.freeze(plain.ScaledPool(kernel_size=module.kernel_size))


@exported.register
def _norm_pool(module: lip.L2NormPool3d, target: Target) -> nn.Module:
    return plain.freeze(plain.NormPool(kernel_size=module.kernel_size))


@exported.register
def _adaptive_norm_pool(module: lip.AdaptiveL2NormPool3d, target: Target) -> nn.Module:
    return plain.freeze(plain.AdaptiveNormPool(output_size=module.output_size))


@exported.register
def _unshuffle(module: lip.PixelUnshuffle3d, target: Target) -> nn.Module:
    return plain.freeze(plain.Patches(stride=module.downscale_factor, groups=1, position_first=False))


@exported.register
def _shuffle(module: lip.PixelShuffle3d, target: Target) -> nn.Module:
    return plain.freeze(plain.Spread(factor=module.upscale_factor))
