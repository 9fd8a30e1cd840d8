"""The rules of layers with a constrained weight."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastlip.exporting import plain
from fastlip.exporting.plain.weighted import config_of
from fastlip.exporting.rules import Target, exported, in_sequence
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.spectral_conv.api import half_plane
from fastlip.nn.applications import (
    Dense,
    ExponentialConvolution,
    FrequencyConvolution,
    KernelConvolution,
    ResidualConvolution,
    ResidualDense,
    SandwichConvolution,
    TransposedConvolution,
)

_KINDS: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}  # by the number of axes
# What is exported for one image size: padding, transforms or scales are those of that size.
FOR_ONE_SIZE: dict[type, bool] = dict.fromkeys(
    (KernelConvolution, FrequencyConvolution, ResidualConvolution, ExponentialConvolution, SandwichConvolution), True
)


@exported.register(TransposedConvolution)
def _transposed(layer: Any, target: Target) -> nn.Module:
    plain_layer = nn.ConvTranspose2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.output_padding,
        layer.groups,
        layer.bias is not None,
        layer.dilation,
        device="meta",
    )
    return with_tensors(plain_layer, layer.weight, layer.bias)


@exported.register(KernelConvolution)
def _kernel_layer(layer: Any, target: Target) -> nn.Module:
    return _convolution(layer, layer._effective()[0], target)


@exported.register(Dense)
def _matrix_layer(layer: Any, target: Target) -> nn.Module:
    return _linear(layer.weight, layer.bias)


@exported.register(FrequencyConvolution)
def _orthogonal_layer(layer: Any, target: Target) -> nn.Module:
    if max(layer._application.taps) == 1:
        return in_sequence(patches(layer), _one_tap(layer, layer._effective()[0]))
    fft_size = layer._application.fft_size(layer, *target.require_image(layer, layer._application.geometry.stride))
    (Q,) = layer._effective(*fft_size)
    return in_sequence(patches(layer), _spectral(layer, Q, fft_size, layer.bias, target))


@exported.register(ResidualConvolution)
def _residual_layer(layer: Any, target: Target) -> nn.Module:
    stride = layer._application.geometry.stride
    image = target.image(stride)
    context = layer._application.context(target.require_image(layer, stride)) if _depends_on_size(layer) else ()
    (scale,) = layer._effective(*context)
    tensors = {"kernel": layer.kernel, "bias": layer.bias, "scale": scale}
    residual = plain.freeze(plain.ResidualConvolution(tensors, **_inner_config(layer.kernel, layer), image=image))
    before = patches(layer, position_first=True), _widen(layer, layer._width)
    return in_sequence(*before, residual, _truncate(layer, layer._width))


def _depends_on_size(layer: Any) -> bool:
    return layer._application.sized


@exported.register(ResidualDense)
def _dense_residual_layer(layer: Any, target: Target) -> nn.Module:
    (scale,) = layer._effective()
    residual = plain.freeze(plain.ResidualDense({"kernel": layer.kernel, "bias": layer.bias, "scale": scale}))
    missing = layer._width - layer.in_features
    before = nn.ZeroPad1d((0, missing)) if missing else None
    after = plain.FirstEntries(count=layer.out_features, dim=-1, groups=1)
    return in_sequence(before, residual, plain.freeze(after) if layer._width > layer.out_features else None)


@exported.register(ExponentialConvolution)
def _exponential_layer(layer: Any, target: Target) -> nn.Module:
    stride = layer._application.geometry.stride
    if layer._application.geometry.kernel_size == (1, 1):
        return in_sequence(patches(layer), _one_tap(layer, layer._effective()[0]))
    bias = layer.bias
    if bias is not None and layer._width > layer.out_channels:  # truncated away again, within each group
        rows = bias.unflatten(0, (layer.groups, -1))
        bias = nn.functional.pad(rows, (0, layer._width // layer.groups - rows.shape[1])).flatten()
    before = patches(layer), _widen(layer, layer._width)
    after = _truncate(layer, layer._width)
    if layer._exponential == "spectral":
        size = target.require_image(layer, stride)
        (Q,) = layer._effective(*size)
        return in_sequence(*before, _spectral(layer, Q, size, bias, target), after)
    (kernel,) = layer._effective()
    series = {"terms": layer.eval_terms, "gain": layer._gain(layer.eval_terms)}
    exponential = plain.Exponential(
        {"kernel": kernel, "bias": bias}, **_inner_config(kernel, layer), **series, image=target.image(stride)
    )
    return in_sequence(*before, plain.freeze(exponential), after)


def with_tensors(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    """A layer of torch.nn with copies of these tensors."""
    # Contiguous, whatever the format in memory of the model was: files of tensors take no strides.
    layer.weight = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(memory_format=torch.contiguous_format))
    return layer


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    rows, columns = weight.shape
    return with_tensors(nn.Linear(columns, rows, bias is not None, device="meta"), weight, bias)


def _convolution(layer: Any, weight: Tensor, target: Target) -> nn.Module:
    """nn.Conv2d or Conv3d where its padding is the layer's, for every image or for that of the target."""
    geometry = layer._application.geometry
    before, after = geometry.pads[-2::-2], geometry.pads[::-2]
    most = tuple(max(ends) for ends in zip(before, after, strict=True))
    image = target.image((1,) * geometry.axes)
    circular = geometry.padding_mode == "circular" and any(geometry.pads)
    # "same" of nn.Conv2d puts the odd element where this package does; with zeros it warns.
    same = circular and max(geometry.stride) == 1 and layer.padding == "same"
    wraps = circular and any(pads > side for pads, side in zip(most, image or most, strict=True))
    if wraps or not (geometry.symmetric or same):
        tensors = {"weight": weight, "bias": layer.bias}
        return plain.freeze(plain.Convolution(tensors, **config_of(geometry), image=image))
    plain_layer = _KINDS[geometry.axes](
        layer.in_channels,
        layer.out_channels,
        geometry.kernel_size,
        geometry.stride,
        geometry.around if geometry.symmetric else "same",
        geometry.dilation,
        geometry.groups,
        layer.bias is not None,
        "circular" if circular else "zeros",
        device="meta",
    )
    return with_tensors(plain_layer, weight, layer.bias)


