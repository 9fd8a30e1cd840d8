"""The comparison paper's ConvNet, built from one method's layers."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from fastlip import nn as lip
from fastlip.kernels.common.dispatch import check_backend
from fastlip.kernels.common.literals import Backend, Pairing
from fastlip.models.literals import LayerOptions, MethodName, Size
from fastlip.models.model import Model, Network
from fastlip.models.pooling import GlobalMaxPool2d
from fastlip.models.registry import check_layer_options, method_of
from fastlip.nn.arguments import positive_int
from fastlip.nn.initial import orthogonal_
from fastlip.nn.method import Method

if TYPE_CHECKING:
    from typing_extensions import Unpack

SIZES: dict[Size, int] = {"XS": 16, "S": 32, "M": 64, "L": 128}
MAX_BLOCKS = 5
_SET_HERE = frozenset(("in_channels", "out_channels", "kernel_size"))


class LipConvNet(Network):
    """The network that :func:`lip_conv_net` builds: a sequence of 1-Lipschitz modules with named parts.

    ``input_shape`` is the shape (c, h, w) of one image. ``margin_slope``: margins change by at most this times the
    perturbation, sqrt(2) L.

    Args:
        *modules: the modules in their order, or one ``OrderedDict`` of them, as ``torch.nn.Sequential`` takes them.

    Example:
        >>> fastlip.models.lip_conv_net("aol", width=8, image_size=8).input_shape
        (3, 8, 8)
    """

    margin_slope = math.sqrt(2)


def lip_conv_net(
    method: MethodName,
    size: Size = "XS",
    num_classes: int = 10,
    image_size: int = 32,
    in_channels: int = 3,
    width: int | None = None,
    layers_per_block: int = 5,
    *,
    lipschitz: float = 1.0,
    pairing: Pairing = "adjacent",
    backend: Backend = "auto",
    **layer_options: Unpack[LayerOptions],
) -> LipConvNet:
    r"""Builds the ConvNet of Prach, Brau, Buttazzo, Lampert, *1-Lipschitz Layers Compared* (CVPR 2024).

    The network zero-pads the channels to w. A 1x1 convolution and MaxMin follow, then the blocks: each has
    ``layers_per_block`` convolutions c -> c with MaxMin, keeps the first c/2 channels, and ends with
    PixelUnshuffle(2), so that block i works at width w 2^i. An adaptive max pool and a head follow (a 1x1
    convolution, or the dense layer for the methods whose published network has one). The first ``num_classes``
    outputs are the scores. Kernels are 3x3, and 1x1 in the last block.

    The published network takes 32x32 (CIFAR) and 64x64 (TinyImageNet) images and has five blocks. Here the image
    determines the number of blocks: its side is halved until one pixel is left, at most five times (8x8: three
    blocks). A side that does not halve evenly is zero-padded by one row or column, which does not increase the
    Lipschitz constant.

    Args:
        method: parametrization of the layers, one of ``fastlip.models.METHODS``.
        size: width w = 16, 32, 64 or 128 for ``"XS"`` (default), ``"S"``, ``"M"``, ``"L"``. At ``image_size`` 32 XS
            has 1.572 M parameters, S 6.283 M, M 25.12 M, L 100.46 M.
        num_classes: number of outputs, at most the w 2^blocks channels of the head; default 10.
        image_size: side of the images in pixels, at least 2; default 32.
        in_channels: channels of the images; default 3. Above w, the first convolution maps them to w, and nothing is
            padded.
        width: w itself, an even number; None: the width of ``size``.
        layers_per_block: convolutions in each block, at least 1; default 5.
        lipschitz: the network's constant L, a positive number; another than 1 multiplies the scores by it
            (:class:`fastlip.nn.Scale`); default 1.0. The certificates of an L and the same scores over L are the
            same.
        pairing: channels that MaxMin compares: ``"adjacent"`` (default, published) or ``"halves"``.
        backend: kernels of every layer and activation; default ``"auto"``.
        **layer_options: further keyword arguments of the method's convolutions, such as ``terms`` of SOC. CPL's
            convolutions have ``training_sigma="power"`` unless told otherwise.

    Returns:
        A ``torch.nn.Sequential``: (n, in_channels, image_size, image_size) -> (n, num_classes). Its Lipschitz
        constant is at most the product of its layers' constants: see :func:`fastlip.audit`.

    Raises:
        ValueError: an argument that is not allowed; the message names it and what is allowed.

    Example:
        >>> model = fastlip.models.lip_conv_net("aol", width=8, image_size=8, in_channels=1)
        >>> [name for name, _ in model.named_children()]
        ['pad', 'stem', 'block1', 'block2', 'block3', 'pool', 'head', 'flatten', 'classes']
        >>> model(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    parametrization = method_of(method)
    check_layer_options(lip_conv_net, parametrization, layer_options, _SET_HERE)
    width = _checked_width(size, width)
    check_backend(backend)
    blocks = _count_blocks(image_size)
    channels = width * 2**blocks
    if positive_int("num_classes", num_classes) > channels:
        raise ValueError(
            f"num_classes={num_classes}: expected at most the head's {channels} channels, width * {2**blocks}"
        )
    positive_int("layers_per_block", layers_per_block)
    layers = _Layers(parametrization, pairing, backend, {**parametrization.options, **layer_options})
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    padded, shape = max(width, positive_int("in_channels", in_channels)), (in_channels, image_size, image_size)
    parts["pad"] = lip.ZeroChannelPad(padded, shape)
    parts["stem"] = lip.Chain(*layers.activated(padded, width, 1))
    for index in range(blocks):
        kernel_size = 1 if index == blocks - 1 else 3
        parts[f"block{index + 1}"] = layers.block(width * 2**index, kernel_size, layers_per_block)
    parts["pool"] = GlobalMaxPool2d()
    parts.update(layers.head(channels))
    parts["classes"] = lip.FirstChannels(num_classes)
    if isinstance(lipschitz, bool) or lipschitz != 1:
        parts["scale"] = lip.Scale(lipschitz)
    net = LipConvNet(parts)
    net.input_shape = shape
    net.margin_slope = math.sqrt(2) * lipschitz
    if parametrization.orthogonal_ends:
        for name in ("stem.0", "head"):
            orthogonal_(net.get_submodule(name).get_parameter(parametrization.orthogonal_ends))
    return net


@dataclass(frozen=True)
class _Layers:
    """One method's layers, with the same options throughout the network."""

    method: Method
    pairing: Pairing
    backend: Backend
    options: dict[str, Any]

    def convolution(self, inputs: int, outputs: int, kernel_size: int) -> nn.Module:
        """A convolution of the method."""
        return self.method.convolution(inputs, outputs, kernel_size, backend=self.backend, **self.options)

    def activated(self, inputs: int, outputs: int, kernel_size: int) -> tuple[nn.Module, nn.Module]:
        """A convolution, and MaxMin."""
        return self.convolution(inputs, outputs, kernel_size), lip.MaxMin(self.pairing, backend=self.backend)

    def block(self, width: int, kernel_size: int, convolutions: int) -> nn.Module:
        """Convolutions with MaxMin, then half of the channels and half of the resolution: twice the width."""
        pairs = [self.activated(width, width, kernel_size) for _ in range(convolutions)]
        down = lip.FirstChannels(width // 2), lip.PixelUnshuffle(2, self.backend)
        return lip.Chain(*itertools.chain(*pairs), *down)

    def head(self, channels: int) -> dict[str, nn.Module]:
        """The head with its flattening, in their order."""
        if self.method.linear is None or not self.method.dense_head:
            return {"head": self.convolution(channels, channels, 1), "flatten": nn.Flatten()}
        return {"flatten": nn.Flatten(), "head": self.method.linear(channels, channels, backend=self.backend)}


def _checked_width(size: Size, width: int | None) -> int:
    if size not in SIZES:
        raise ValueError(f"size={size!r}: allowed are {', '.join(map(repr, SIZES))}")
    width = SIZES[size] if width is None else positive_int("width", width)
    if width % 2:
        raise ValueError(f"width={width}: expected an even number, half of which each block keeps")
    return width


def _count_blocks(image_size: int) -> int:
    if positive_int("image_size", image_size) < 2:
        raise ValueError(f"image_size={image_size}: expected at least 2")
    return min(MAX_BLOCKS, (image_size - 1).bit_length())


MODEL = Model("lip_conv_net", lip_conv_net, "comparison", ("method", "layers_per_block", "lipschitz"))
