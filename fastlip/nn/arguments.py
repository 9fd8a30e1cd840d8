"""Arguments of constructors, checked: an error names the argument, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastlip.kernels.common.checks import boolean, floating_dtype, usable_device
from fastlip.kernels.common.geometry import ConvGeometry, Pair, around
from fastlip.kernels.common.literals import PaddingMode
from fastlip.kernels.common.padding import Pads

CIRCULAR_FIRST: tuple[PaddingMode, ...] = ("circular", "zeros")
ZEROS_FIRST: tuple[PaddingMode, ...] = ("zeros", "circular")
# What the constructors of convolutions hand on: (kernel_size, stride, padding, dilation, groups, padding_mode), ...
ConvSizes = tuple[Any, Any, Any, Any, Any, Any]
ConvCommon = tuple[bool, Any, Any, Any]  # ... and (bias, device, dtype, backend).
_INTS = {2: "an int or a pair of ints", 3: "an int or a tuple of three ints"}


def require_floating(x: Tensor) -> None:
    """Raises TypeError for inputs other than real floating-point numbers: integers would be cut or fail in torch."""
    if not isinstance(x, fx.Proxy) and not x.is_floating_point():
        how = "convert it with x.float(), or 8-bit images with x.float() / 255"
        raise TypeError(f"x: got {x.dtype}, expected a floating-point tensor; {how}")


def positive_int(name: str, value: Any) -> int:
    """Returns a positive integer argument, or raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}={value!r}: expected an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name}={value}: expected at least 1")
    return value


def nonnegative(name: str, value: Any) -> float:
    """Returns a finite number of at least 0, or raises TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={value!r}: expected a number, got {type(value).__name__}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={value}: expected a finite number of at least 0")
    return float(value)


def pair(name: str, value: Any, least: int = 1, axes: int = 2) -> Pair:
    """Returns an int or a pair of ints as a pair (of volumes three), or raises TypeError or ValueError."""
    each = (value,) * axes if isinstance(value, int) else value
    expected = f"{name}={value!r}: expected {_INTS[axes]}"
    if not (isinstance(each, (tuple, list)) and len(each) == axes):
        raise TypeError(expected)
    for item in each:
        if isinstance(item, bool) or not isinstance(item, int):
            raise TypeError(expected)
        if item < least:
            raise ValueError(f"{name}={value!r}: expected at least {least}")
    return tuple([int(item) for item in each])


def one_of(name: str, value: Any, allowed: Sequence[str]) -> Any:
    """Returns a string option, or raises ValueError with those allowed."""
    if value not in allowed:
        verb = "is" if len(allowed) == 1 else "are"
        raise ValueError(f"{name}={value!r}: allowed {verb} {', '.join(map(repr, allowed))}")
    return value


def divisor_of_channels(groups: Any, in_channels: int, out_channels: int) -> int:
    """Returns groups if it divides both numbers of channels, or raises ValueError."""
    positive_int("groups", groups)
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"groups={groups}: expected a divisor of in_channels={in_channels} and out_channels={out_channels}"
        )
    return groups


def conv_geometry(
    channels: tuple[Any, Any],
    kernel_size: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    padding_mode: Any,
    modes: Sequence[PaddingMode] = CIRCULAR_FIRST,
    axes: int = 2,
) -> ConvGeometry:
    """The geometry that ``torch.nn.Conv2d``'s arguments mean; ``padding_mode`` None means the first of ``modes``.

    With ``axes=3`` they are those of ``torch.nn.Conv3d``. Layers of sequences (1) give those of kernels of one row.

    ``padding="same"`` keeps the image's size at stride 1, with the odd entry of an even kernel's padding after the
    image, and is subsampled at larger strides. Circular padding wraps by index and may exceed the image; its total
    per axis is at most ``dilation * (kernel_size - 1)``: beyond that outputs repeat, and the bound is lost.
    """
    inputs, outputs = positive_int("in_channels", channels[0]), positive_int("out_channels", channels[1])
    axes = max(axes, 2)
    sizes = pair("kernel_size", kernel_size, axes=axes), pair("stride", stride, axes=axes)
    dilation = pair("dilation", dilation, axes=axes)
    groups = divisor_of_channels(groups, inputs, outputs)
    mode = one_of("padding_mode", padding_mode or modes[0], modes)
    same = ConvGeometry(*sizes, dilation=dilation, groups=groups, padding_mode=mode)
    pads = _pads(padding, same)
    return same if pads == same.pads else ConvGeometry(*sizes, pads, dilation, groups, mode)


def _pads(padding: Any, same: ConvGeometry) -> Pads:
    """Resolves padding to (left, right, top, bottom), as ``F.pad`` orders them."""
    if padding == "same":
        return same.pads
    if padding == "valid":
        return (0, 0) * same.axes
    if isinstance(padding, str):
        raise ValueError(f"padding={padding!r}: allowed are 'same', 'valid', {_INTS[same.axes]}")
    each, reach = pair("padding", padding, 0, same.axes), same.halo
    if same.padding_mode == "circular" and any([2 * side > far for side, far in zip(each, reach, strict=True)]):
        *most, last = [str(far // 2) for far in reach]
        raise ValueError(
            f"padding={padding!r}: circular padding repeats outputs beyond a total of dilation * "
            f"(kernel_size - 1) = {reach} per axis, where the Lipschitz bound is lost; "
            f"allowed are at most {', '.join(most)} and {last} on each side, or 'same'"
        )
    return around(each)


def require_same(padding: Any, geometry: ConvGeometry) -> None:
    """Raises ValueError for a padding that does not keep an image's size."""
    if not geometry.keeps_size:
        raise ValueError(
            f"padding={padding!r}: allowed are 'same' and what equals it, {geometry.same_pads} as F.pad orders"
        )


def dense_features(in_features: Any, out_features: Any) -> tuple[int, int]:
    """Returns both numbers of features, or raises TypeError or ValueError."""
    return positive_int("in_features", in_features), positive_int("out_features", out_features)


def make_bias(size: int, bias: bool, device: Any, dtype: Any) -> nn.Parameter | None:
    """A bias of zeros: layers start as linear maps, so that norms pass unchanged through a deep network."""
    place = _place(device, dtype)
    return nn.Parameter(torch.zeros(size, **place)) if boolean("bias", bias) else None


def make_parameter(shape: Sequence[int], device: Any, dtype: Any) -> nn.Parameter:
    """A parameter of this shape without numbers: ``reset_parameters`` fills it."""
    return nn.Parameter(torch.empty(tuple(shape), **_place(device, dtype)))


def _place(device: Any, dtype: Any) -> dict[str, Any]:
    """Device and dtype of a parameter as keyword arguments of torch; ValueError or TypeError if they cannot be."""
    if device is not None:
        usable_device(device)
    return {"device": device, "dtype": floating_dtype(dtype)}
