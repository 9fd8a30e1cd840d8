"""Networks of fastlip's layers with the published weights."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fastlip import nn as lip
from fastlip.exporting import plain
from fastlip.models.quasi_residual import QuasiResidualNet
from fastlip.published.entries import Entries
from fastlip.published.layers import (
    NECK_REFLECTOR_RIDGE,
    REFLECTOR_RIDGE,
    CholeskyConv2d,
    CholeskyLinear,
    LinearResidualConv2d,
    RidgedReflectorConv2d,
    RidgedReflectorLinear,
)
from fastlip.published.layout import Backbone, Layout

_MEAN = 0.5  # what the published networks subtract from pixels in [0, 1]
Weights = dict[str, Tensor]


def build(entries: Entries, layout: Layout) -> QuasiResidualNet:
    """The network of checked entries, in evaluation mode."""
    shape = (3, layout.side, layout.side)
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        pad=lip.ZeroChannelPad(3, shape),  # pads nothing, and refuses images of another shape
        centre=plain.freeze(plain.Shift({"shift": torch.full((3,), -_MEAN, dtype=_dtype(entries))}, rank=3)),
        stem=lip.Chain(_stem(entries, layout), _maxmin()),
        blocks=lip.Chain(*(module for part in layout.backbones for module in _blocks(entries, part))),
        neck=lip.Chain(_neck(entries, layout), nn.Flatten(), _neck_dense(entries, layout), _maxmin()),
        dense=lip.Chain(*_dense(entries, layout)),
        head=_head(entries, layout),
    )
    net = QuasiResidualNet(parts)
    net.input_shape = shape
    net.margin_slope = math.inf  # no constant is known before an audit
    return net.eval()


def weighted_layers(layout: Layout) -> dict[str, str]:
    """The published name of each weight before the head, and the name of its module here, in their order."""
    names, position = {"stem.0.weight": "stem.0"}, 0
    for part in layout.backbones:
        for index in range(part.depth):
            position += part.v2 and part.zero_padding  # the padding is a module of its own
            names[f"{part.name}.weights[{index}]"] = f"blocks.{position}"
            position += 2 + part.centering
    if layout.neck != "norm":
        names["neck.kernel"] = "neck.0"
    names["neck.weight"] = "neck.2"
    return {**names, **{f"linear.weights[{index}]": f"dense.{2 * index}" for index in range(layout.dense_layers)}}


def _dtype(entries: Entries) -> torch.dtype:
    return entries["stem.0.weight"].dtype


def _maxmin() -> nn.Module:
    return lip.MaxMin("halves")


def _filled(module: nn.Module, weights: Weights) -> nn.Module:
    """The module with these parameters and buffers."""
    module.load_state_dict(weights)
    return module


def _stem(entries: Entries, layout: Layout) -> nn.Module:
    size = layout.stem
    stride, padding = (2, size // 2) if layout.strided else (size, 0)
    stem = nn.Conv2d(3, layout.width, size, stride, padding, dtype=_dtype(entries))
    return _filled(stem, {"weight": entries["stem.0.weight"], "bias": entries["stem.0.bias"]})


def _blocks(entries: Entries, part: Backbone) -> Iterator[nn.Module]:
    own = {name.removeprefix(f"{part.name}."): value for name, value in entries.items()}
    dtype, factor = _dtype(entries), part.depth**-0.5
    for index in range(part.depth):
        raw, gamma = own["weights"][index], own["gamma"][index].flatten()
        bias = {"bias": own["bias"][index]}
        if part.v2 and part.zero_padding:
            yield nn.ZeroPad2d(1)
        weights = {} if part.centering else bias
        if part.kind == "linear":
            layer: nn.Module = LinearResidualConv2d(raw.shape[0], 3, factor, not part.centering, dtype)
        else:
            # The published product of spectra is a convolution; layers of fastlip correlate, as version 2 does.
            raw = raw if part.v2 else raw.flip(-2, -1)
            raw = raw if part.quasi_residual else gamma[:, None, None, None] * raw
            layer = RidgedReflectorConv2d(
                raw.shape[0],
                3,
                part.rank,
                REFLECTOR_RIDGE,
                padding_mode="zeros" if part.zero_padding and not part.v2 else "circular",
                bias=not part.centering,
                factor=factor if part.quasi_residual else 0.0,
                dtype=dtype,
            )
        gammas = {"gamma": gamma} if part.kind == "linear" or part.quasi_residual else {}
        yield _filled(layer, {"raw_weight": raw, **gammas, **weights})
        if part.centering:
            centering = lip.BatchCentering(raw.shape[0], dtype=dtype)
            yield _filled(centering, {**bias, "running_mean": own["running_mean"][index]})
        yield _maxmin()


def _neck(entries: Entries, layout: Layout) -> nn.Module:
    width, patch, dtype = layout.width, layout.patch, _dtype(entries)
    if layout.neck == "norm":
        return lip.L2NormPool2d(patch)
    kernel = entries["neck.kernel"]
    if layout.neck == "cholesky":
        return _filled(CholeskyConv2d(width, patch, dtype), {"raw_weight": kernel.view(width, width, patch, patch)})
    layer = RidgedReflectorConv2d(width, patch, width, NECK_REFLECTOR_RIDGE, stride=patch, dtype=dtype)
    return _filled(layer, {"raw_weight": kernel[:, :, None, None]})


def _neck_dense(entries: Entries, layout: Layout) -> nn.Module:
    sizes, dtype = (layout.flat, layout.features), _dtype(entries)
    if layout.neck_dense == "cholesky":
        layer: nn.Module = CholeskyLinear(*sizes, dtype=dtype)
    else:
        layer = RidgedReflectorLinear(*sizes, layout.features, NECK_REFLECTOR_RIDGE, dtype=dtype)
    return _filled(layer, {"raw_weight": entries["neck.weight"], "bias": entries["neck.bias"]})


def _dense(entries: Entries, layout: Layout) -> Iterator[nn.Module]:
    sizes, dtype = (layout.features, layout.features), _dtype(entries)
    for index in range(layout.dense_layers):
        factor = layout.dense_layers**-0.5
        if layout.dense == "cholesky":
            layer: nn.Module = CholeskyLinear(*sizes, factor, dtype)
        else:
            layer = RidgedReflectorLinear(*sizes, layout.dense_rank, REFLECTOR_RIDGE, factor, dtype)
        values = {"raw_weight": "weights", "gamma": "gamma", "bias": "bias"}
        weights = {own: entries[f"linear.{name}"][index] for own, name in values.items()}
        yield _filled(layer, {**weights, "gamma": weights["gamma"].flatten()})
        yield _maxmin()


def _head(entries: Entries, layout: Layout) -> nn.Module:
    sizes, dtype = (layout.features, layout.classes), _dtype(entries)
    weight, bias = entries["head.weight"], entries["head.bias"]
    if layout.unit_rows:
        return _filled(lip.NormalizedLinear(*sizes, dtype=dtype), {"raw_weight": weight, "bias": bias})
    return _filled(nn.Linear(*sizes, dtype=dtype), {"weight": weight, "bias": bias})
