"""The 1-Lipschitz layer for a convolution or a dense layer, with its weights as initial values where possible."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastlip import nn as lip
from fastlip.kernels.common.geometry import around
from fastlip.kernels.common.padding import same_pads
from fastlip.nn.method import Method
from fastlip.nn.sequences import one_dimensional
from fastlip.nn.volumes import three_dimensional

Weights = Literal["keep", "fresh"]
Head = Literal["orthogonal", "unit_rows", "method"]
_FAILURES = (ValueError, TypeError, RuntimeError)
# Layers whose weight is a function of a kernel or matrix of the plain layer's shape, close to it in direction.
_AOL_CONVOLUTIONS = lip.AOLConv1d, lip.AOLConv2d, lip.AOLConv3d
_TAKE_WEIGHTS = (
    *(*_AOL_CONVOLUTIONS, lip.AOLLinear, lip.LOTConv1d, lip.LOTConv2d, lip.LOTConv3d, lip.LOTLinear),
    *(lip.CayleyConv1d, lip.CayleyConv2d, lip.CayleyConv3d, lip.CayleyLinear, lip.BjorckLinear, lip.NormalizedLinear),
)


class Layer(NamedTuple):
    """A layer that takes the place of another, and what is to be said about it."""

    module: nn.Module
    note: str


class Start(NamedTuple):
    """Where a layer starts.

    ``least``: the share of its input's norm that a layer must keep, so that the network keeps enough of it.
    """

    weights: Weights
    least: float = 0.0


class RefusedError(ValueError):
    """There is no 1-Lipschitz layer for a module; the message says why."""


def convolution(old: Any, method: Method, start: Start, x: Tensor, y: Tensor) -> Layer:
    """The method's convolution for ``torch.nn.Conv2d``, ``Conv1d`` or ``Conv3d``; AOL's where it has none for that.

    x and y are its input and output.
    """
    options, notes = _options(old), []
    if options["padding_mode"] not in ("zeros", "circular"):
        notes.append(f"padding_mode {options['padding_mode']!r} became 'zeros'")
        options["padding_mode"] = "zeros"
    for kind in dict.fromkeys((method.convolution, lip.AOLConv2d)):
        more = method.options if kind is method.convolution else {}
        try:
            layer = _kind_for(old, kind)(old.in_channels, old.out_channels, **options, **more)
            found = _shape(layer, x)
        except _FAILURES as error:
            notes.append(f"not {_name_for(old, kind)}: {_line(error)}")
            continue
        if found == y.shape:
            return Layer(layer, "; ".join([_take_over(layer, old, start), *notes]))
        notes.append(f"not {_name_for(old, kind)}: it gives {tuple(found[1:])} instead of {tuple(y.shape[1:])}")
    raise RefusedError("; ".join(notes))


def _kind_for(old: nn.Module, kind: type[nn.Module]) -> type[nn.Module]:
    """The layer for a convolution: that of sequences or volumes for ``torch.nn.Conv1d`` or ``Conv3d``."""
    if isinstance(old, nn.Conv2d):
        return kind
    sequences = isinstance(old, nn.Conv1d)
    found = one_dimensional(kind) if sequences else three_dimensional(kind)
    if found is None:
        raise RefusedError(f"it has no form for {'sequences' if sequences else 'volumes'}")
    return found


def _name_for(old: Any, kind: type[nn.Module]) -> str:
    return kind.__name__.replace("2d", f"{old.weight.dim() - 2}d")


def transposed(old: Any, x: Tensor, y: Tensor) -> Layer:
    """An orthogonal transposed convolution, or RefusedError."""
    options = _options(old)
    options.update(output_padding=_two(old.output_padding, 0), padding=_two(old.padding, 0))
    try:
        layer = lip.AOCConvTranspose2d(old.in_channels, old.out_channels, **options)
        found = _shape(layer, x)
    except _FAILURES as error:
        raise RefusedError(f"AOCConvTranspose2d: {_line(error)}") from None
    if found != y.shape:
        raise RefusedError(f"AOCConvTranspose2d gives {tuple(found[1:])} instead of {tuple(y.shape[1:])}")
    return Layer(layer, _take_over(layer, old, Start("fresh")))


def dense(old: nn.Linear, method: Method, start: Start, head: Head | None) -> Layer:
    """The method's dense layer (AOL's if it has none), or the head: ``head`` is None for other layers."""
    kinds: dict[str | None, Any] = {"orthogonal": lip.LOTLinear, "unit_rows": lip.NormalizedLinear}
    kind = kinds.get(head) or method.linear or lip.AOLLinear
    like = {"device": old.weight.device, "dtype": old.weight.dtype}
    layer = kind(old.in_features, old.out_features, bias=old.bias is not None, **like)
    note = _take_over(layer, old, start)
    if head == "unit_rows":
        note += "; each score is 1-Lipschitz, all together are not"
    return Layer(layer, note)


def _options(old: Any) -> dict[str, Any]:
    """The arguments of the layer that takes a convolution's place; ``ConvTranspose1d`` becomes one of one row."""
    size, stride = _two(old.kernel_size, 1), _two(old.stride, 1)
    dilation, padding = _two(old.dilation, 1), old.padding
    if not isinstance(padding, str):
        padding = _two(padding, 0)
        padding = "same" if same_pads(size, dilation) == around(padding) else padding
    sizes = {"kernel_size": size, "stride": stride, "padding": padding, "dilation": dilation}
    if isinstance(old, nn.Conv1d):
        sizes = {name: value[1:] if isinstance(value, tuple) else value for name, value in sizes.items()}
    return sizes | {
        "groups": old.groups,
        "bias": old.bias is not None,
        "padding_mode": old.padding_mode,
        "device": old.weight.device,
        "dtype": old.weight.dtype,
    }


