"""The architecture that BRONet and LiResNet share: quasi-residual convolutions, a neck, dense layers, unit rows."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from fastlip import nn as lip
from fastlip.kernels.common.checks import boolean
from fastlip.kernels.common.dispatch import check_backend
from fastlip.kernels.common.literals import Backend, Pairing
from fastlip.models.literals import Size
from fastlip.models.model import Network
from fastlip.nn.arguments import positive_int

STEM, PATCH = 5, 4


class QuasiResidualSize(NamedTuple):
    """Channels of the images, number of convolutions, and features and number of the dense layers."""

    width: int
    depth: int
    features: int
    dense_layers: int


# L as published for CIFAR-10; M has half of its channels and features, S a quarter, XS a sixteenth.
QUASI_RESIDUAL_SIZES: dict[Size, QuasiResidualSize] = {
    "XS": QuasiResidualSize(32, 4, 128, 2),
    "S": QuasiResidualSize(128, 6, 512, 4),
    "M": QuasiResidualSize(256, 12, 1024, 8),
    "L": QuasiResidualSize(512, 12, 2048, 8),
}


class QuasiResidualNet(Network):
    """The network that :func:`bro_net` and :func:`lip_res_net` build.

    It has ``input_shape`` and ``margin_slope`` as :class:`LipConvNet`.

    Args:
        *modules: the modules in their order, or one ``OrderedDict`` of them, as ``torch.nn.Sequential`` takes them.

    Example:
        >>> fastlip.models.QuasiResidualNet.margin_slope
        2.0
    """


@dataclass(frozen=True)
class Layers:
    """The layers of a network.

    Args:
        stem: ``stem(inputs, outputs)``, a convolution with stride 2.
        block: ``block(width, s, bias)``, a convolution; s is the factor of ``quasi_residual``, or False.
        neck: ``neck(width)``, a convolution of patches.
        dense: ``dense(inputs, outputs, s)``.
        pairing: channels that MaxMin compares.
        backend: kernels of the layers.
    """

    stem: Callable[[int, int], nn.Module]
    block: Callable[[int, bool | float, bool], nn.Module]
    neck: Callable[[int], nn.Module]
    dense: Callable[[int, int, bool | float], nn.Module]
    pairing: Pairing
    backend: Backend

    def __post_init__(self) -> None:
        check_backend(self.backend)

    def maxmin(self) -> nn.Module:
        """The activation."""
        return lip.MaxMin(self.pairing, backend=self.backend)


def sizes_of(size: Size, **given: int | None) -> QuasiResidualSize:
    """The sizes that ``size`` names, replaced by those that are given.

    Args:
        size: ``"XS"``, ``"S"``, ``"M"`` or ``"L"``.
        **given: sizes by name; None leaves that of ``size``.

    Raises:
        ValueError: a size that is not allowed.
    """
    if size not in QUASI_RESIDUAL_SIZES:
        raise ValueError(f"size={size!r}: allowed are {', '.join(map(repr, QUASI_RESIDUAL_SIZES))}")
    chosen = {name: positive_int(name, value) for name, value in given.items() if value is not None}
    return QUASI_RESIDUAL_SIZES[size]._replace(**chosen)


def assemble(
    layers: Layers,
    sizes: QuasiResidualSize,
    num_classes: int,
    image_size: int,
    in_channels: int,
    quasi_residual: bool,
    centering: bool,
) -> QuasiResidualNet:
    """The network of these layers.

    Args:
        layers: what it consists of.
        sizes: channels, features and numbers of layers.
        num_classes: number of outputs, at least 2.
        image_size: side of the images in pixels.
        in_channels: channels of the images.
        quasi_residual: whether an identity is added before the weights of convolutions and dense layers are made
            orthogonal.
        centering: whether the convolutions' outputs are centred.

    Raises:
        ValueError: a size that is not allowed.
    """
    boolean("quasi_residual", quasi_residual)
    boolean("centering", centering)
    if positive_int("num_classes", num_classes) < 2:
        raise ValueError(f"num_classes={num_classes}: expected at least 2")
    side = math.ceil(math.ceil(positive_int("image_size", image_size) / 2) / PATCH)
    width, features = sizes.width, sizes.features
    factor = sizes.depth**-0.5 if quasi_residual else False
    dense_factor = sizes.dense_layers**-0.5 if quasi_residual else False
    blocks: list[nn.Module] = []
    for _ in range(sizes.depth):
        blocks.append(layers.block(width, factor, not centering))
        blocks += [lip.BatchCentering(width)] if centering else []
        blocks.append(layers.maxmin())
    dense = [layers.dense(features, features, dense_factor) for _ in range(sizes.dense_layers)]
    shape = in_channels, image_size, image_size
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        pad=lip.ZeroChannelPad(in_channels, shape),  # pads nothing, and refuses images of another shape
        stem=lip.Chain(layers.stem(positive_int("in_channels", in_channels), width), layers.maxmin()),
        blocks=lip.Chain(*blocks),
        neck=lip.Chain(
            layers.neck(width), nn.Flatten(), layers.dense(width * side**2, features, False), layers.maxmin()
        ),
        dense=lip.Chain(*(module for layer in dense for module in (layer, layers.maxmin()))),
        head=lip.NormalizedLinear(features, num_classes, backend=layers.backend),
    )
    net = QuasiResidualNet(parts)
    net.input_shape = shape
    return net
