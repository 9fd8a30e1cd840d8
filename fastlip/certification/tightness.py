"""Which bounds of the audit are the norm itself, up to rounding, and not only above it."""

from __future__ import annotations

import math

from torch import nn

from fastlip import nn as lip
from fastlip.exporting.plain import Convolution, Plain, SpectralConvolution
from fastlip.kernels.spectral_norm.reference import is_cheap
from fastlip.nn._conv import KernelConv2d, LipschitzConv2d
from fastlip.nn._orthogonal import OrthogonalConv2d
from fastlip.nn.base import MatrixLinear


def matrix_is_exact(shape: tuple[int, ...]) -> bool:
    """Whether the 2-norm of such a matrix is computed, not bounded by Gram iteration."""
    return is_cheap(1, min(shape))


def convolution_is_exact(
    shape: tuple[int, ...],
    image: tuple[int, ...],
    stride: tuple[int, ...],
    pads: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    padding_mode: str,
) -> bool:
    """Whether ``fastlip.ops.spectral_norm`` is exact here: one tap, or circular with all its padding."""
    for side, step, padding, d, k in zip(
        image, stride, (pads[2] + pads[3], pads[0] + pads[1]), dilation, shape[2:], strict=True
    ):
        reach = d * (k - 1)
        circular = padding_mode == "circular" and padding == reach and side % step == 0
        if not (circular or reach == padding == 0):
            return False
    frequencies = math.prod(-(-side // step) for side, step in zip(image, stride, strict=True))
    return is_cheap(groups * frequencies, min(shape[0] // groups, shape[1] * math.prod(stride)))


def layer_is_exact(module: nn.Module, input_shape: tuple[int, ...]) -> bool:
    """Whether the module's own ``lipschitz_bound`` is attained."""
    if isinstance(module, (lip.ScaledAvgPool2d, lip.L2NormPool2d)):
        return True
    if isinstance(module, (KernelConv2d, Convolution)):
        names = "stride", "pads", "dilation", "groups", "padding_mode"
        geometry = (getattr(module, name) for name in names)
        return convolution_is_exact(tuple(module.weight.shape), input_shape[-2:], *geometry)
    if isinstance(module, Plain):
        if isinstance(module, SpectralConvolution):
            return module.torus == module.image
        return module.roundings(input_shape) == 0
    if isinstance(module, MatrixLinear):
        return matrix_is_exact((module.out_features, module.in_features))
    return isinstance(module, LipschitzConv2d) and _is_whole(module, input_shape)


def _is_whole(layer: LipschitzConv2d, input_shape: tuple[int, ...]) -> bool:
    """Whether every frequency's matrix acts as it is: no zeros around the image, or after it."""
    if any(side % step for side, step in zip(input_shape[-2:], layer.stride, strict=True)):
        return False
    if isinstance(layer, OrthogonalConv2d):
        return layer.padding_mode == "circular" or layer.taps == (1, 1)
    return isinstance(layer, lip.SOCConv2d) and layer.kernel_size == (1, 1)
