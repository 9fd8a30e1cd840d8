"""The rules of layers of sequences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from fastlip import nn as lip
from fastlip.exporting import plain
from fastlip.exporting.layers import with_tensors
from fastlip.exporting.rules import Target, exported, in_sequence
from fastlip.inspection.rules import of_images
from fastlip.nn.sequences import OneRow, row_shape


@exported.register(OneRow)
def _of_sequences(layer: Any, target: Target) -> nn.Module:
    """``nn.Conv1d`` where the two-dimensional layer is ``nn.Conv2d``; otherwise that, on images of one row."""
    shape = None if target.input_shape is None else row_shape(target.input_shape)
    found = of_images(exported.registry, layer)(layer, replace(target, input_shape=shape, rank=3))
    return _convolution(found) if type(found) is nn.Conv2d else in_one_row(found)


@exported.register
def _scaled_pool(module: lip.ScaledAvgPool1d, target: Target) -> nn.Module:
    return in_one_row(plain.freeze(plain.ScaledPool(kernel_size=(1, *module.kernel_size))))


@exported.register
def _norm_pool(module: lip.L2NormPool1d, target: Target) -> nn.Module:
    return in_one_row(plain.freeze(plain.NormPool(kernel_size=(1, *module.kernel_size))))


@exported.register
def _unshuffle(module: lip.PixelUnshuffle1d, target: Target) -> nn.Module:
    stride = 1, module.downscale_factor
    return in_one_row(plain.freeze(plain.Patches(stride=stride, groups=1, position_first=False)))


@exported.register
def _shuffle(module: lip.PixelShuffle1d, target: Target) -> nn.Module:
    return plain.freeze(plain.Interleave(factor=module.upscale_factor))


@exported.register
def _adaptive_norm_pool(module: lip.AdaptiveL2NormPool1d, target: Target) -> nn.Module:
    return in_one_row(plain.freeze(plain.AdaptiveNormPool(output_size=(1, *module.output_size))))


def in_one_row(module: nn.Module) -> nn.Module:
    """The module on sequences (..., c, l) as images (..., c, 1, l)."""
    return in_sequence(nn.Unflatten(-1, (1, -1)), module, nn.Flatten(-3, -2))


def _convolution(of_image: nn.Conv2d) -> nn.Conv1d:
    padding = of_image.padding
    sequence = nn.Conv1d(
        of_image.in_channels,
        of_image.out_channels,
        of_image.kernel_size[1],
        of_image.stride[1],
        padding if isinstance(padding, str) else int(padding[1]),
        of_image.dilation[1],
        of_image.groups,
        of_image.bias is not None,
        of_image.padding_mode,
        device="meta",
    )
    return with_tensors(sequence, of_image.weight.squeeze(2), of_image.bias)
