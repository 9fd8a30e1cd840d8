"""The rules of modules without a weight, and of reflections."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastlip import nn as lip
from fastlip.exporting import plain
from fastlip.exporting.layers import with_tensors
from fastlip.exporting.rules import Target, exported, in_sequence
from fastlip.models.pooling import GlobalMaxPool2d
from fastlip.nn.base import at_least_float32


@exported.register
def _global_max_pool(pool: GlobalMaxPool2d, target: Target) -> nn.Module:
    return nn.AdaptiveMaxPool2d(1)


@exported.register
def _maxmin(module: lip.MaxMin, target: Target) -> nn.Module:
    return plain.freeze(plain.SortPairs(pairing=module.pairing, dim=module.dim))


@exported.register
def _group_sort(module: lip.GroupSort, target: Target) -> nn.Module:
    return plain.freeze(plain.SortGroups(group_size=module.group_size, dim=module.dim))


@exported.register
def _absolute(module: lip.Abs, target: Target) -> nn.Module:
    return plain.freeze(plain.Absolute())


@exported.register
def _reflections(module: lip.HouseHolder, target: Target) -> nn.Module:
    rank = target.rank if target.input_shape is None else len(target.input_shape)
    if rank is None:
        raise ValueError(f"input_shape=None: layer {target.name!r} (HouseHolder) needs the rank of its input")
    theta = at_least_float32(module.theta)
    table = torch.stack((theta.cos(), theta.sin(), (theta / 2).cos(), (theta / 2).sin())).to(module.theta.dtype)
    options = {"channels": module.channels, "pairing": module.pairing, "dim": module.dim}
    return plain.freeze(plain.Reflection({"table": table}, **options, rank=1 + rank))


@exported.register
def _channel_pad(module: lip.ZeroChannelPad, target: Target) -> nn.Module:
    shape: tuple[int, ...] = target.input_shape or ()
    paddings = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}
    kind = paddings.get(len(shape))
    if kind is None:
        return plain.freeze(plain.PadChannels(channels=module.channels))
    return kind((*(0, 0) * (len(shape) - 1), 0, module.channels - shape[-len(shape)]))


@exported.register
def _first_channels(module: lip.FirstChannels, target: Target) -> nn.Module:
    return plain.freeze(plain.FirstEntries(count=module.channels, dim=1, groups=1))


@exported.register
def _pixel_unshuffle(module: lip.PixelUnshuffle, target: Target) -> nn.Module:
    factor, image = module.downscale_factor, target.image()
    if image is None:
        return plain.freeze(plain.Patches(stride=(factor, factor), groups=1, position_first=False))
    bottom, right = (-side % factor for side in image)
    padding = nn.ZeroPad2d((0, right, 0, bottom)) if bottom or right else None
    return in_sequence(padding, nn.PixelUnshuffle(factor))


@exported.register(lip.ScaledAvgPool2d)
@exported.register(lip.ScaledAvgPool3d)
def _average(module: Any, target: Target) -> nn.Module:
    return plain.freeze(plain.ScaledPool(kernel_size=module.kernel_size))


@exported.register(lip.L2NormPool2d)
@exported.register(lip.L2NormPool3d)
def _norm_pool(module: Any, target: Target) -> nn.Module:
    return plain.freeze(plain.NormPool(kernel_size=module.kernel_size))


@exported.register(lip.AdaptiveL2NormPool2d)
@exported.register(lip.AdaptiveL2NormPool3d)
def _adaptive_norm_pool(module: Any, target: Target) -> nn.Module:
    return plain.freeze(plain.AdaptiveNormPool(output_size=module.output_size))


@exported.register
def _partial_absolute(module: lip.PartialAbs, target: Target) -> nn.Module:
    return plain.freeze(plain.AbsoluteFirst(channels=module.channels, dim=module.dim))


@exported.register
def _spatial_shift(module: lip.SpatialShift, target: Target) -> nn.Module:
    return plain.freeze(plain.ShiftPixels(channels=module.channels, step=module.step))


@exported.register
def _scale(module: lip.Scale, target: Target) -> nn.Module:
    return plain.freeze(plain.Multiply(factor=module.constant()))


@exported.register
def _input_weights(module: lip.InputWeights, target: Target) -> nn.Module:
    tensors = {"weights": module.weights, "center": module.center}
    sides = torch.broadcast_shapes(*[values.shape for values in tensors.values() if values is not None])
    return plain.freeze(plain.Weigh(tensors, sides=tuple(sides)))


@exported.register
def _position_bias(module: lip.PositionBias, target: Target) -> nn.Module:
    return plain.freeze(plain.ShiftImage({"shift": module.bias}))


@exported.register
def _batch_centering(module: lip.BatchCentering, target: Target) -> nn.Module:
    return _shift(module.shift().to(module.running_mean.dtype), target)


@exported.register
def _layer_centering(module: lip.LayerCentering, target: Target) -> nn.Module:
    centre = plain.freeze(plain.Centre(dims=module.dim))
    return in_sequence(centre, None if module.bias is None else _shift(module.bias, target))


def _shift(values: Tensor, target: Target) -> nn.Module:
    rank = target.rank if target.input_shape is None else len(target.input_shape)
    return plain.freeze(plain.Shift({"shift": values}, rank=rank))


@exported.register
def _per_pixel(module: lip.PerPixel, target: Target) -> nn.Module:
    dense = target.children["module"]
    if type(dense) is nn.Linear:
        with_bias = dense.bias is not None
        convolution = nn.Conv2d(dense.in_features, dense.out_features, 1, bias=with_bias, device="meta")
        return with_tensors(convolution, dense.weight[:, :, None, None], dense.bias)
    inner = nn.Module()
    inner.add_module("module", dense)
    graph = fx.Graph()
    moved = graph.call_method("movedim", (graph.placeholder("x"), -3, -1))
    graph.output(graph.call_method("movedim", (graph.call_module("module", (moved,)), -1, -3)))
    return fx.GraphModule(inner, graph, "PerPixel").eval()


@exported.register
def _residual_block(module: lip.LipschitzResidual, target: Target) -> nn.Module:
    share = module.mixture()
    mixed = nn.Module()
    for name, value in (("share", share), ("rest", 1 - share)):
        mixed.register_parameter(name, nn.Parameter(value.detach().to(module.gate_value.dtype).clone()))
    mixed.add_module("module", target.children["module"])
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_module("module", (x,))
    branches = [
        graph.call_function(operator.mul, (graph.get_attr(name), value))
        for name, value in (("rest", x), ("share", y))
    ]
    graph.output(graph.call_function(operator.add, tuple(branches)))
    return fx.GraphModule(mixed, graph, "Mixture").eval()
