"""Networks without a constraint: the same architecture with torch's layers."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from fastlip.inspection.copying import copied
from fastlip.nn.applications.application import ConvApplication
from fastlip.nn.base import LipschitzLayer


def plain_twin(model: nn.Module) -> nn.Module:
    """Returns a copy of a network with ``torch.nn`` layers in place of those with a constrained weight.

    Every convolution becomes ``torch.nn.Conv2d`` and every dense layer ``torch.nn.Linear``, with the sizes, stride,
    padding, dilation, groups and bias of the layer and torch's initial values. Everything else stays: activations,
    centering, pooling. Nothing bounds the norms of the new layers, and certificates divide by audited bounds of
    them. The twin shows what the constraint costs in accuracy and time. A residual layer becomes one convolution or
    one dense layer, without the activation inside it.

    Args:
        model: a network of this package's layers; it is not changed.

    Returns:
        The copy. Its ``margin_slope`` is infinite, so that training reports a CRA of 0.

    Example:
        >>> twin = fastlip.models.plain_twin(fastlip.models.lip_conv_net("aol", width=8, image_size=8))
        >>> twin.stem[0]
        Conv2d(8, 8, kernel_size=(1, 1), stride=(1, 1), padding_mode=circular)
    """
    twin = copied(model)
    if isinstance(twin, LipschitzLayer):
        return _plain(twin)
    for module in list(twin.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, LipschitzLayer):
                setattr(module, name, _plain(layer))
    twin.margin_slope = math.inf  # pyright: ignore[reportArgumentType]
    return twin


def _plain(layer: LipschitzLayer) -> nn.Module:
    like = next(layer.parameters())
    placed: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
    bias = layer.bias is not None
    if not isinstance(layer._application, ConvApplication):
        return nn.Linear(layer.in_features, layer.out_features, bias, **placed)  # type: ignore[arg-type]
    geometry: Any = layer._application.geometry
    left, right, top, bottom = geometry.pads
    even = left == right and top == bottom
    convolution = nn.Conv2d(
        layer.in_channels,  # type: ignore[arg-type]
        layer.out_channels,  # type: ignore[arg-type]
        geometry.kernel_size,
        geometry.stride,
        (top, left) if even else 0,
        geometry.dilation,
        geometry.groups,
        bias,
        geometry.padding_mode if even else "zeros",
        **placed,
    )
    if even:
        return convolution
    padding = nn.ZeroPad2d if geometry.padding_mode == "zeros" else nn.CircularPad2d
    return nn.Sequential(padding((left, right, top, bottom)), convolution)
