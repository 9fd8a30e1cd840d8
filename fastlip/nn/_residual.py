"""Shared by the constructors of residual layers: sizes, attributes and the initial kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastlip.nn.applications.application import CONV_ARGUMENTS, show_conv_arguments
from fastlip.nn.applications.dense import DENSE_ARGUMENTS
from fastlip.nn.applications.residual import ResidualConvolution, ResidualDense
from fastlip.nn.arguments import (
    ZEROS_FIRST,
    ConvCommon,
    ConvSizes,
    conv_geometry,
    dense_features,
    make_bias,
    make_parameter,
    positive_int,
)
from fastlip.nn.base import LipschitzLayer

RESIDUAL_CONV_ARGUMENTS = (*CONV_ARGUMENTS, "inner_channels", "width")
RESIDUAL_DENSE_ARGUMENTS = (*DENSE_ARGUMENTS, "inner_features", "width")
# At bias 0 the layer does not depend on |W|, and its gradient grows as 1 / |W|: a small W learns faster.
_GAIN = 0.1


def begin_residual_conv(
    layer: Any,
    channels: tuple[int, int],
    sizes: ConvSizes,
    common: ConvCommon,
    inner_channels: Any,
    sized: bool = False,
) -> None:
    """Constructs a residual convolution along any axes, without what its method adds: sizes, bias and kernel."""
    inner = None if inner_channels is None else positive_int("inner_channels", inner_channels)
    geometry, padding = conv_geometry(channels, *sizes, ZEROS_FIRST, layer._axes), sizes[2]
    if padding != "same":
        raise ValueError(f"padding={padding!r}: allowed is 'same': a residual layer keeps the image's size")
    width = max(channels[0] * math.prod(geometry.stride), channels[1])
    inner = inner or width
    if inner % geometry.groups:
        raise ValueError(f"inner_channels={inner}: expected a multiple of groups={geometry.groups}")
    bias, device, dtype, backend = common
    application = ResidualConvolution(geometry, width=width, inner_channels=inner, sized=sized)
    LipschitzLayer.__init__(layer, application, backend)
    show_conv_arguments(layer, *channels, padding)
    layer.inner_channels, layer._width = inner, width
    layer.bias = make_bias(inner, bias, device, dtype)
    layer.kernel = make_parameter((inner, width // geometry.groups, *geometry.kernel_size), device, dtype)


def make_residual_dense(in_features: Any, out_features: Any, inner_features: Any) -> ResidualDense:
    """The application of a dense residual layer."""
    inner = None if inner_features is None else positive_int("inner_features", inner_features)
    width = max(dense_features(in_features, out_features))
    return ResidualDense(width=width, inner_features=inner or width)


def show_residual_dense(layer: Any, in_features: int, out_features: int, bias: bool, device: Any, dtype: Any) -> None:
    """Sets the attributes of ``torch.nn.Linear``, sizes, bias and kernel."""
    application = layer._application
    layer.in_features, layer.out_features = in_features, out_features
    layer.inner_features, layer._width = application.inner_features, application.width
    layer.bias = make_bias(layer.inner_features, bias, device, dtype)
    layer.kernel = make_parameter((layer.inner_features, layer._width), device, dtype)


def reset_kernel(kernel: Tensor, groups: int = 1) -> None:
    """A tenth of Xavier normal, each group by itself."""
    with torch.no_grad():
        for group in kernel.unflatten(0, (groups, -1)):
            nn.init.xavier_normal_(group, _GAIN)
