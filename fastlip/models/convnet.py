"""The comparison paper's ConvNet, built from one method's layers."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import nn

from fastlip import nn as lip
from fastlip.kernels.common.dispatch import check_backend
from fastlip.kernels.common.literals import Backend
from fastlip.models.pooling import GlobalMaxPool2d
from fastlip.nn._base import check_positive_int, orthogonal_

SIZES = {"XS": 16, "S": 32, "M": 64, "L": 128}
MAX_BLOCKS = 5
# Each method's convolution and, where the published network has one, its dense head.
_LAYERS = {
    "aoc": ("AOCConv2d", None),
    "aol": ("AOLConv2d", None),
    "bcop": ("BCOPConv2d", "BjorckLinear"),
    "cayley": ("CayleyConv2d", "CayleyLinear"),
    "cpl": ("CPLConv2d", None),
    "lot": ("LOTConv2d", None),
    "sll": ("SLLConv2d", None),
    "soc": ("SOCConv2d", None),
}
# Unless asked otherwise. An upper bound of sigma in every training step would cost half the network.
_OPTIONS: dict[str, dict[str, Any]] = {"cpl": {"training_sigma": "power"}}
METHODS = tuple(_LAYERS)
# As the papers write them, for tables and plots.
TITLES = {method: convolution.removesuffix("Conv2d") for method, (convolution, _) in _LAYERS.items()}


class LipConvNet(lip.Chain):
    """The network that :func:`lip_conv_net` builds: a sequence of 1-Lipschitz modules with named parts.

    ``input_shape`` is that of one image.
    """

    input_shape: tuple[int, int, int]


def lip_conv_net(
    method: str,
    size: str = "XS",
    num_classes: int = 10,
    image_size: int = 32,
    in_channels: int = 3,
    width: int | None = None,
    layers_per_block: int = 5,
    *,
    pairing: str = "adjacent",
    backend: Backend = "auto",
    **layer_options: Any,
) -> LipConvNet:
    r"""The ConvNet of Prach, Brau, Buttazzo, Lampert, *1-Lipschitz Layers Compared* (CVPR 2024).

    Zero-pads the channels to w, then a 1x1 convolution and MaxMin; blocks of ``layers_per_block`` convolutions
    c -> c, each with MaxMin, then the first c/2 channels and PixelUnshuffle(2), so that block i works at width
    w 2^i; adaptive max pool; a head (1x1 convolution, or the dense layer for the methods whose published
    network has one); the first ``num_classes`` outputs. Kernels are 3x3, and 1x1 in the last block.

    Published for 32x32 (CIFAR) and 64x64 (TinyImageNet) images with five blocks. Here the number of blocks
    follows from the image: it is halved until one pixel is left, at most five times (8x8: three blocks); a side
    that does not halve evenly is zero-padded by one row or column, which costs no Lipschitz constant.

    Args:
        method: one of ``fastlip.models.METHODS``.
        size: ``"XS"``, ``"S"``, ``"M"`` or ``"L"``: width w = 16, 32, 64, 128. XS has 1.572 M parameters at
            image_size 32, S 6.283 M, M 25.12 M, L 100.46 M.
        num_classes: outputs; at most the w 2^blocks channels of the head.
        image_size: side of the images, at least 2.
        in_channels: channels of the images; above w, the first convolution maps them to w instead of a zero pad.
        width: w, an even number, instead of the one that ``size`` names.
        layers_per_block: convolutions per block.
        pairing: of MaxMin, ``"adjacent"`` (published) or ``"halves"``.
        backend: of every layer and activation.
        **layer_options: further keyword arguments of the method's convolutions. CPL's have training_sigma="power".

    Returns:
        A ``torch.nn.Sequential``: (n, in_channels, image_size, image_size) -> (n, num_classes), Lipschitz constant
        at most that of its layers' product: see ``fastlip.audit``.
    """
    width = _check_width(method, size, width, backend)
    blocks = _count_blocks(image_size)
    channels = width * 2**blocks
    if check_positive_int("num_classes", num_classes) > channels:
        raise ValueError(f"num_classes={num_classes}: expected at most the head's {channels} channels")
    check_positive_int("layers_per_block", layers_per_block)
    layers = _Layers(method, pairing, backend, {**_OPTIONS.get(method, {}), **layer_options})
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    if check_positive_int("in_channels", in_channels) <= width:
        parts["pad"] = lip.ZeroChannelPad(width)
    parts["stem"] = lip.Chain(*layers.activated(max(in_channels, width), width, 1))
    for index in range(blocks):
        kernel_size = 1 if index == blocks - 1 else 3
        parts[f"block{index + 1}"] = layers.block(width * 2**index, kernel_size, layers_per_block)
    parts["pool"] = GlobalMaxPool2d()
    parts.update(layers.head(channels))
    parts["classes"] = lip.FirstChannels(num_classes)
    net = LipConvNet(parts)
    net.input_shape = in_channels, image_size, image_size
    if method == "aol":
        # As published: between identities, the first and the last layer mix channels from the start.
        for name in ("stem.0.raw_weight", "head.raw_weight"):
            orthogonal_(net.get_parameter(name))
    return net


@dataclass(frozen=True)
class _Layers:
    """One method's layers, with the same options throughout the network."""

    method: str
    pairing: Any
    backend: Backend
    options: dict[str, Any]

    def convolution(self, inputs: int, outputs: int, kernel_size: int) -> nn.Module:
        layer = getattr(lip, _LAYERS[self.method][0])
        return layer(inputs, outputs, kernel_size, backend=self.backend, **self.options)

    def activated(self, inputs: int, outputs: int, kernel_size: int) -> tuple[nn.Module, nn.Module]:
        """A convolution, and MaxMin."""
        return self.convolution(inputs, outputs, kernel_size), lip.MaxMin(self.pairing, backend=self.backend)

    def block(self, width: int, kernel_size: int, convolutions: int) -> nn.Module:
        """Convolutions with MaxMin, then half of the channels and half of the resolution: twice the width."""
        pairs = [self.activated(width, width, kernel_size) for _ in range(convolutions)]
        down = lip.FirstChannels(width // 2), lip.PixelUnshuffle(2, self.backend)
        return lip.Chain(*itertools.chain(*pairs), *down)

    def head(self, channels: int) -> dict[str, nn.Module]:
        dense = _LAYERS[self.method][1]
        if dense is None:
            return {"head": self.convolution(channels, channels, 1), "flatten": nn.Flatten()}
        return {"flatten": nn.Flatten(), "head": getattr(lip, dense)(channels, channels, backend=self.backend)}


def _check_width(method: str, size: str, width: int | None, backend: Backend) -> int:
    if method not in _LAYERS:
        raise ValueError(f"method={method!r}: allowed are {', '.join(map(repr, METHODS))}")
    if size not in SIZES:
        raise ValueError(f"size={size!r}: allowed are {', '.join(map(repr, SIZES))}")
    check_backend(backend)
    width = SIZES[size] if width is None else check_positive_int("width", width)
    if width % 2:
        raise ValueError(f"width={width}: expected an even number, half of which each block keeps")
    return width


def _count_blocks(image_size: int) -> int:
    if check_positive_int("image_size", image_size) < 2:
        raise ValueError(f"image_size={image_size}: expected at least 2")
    return min(MAX_BLOCKS, (image_size - 1).bit_length())
