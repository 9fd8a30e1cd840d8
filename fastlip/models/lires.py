"""LiResNet: linear residual blocks in one convolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from fastlip import nn as lip
from fastlip.kernels.common.literals import Backend, PaddingMode, Pairing
from fastlip.models.literals import MethodName, MethodOptions, Size
from fastlip.models.model import Model
from fastlip.models.quasi_residual import PATCH, STEM, Layers, QuasiResidualNet, assemble, sizes_of
from fastlip.models.registry import REGISTRY, check_layer_options, method_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

_SET_HERE = frozenset(("in_channels", "out_channels", "kernel_size", "stride", "bias"))


def lip_res_net(
    method: MethodName = "aol",
    size: Size = "L",
    num_classes: int = 10,
    image_size: int = 32,
    in_channels: int = 3,
    *,
    width: int | None = None,
    depth: int | None = None,
    features: int | None = None,
    dense_layers: int | None = None,
    quasi_residual: bool = True,
    centering: bool = True,
    padding_mode: PaddingMode = "zeros",
    pairing: Pairing = "halves",
    backend: Backend = "auto",
    **layer_options: Unpack[MethodOptions],
) -> QuasiResidualNet:
    r"""Builds LiResNet++, a network of linear residual blocks.

    Hu, Leino, Wang, Fredrikson, *A Recipe for Improved Certifiable Robustness*, ICLR 2024; Hu, Zou, Wang, Leino,
    Fredrikson, *Unlocking Deterministic Robustness Certification on ImageNet*, NeurIPS 2023.

    A linear residual block x + gamma conv(x) / sqrt(depth) is one convolution with the kernel V = I + gamma W /
    sqrt(depth), which ``method`` makes 1-Lipschitz or orthogonal. Stem, blocks, neck, dense layers and head are
    those of :func:`bro_net`, with the method's layers in the stem and the blocks, and polar factors in the neck and
    the dense layers. The certificate is that of :func:`bro_net`.

    The published network leaves V as it is, and its loss divides by a norm from power iterations. Here AOL's
    rescaling, which leaves an identity as it is, bounds each block by 1 in training too. The published dense layers
    take Cholesky factors.

    Args:
        method: parametrization of the convolutions: one of ``fastlip.models.METHODS`` with ``quasi_residual``, or any
            without it; default ``"aol"``.
        size: ``"XS"``, ``"S"``, ``"M"`` or ``"L"`` (default), as for :func:`bro_net`; L has 83 M parameters.
        num_classes: number of outputs, at least 2; default 10.
        image_size: side of the images in pixels (published: 32, 64); default 32.
        in_channels: channels of the images; default 3.
        width: channels w; None: the width of ``size``.
        depth: number of blocks; None: that of ``size``.
        features: features of the dense layers; None: those of ``size``.
        dense_layers: number of quasi-residual dense layers; None: that of ``size``.
        quasi_residual: whether blocks and dense layers have the identity in V; default True.
        centering: whether blocks subtract the mean of each channel; otherwise their convolutions have a bias; default
            True.
        padding_mode: of the convolutions: ``"zeros"`` (default, published) or ``"circular"``.
        pairing: channels that MaxMin compares: ``"halves"`` (default, published) or ``"adjacent"``.
        backend: kernels of every layer and activation; default ``"auto"``.
        **layer_options: further keyword arguments of the method's convolutions, such as ``rank`` of BRO.

    Returns:
        A ``torch.nn.Sequential``: (n, in_channels, image_size, image_size) -> (n, num_classes).

    Raises:
        ValueError: an argument that is not allowed; the message names it and what is allowed.

    Example:
        >>> sizes = {"width": 8, "depth": 2, "features": 16, "dense_layers": 1}
        >>> model = fastlip.models.lip_res_net("cayley", "XS", image_size=8, **sizes)
        >>> model.blocks[0].quasi_residual == 2**-0.5
        True
    """
    convolution = method_of(method).convolution
    check_layer_options(lip_res_net, method_of(method), layer_options, _SET_HERE)
    allowed = [name for name, one in REGISTRY.items() if "quasi_residual" in getattr(one.convolution, "_fixed", ())]
    if quasi_residual and method not in allowed:
        names = ", ".join(map(repr, allowed))
        raise ValueError(f"method={method!r}: allowed with quasi_residual=True are {names}")
    options: dict[str, Any] = {"padding_mode": padding_mode, "backend": backend, **layer_options}

    def stem(inputs: int, outputs: int) -> nn.Module:
        return convolution(inputs, outputs, STEM, stride=2, **options)

    def block(width: int, s: bool | float, bias: bool) -> nn.Module:
        added = {"quasi_residual": s} if s else {}
        return convolution(width, width, 3, bias=bias, **added, **options)

    def neck(width: int) -> nn.Module:
        return lip.LOTConv2d(width, width, PATCH, stride=PATCH, bias=False, backend=backend)

    def dense(inputs: int, outputs: int, s: bool | float) -> nn.Module:
        return lip.LOTLinear(inputs, outputs, quasi_residual=s, backend=backend)

    layers = Layers(stem, block, neck, dense, pairing, backend)
    sizes = sizes_of(size, width=width, depth=depth, features=features, dense_layers=dense_layers)
    return assemble(layers, sizes, num_classes, image_size, in_channels, quasi_residual, centering)


MODEL = Model("lip_res_net", lip_res_net, "liresnet", ("method", "depth", "quasi_residual", "centering"))