def _inner_config(kernel: Tensor, layer: Any) -> dict[str, Any]:
    """The configuration of a kernel that acts on images whose patches became channels."""
    geometry = layer._application.geometry
    config = config_of(ConvGeometry.like(kernel, geometry.dilation, geometry.groups, geometry.padding_mode))
    del config["stride"]
    return config


def _one_tap(layer: Any, weight: Tensor) -> nn.Module:
    """A 1 x 1 (x 1) convolution of patches."""
    cout, cin = weight.shape[:2]
    convolution = _KINDS[weight.dim() - 2](
        cin * layer.groups, cout, 1, groups=layer.groups, bias=layer.bias is not None, device="meta"
    )
    return with_tensors(convolution, weight, layer.bias)


def patches(layer: Any, position_first: bool = False) -> nn.Module | None:
    """Space to depth before a layer with a stride; None without one."""
    stride = layer._application.geometry.stride
    if max(stride) == 1:
        return None
    groups = layer.groups if position_first else 1
    return plain.freeze(plain.Patches(stride=stride, groups=groups, position_first=position_first))


def _widen(layer: Any, width: int) -> nn.Module | None:
    """Zero channels up to the width, in each group, after the patches."""
    missing = (width - layer.in_channels * math.prod(layer.stride)) // layer.groups
    if missing == 0:
        return None
    axes = layer._application.geometry.axes
    if axes == 3:
        return plain.freeze(plain.PadGroups(groups=layer.groups, missing=missing, axes=axes))
    if layer.groups == 1:
        return nn.ZeroPad3d((0, 0, 0, 0, 0, missing))
    return plain.freeze(plain.PadGroups(groups=layer.groups, missing=missing))


def _truncate(layer: Any, width: int) -> nn.Module | None:
    if width == layer.out_channels:
        return None
    kept, groups = layer.out_channels // layer.groups, layer.groups
    # In groups, channels are the last but two dimensions of (group, channel, h, w) too.
    return plain.freeze(plain.FirstEntries(count=kept, dim=-1 - layer._application.geometry.axes, groups=groups))


def _spectral(layer: Any, Q: Tensor, fft_size: tuple[int, ...], bias: Tensor | None, target: Target) -> Any:
    matrices = half_plane(Q, fft_size).unflatten(1, (layer.groups, -1))
    return plain.freeze(
        plain.SpectralConvolution(
            {"spectrum": torch.view_as_real(matrices.resolve_conj()), "bias": bias},
            image=target.require_image(layer, layer._application.geometry.stride),
            fft_size=fft_size,
            groups=layer.groups,
            fourier=target.fourier,
        )
    )
