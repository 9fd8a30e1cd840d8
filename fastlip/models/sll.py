"""The network of the SLL paper: residual layers, one pool, and a head with unit rows."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from torch import nn

from fastlip import nn as lip
from fastlip._names import lists_keywords
from fastlip.kernels.common.dispatch import check_backend
from fastlip.kernels.common.literals import Backend
from fastlip.models.literals import SLLSizeName
from fastlip.models.model import Model, Network
from fastlip.nn.arguments import positive_int


class SLLSize(NamedTuple):
    """Number of convolutions and of dense layers, and channels of the images between them."""

    convolutions: int
    dense_layers: int
    width: int


# As published with the paper's code (github.com/araujoalexandre/Lipschitz-SLL-Networks): S, M, L, XL have 41, 78,
# 118 and 236 million parameters for CIFAR-10, nearly all in the dense layers.
SLL_SIZES: dict[SLLSizeName, SLLSize] = {
    "S": SLLSize(20, 7, 45),
    "M": SLLSize(30, 10, 60),
    "L": SLLSize(50, 10, 90),
    "XL": SLLSize(70, 15, 120),
}
_INNER_CHANNELS = 5
_INNER_FEATURES = 2048
_POOL = 4


class SLLNet(Network):
    """The network that :func:`sll_net` builds, with ``input_shape`` and ``margin_slope`` as :class:`LipConvNet`.

    Args:
        *modules: the modules in their order, or one ``OrderedDict`` of them, as ``torch.nn.Sequential`` takes them.

    Example:
        >>> fastlip.models.SLLNet.margin_slope
        2.0
    """


@lists_keywords
def sll_net(
    size: SLLSizeName = "S",
    num_classes: int = 10,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    width: int | None = None,
    convolutions: int | None = None,
    dense_layers: int | None = None,
    inner_channels: int = _INNER_CHANNELS,
    inner_features: int = _INNER_FEATURES,
    backend: Backend = "auto",
) -> SLLNet:
    r"""Builds the network of SLL layers that Araujo et al. propose.

    Araujo, Havens, Delattre, Allauzen, Hu, *A Unified Algebraic Perspective on Lipschitz Neural Networks*, ICLR 2023.

    The network zero-pads the channels to the width w. SLL convolutions w -> w follow (3x3, zero padding,
    ``inner_channels`` rows), then the average pool of 4x4 windows times 4 (norm 1), SLL dense layers
    (``inner_features`` rows), and a dense head with unit rows. There are no further activations: each SLL layer has a
    relu of its own.

    The head is not 1-Lipschitz. With L the bound of the layers before it, the network's certificate is

    .. math:: \min_{j \neq y} \frac{f_y - f_j}{L \, |w_y - w_j|}

    which :func:`fastlip.certify` reports as ``radii``. The paper's network was trained with
    ``losses.OffsetCrossEntropy(offset=3 / sqrt(2), temperature=0.25)``.

    Args:
        size: ``"S"`` (default), ``"M"``, ``"L"`` or ``"XL"``: 20, 30, 50, 70 convolutions, 7, 10, 10, 15 dense
            layers, w = 45, 60, 90, 120.
        num_classes: number of outputs, at least 2; default 10.
        image_size: side of the images in pixels, at least 4 (published: 32, 64); default 32. The pool leaves out the
            rows and columns after the last multiple of 4.
        in_channels: channels of the images, at most w; default 3.
        width: w itself; None: the width of ``size``.
        convolutions: number of convolutions; None: that of ``size``.
        dense_layers: number of dense layers; None: that of ``size``.
        inner_channels: rows of the convolutions' kernels; default 5.
        inner_features: rows of the dense layers' matrices; default 2048.
        backend: kernels of every layer; default ``"auto"``.

    Returns:
        A ``torch.nn.Sequential``: (n, in_channels, image_size, image_size) -> (n, num_classes).

    Raises:
        ValueError: an argument that is not allowed; the message names it and what is allowed.

    Example:
        >>> model = fastlip.models.sll_net(width=6, convolutions=2, dense_layers=1, inner_features=12, image_size=8)
        >>> model(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
        >>> model.margin_slope
        2.0
    """
    sizes = _sizes(size, width=width, convolutions=convolutions, dense_layers=dense_layers)
    check_backend(backend)
    width = sizes.width
    if positive_int("in_channels", in_channels) > width:
        raise ValueError(f"in_channels={in_channels}: expected at most the width {width}")
    if positive_int("image_size", image_size) < _POOL:
        raise ValueError(f"image_size={image_size}: expected at least {_POOL}")
    if positive_int("num_classes", num_classes) < 2:
        raise ValueError(f"num_classes={num_classes}: expected at least 2")
    features = width * (image_size // _POOL) ** 2
    convolve = {"inner_channels": positive_int("inner_channels", inner_channels), "backend": backend}
    connect = {"inner_features": positive_int("inner_features", inner_features), "backend": backend}
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        pad=lip.ZeroChannelPad(width, (in_channels, image_size, image_size)),
        convolutions=nn.Sequential(*(lip.SLLConv2d(width, width, 3, **convolve) for _ in range(sizes.convolutions))),
        pool=lip.ScaledAvgPool2d(_POOL),
        flatten=nn.Flatten(),
        dense=nn.Sequential(*(lip.SLLLinear(features, features, **connect) for _ in range(sizes.dense_layers))),
        head=lip.NormalizedLinear(features, num_classes, backend=backend),
    )
    net = SLLNet(parts)
    net.input_shape = in_channels, image_size, image_size
    return net


def _sizes(size: SLLSizeName, **given: int | None) -> SLLSize:
    """The sizes that ``size`` names, replaced by those that are given."""
    if size not in SLL_SIZES:
        raise ValueError(f"size={size!r}: allowed are {', '.join(map(repr, SLL_SIZES))}")
    chosen = {name: positive_int(name, value) for name, value in given.items() if value is not None}
    return SLL_SIZES[size]._replace(**chosen)


# Without its own activations, a twin would be linear.
MODEL = Model("sll_net", sll_net, "sll", twin=False)