def _two(sides: Any, first: int) -> tuple[int, ...]:
    """The sizes of at least two axes: those of sequences on one row."""
    sides = (sides,) if isinstance(sides, int) else tuple(sides)
    return (first, sides[0]) if len(sides) == 1 else sides


def _shape(layer: nn.Module, x: Tensor) -> torch.Size:
    training = layer.training
    try:
        return layer.eval()(x).shape
    finally:
        layer.train(training)


def _take_over(layer: Any, old: Any, start: Start) -> str:
    """Copies weight and bias where the layer has parameters of their shape, and says what it did."""
    bias, raw = getattr(layer, "bias", None), getattr(layer, "raw_weight", None)
    if start.weights == "fresh" or not isinstance(layer, _TAKE_WEIGHTS) or not isinstance(raw, Tensor):
        return "fresh weights"
    geometry = getattr(getattr(layer, "_application", None), "geometry", None)
    shape = (*old.weight.shape[:2], *(geometry.kernel_size if geometry else ()))
    if raw.shape != shape or not old.weight.any():
        return "fresh weights"
    fresh = raw.detach().clone()
    with torch.no_grad():
        raw.copy_(old.weight.view(shape))
        if isinstance(layer, (*_AOL_CONVOLUTIONS, lip.AOLLinear)) and (kept := _kept(layer)) < start.least:
            raw.copy_(fresh)
            return f"fresh weights: the model's would keep {kept:.0%} of the norm"
        if bias is not None and old.bias is not None and bias.shape == old.bias.shape:
            bias.copy_(old.bias)
            bias.requires_grad_(old.bias.requires_grad)
    raw.requires_grad_(old.weight.requires_grad)
    return "weights kept"


def _kept(layer: Any) -> float:
    r"""Share of the norm that a random input keeps, of what an orthogonal layer of this shape lets through.

    :math:`|P|_F / \sqrt{\min(c_{out}, c_{in} s^2)}`, the root mean square of the singular values.
    """
    if not isinstance(layer, lip.AOLLinear):
        strides, (outputs, inputs) = layer._application.geometry.stride, (layer.out_channels, layer.in_channels)
    else:
        strides, (outputs, inputs) = (), (layer.out_features, layer.in_features)
    return layer.weight.norm().item() / math.sqrt(min(outputs, inputs * math.prod(strides)))


def _line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
