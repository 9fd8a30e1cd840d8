"""LipNeXt: orthogonal products at each pixel, and shifts of channels between them."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from fastlip import nn as lip
from fastlip._names import lists_keywords
from fastlip.kernels.common.dispatch import check_backend
from fastlip.kernels.common.literals import Backend
from fastlip.models.literals import LipNextSize, OrthogonalName
from fastlip.models.model import Model, Network
from fastlip.models.registry import method_of, owners_of
from fastlip.nn._manifold import MANIFOLD, PARAMETRIZATIONS, Parametrization, retracted
from fastlip.nn.arguments import one_of, positive_int

_LARGEST_SIDE = 16  # of an image of patches, unless told otherwise


class LipNextShape(NamedTuple):
    """Channels and number of blocks."""

    width: int
    depth: int


# M, L and XL have the published widths and depths of 64 M, 256 M and 1 B parameters.
LIP_NEXT_SIZES: dict[LipNextSize, LipNextShape] = {
    "XS": LipNextShape(64, 8),
    "S": LipNextShape(256, 16),
    "M": LipNextShape(1024, 32),
    "L": LipNextShape(2048, 32),
    "XL": LipNextShape(4096, 32),
}


class LipNext(Network):
    """The network that :func:`lip_next` builds, with ``input_shape`` and ``margin_slope`` as :class:`LipConvNet`.

    Args:
        *modules: the modules in their order, or one ``OrderedDict`` of them, as ``torch.nn.Sequential`` takes them.

    Example:
        >>> fastlip.models.LipNext.margin_slope
        2.0
    """


@lists_keywords
def lip_next(
    size: LipNextSize = "M",
    num_classes: int = 10,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    method: OrthogonalName = "lot",
    width: int | None = None,
    depth: int | None = None,
    patch: int | None = None,
    shift: float = 0.125,
    parametrization: Parametrization = "manifold",
    backend: Backend = "auto",
) -> LipNext:
    r"""Builds LipNeXt (*LipNeXt*, arXiv 2601.18513), a network without spatial convolutions.

    Patches of the image become channels, which an orthogonal matrix maps to w channels. Each block is

    .. math:: z = \mathrm{act}(M R^T S(R (x + p)) + b)

    where R and M are orthogonal matrices at each pixel, S moves four groups of channels by one pixel up, down, left
    and right, p is a learnt image of one channel, and act takes the absolute value of the first half of the channels.
    A block keeps norms and distances up to the folds of the absolute value: its Jacobian is orthogonal. At the end
    stand the norm of each channel over all pixels and a head with unit rows. M R^T is one orthogonal matrix here,
    which has the same values and saves a product. Blocks start as R^T S R with a random R.

    The paper's code is not public. What it leaves open is chosen here: the patches, and where blocks start. The
    certificate is that of :func:`bro_net`. With ``parametrization="manifold"``, train with
    :class:`fastlip.optim.ManifoldOptimizer`.

    Args:
        size: w = 64, 256, 1024, 2048, 4096 and 8, 16, 32, 32, 32 blocks for ``"XS"``, ``"S"``, ``"M"`` (default),
            ``"L"``, ``"XL"``. The last three are published, with about 64 M, 256 M and 1 B parameters; XL with a
            depth of 64 has 2 B.
        num_classes: number of outputs, at least 2; default 10.
        image_size: side of the images in pixels; default 32.
        in_channels: channels of the images; default 3.
        method: whose dense layers: ``"bcop"``, ``"bro"``, ``"cayley"``, ``"lot"`` (default) or ``"soc"``. On the
            manifold they are the same layer.
        width: w itself, at least 4; None: the width of ``size``.
        depth: number of blocks; None: that of ``size``.
        patch: side of a patch; None: the smallest for which the image has at most 16 x 16 patches.
        shift: fraction of the channels that move in each direction, at most 1/4 (published: 1/8 and 1/16); default
            0.125.
        parametrization: of the matrices: ``"manifold"`` (default, published) or ``"unconstrained"``.
        backend: kernels of the layers; default ``"auto"``.

    Returns:
        A ``torch.nn.Sequential``: (n, in_channels, image_size, image_size) -> (n, num_classes).

    Raises:
        ValueError: an argument that is not allowed; the message names it and what is allowed.

    Example:
        >>> model = fastlip.models.lip_next("XS", width=16, depth=2, image_size=8)
        >>> [name for name, _ in model.named_children()]
        ['pad', 'stem', 'blocks', 'pool', 'head']
        >>> model(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """
    check_backend(backend)
    one_of("parametrization", parametrization, PARAMETRIZATIONS)
    width, depth = _sizes(size, width, depth)
    if positive_int("num_classes", num_classes) < 2:
        raise ValueError(f"num_classes={num_classes}: expected at least 2")
    channels = positive_int("in_channels", in_channels)
    smallest = math.ceil(positive_int("image_size", image_size) / _LARGEST_SIDE)
    patch = smallest if patch is None else positive_int("patch", patch)
    dense = partial(_dense_of(method), parametrization=parametrization, backend=backend)
    side, moved = math.ceil(image_size / patch), _moved(shift, width)
    stem: list[nn.Module] = [lip.PixelUnshuffle(patch, backend=backend)] if patch > 1 else []
    stem.append(lip.PerPixel(dense(channels * patch**2, width)))
    shape = in_channels, image_size, image_size
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        pad=lip.ZeroChannelPad(in_channels, shape),  # pads nothing, and refuses images of another shape
        stem=lip.Chain(*stem),
        blocks=lip.Chain(*(_block(dense, width, side, moved) for _ in range(depth))),
        pool=lip.Chain(lip.AdaptiveL2NormPool2d(1), nn.Flatten()),
        head=lip.NormalizedLinear(width, num_classes, backend=backend),
    )
    net = LipNext(parts)
    net.input_shape = shape
    return net


def _sizes(size: LipNextSize, width: int | None, depth: int | None) -> LipNextShape:
    if size not in LIP_NEXT_SIZES:
        raise ValueError(f"size={size!r}: allowed are {', '.join(map(repr, LIP_NEXT_SIZES))}")
    given = {"width": width, "depth": depth}
    chosen = {name: positive_int(name, value) for name, value in given.items() if value is not None}
    shape = LIP_NEXT_SIZES[size]._replace(**chosen)
    if shape.width < 4:
        raise ValueError(f"width={shape.width}: expected at least 4, for four groups of channels that move")
    return shape


def _moved(shift: float, width: int) -> int:
    """The number of channels that move in each direction."""
    if not isinstance(shift, (int, float)) or not 0 < shift <= 0.25:
        raise ValueError(f"shift={shift!r}: expected a fraction above 0 and at most 1/4")
    return max(1, int(shift * width))


def _dense_of(method: str) -> Callable[..., nn.Module]:
    allowed = owners_of("lip_next")
    if method not in allowed:
        raise ValueError(f"method={method!r}: allowed are {', '.join(map(repr, allowed))}")
    linear: Any = method_of(method).linear
    return linear


def _block(dense: Callable[..., Any], width: int, side: int, moved: int) -> lip.Chain:
    """A block that starts as Rᵀ S R followed by the activation, where its matrices can be set."""
    R, Q = dense(width, width, bias=False), dense(width, width)
    if R.parametrization == MANIFOLD and not R.orthogonal_weight.is_meta:
        with torch.no_grad():
            R.orthogonal_weight.copy_(retracted(nn.init.orthogonal_(torch.empty_like(R.orthogonal_weight))))
            Q.orthogonal_weight.copy_(R.orthogonal_weight.mT)
    shift = lip.SpatialShift(moved)
    return lip.Chain(lip.PositionBias(side), lip.PerPixel(R), shift, lip.PerPixel(Q), lip.PartialAbs(width // 2, -3))


MODEL = Model("lip_next", lip_next, "lipnext", ("method", "depth", "patch"))
