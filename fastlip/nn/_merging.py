"""Like layers as one: the weights of n layers are those of one layer with n times as many groups.

A method whose groups do not depend on each other says so by ``_grouped``. Layers of one class, with the same options
and shapes, are then computed by one call of each op: on a GPU a call for small matrices takes as long as its
launches, however many matrices there are.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fastlip.nn._calls import are_untouched
from fastlip.nn.base import LipschitzLayer

# What every module has, and what says nothing about a layer's weights.
_INTERNAL = frozenset(vars(nn.Module())) | {"_cache", "_tensor_names", "_supplied"}
# Attributes that count the channels or the groups of a layer.
_COUNTS = ("groups", "in_channels", "out_channels", "_width", "inner_channels")
_NOT_ASKED = "bias"  # by any parametrization
_PACKAGE = f"{__name__.partition('.')[0]}."


def kind_of(layer: LipschitzLayer) -> Hashable:
    """Layers of equal kinds may be computed as one; None for a layer that must be computed by itself."""
    own = next(base for base in type(layer).__mro__ if base.__module__.startswith(_PACKAGE))
    if not layer._grouped or not are_untouched((layer, own)) or type(layer)._parametrize is not own._parametrize:
        return None
    options = tuple((name, value) for name, value in vars(layer).items() if name not in _INTERNAL)
    kind = type(layer), layer.training, options, *(_description(*item) for item in sources_of(layer).items())
    try:
        hash(kind)
    except TypeError:  # an attribute that cannot be compared
        return None
    return kind


def merged(layers: Sequence[LipschitzLayer], context: tuple[Hashable, ...]) -> list[tuple[Tensor, ...]]:
    """The effective weights of layers of one kind, computed as those of one layer, in their order."""
    count = len(layers)
    stacked = {
        name: None if first is None else torch.cat([getattr(layer, name) for layer in layers])
        for name, first in sources_of(layers[0]).items()
    }
    before = {name: tensor._version for name, tensor in stacked.items() if tensor is not None}
    whole = _with_groups(layers[0], count, stacked)
    weights = [_parts(weight, count) for weight in whole._computed(context)]
    for name, version in before.items():
        tensor = stacked[name]
        if tensor is not None and tensor._version != version:  # a buffer that every step moves
            with torch.no_grad():
                parts = tensor.unflatten(0, (count, -1)).unbind()
                torch._foreach_copy_([getattr(layer, name) for layer in layers], parts)
    return list(zip(*weights, strict=True))


def _with_groups(layer: Any, count: int, tensors: dict[str, Tensor | None]) -> LipschitzLayer:
    """A layer like this one, with several times its groups, and these parameters and buffers."""
    whole = layer._replicate_for_data_parallel()
    whole._buffers = {}
    state, application = whole.__dict__, layer._application
    state.update(tensors, **{_NOT_ASKED: None, "_supplied": None})
    state.update({name: count * state[name] for name in _COUNTS if name in state})
    geometry = replace(application.geometry, groups=count * application.geometry.groups)
    state["_application"] = replace(application, geometry=geometry)
    return whole


def _parts(weight: Tensor, count: int) -> tuple[Tensor, ...]:
    """The weight of each layer: its rows, which follow the frequencies in matrices per frequency."""
    axis = 1 if weight.is_complex() else 0
    return weight.unflatten(axis, (count, -1)).movedim(axis, 0).contiguous().unbind()


def sources_of(layer: LipschitzLayer) -> dict[str, Tensor | None]:
    """The parameters and buffers of which the weights are computed."""
    return {name: getattr(layer, name) for name in layer._registered() if name != _NOT_ASKED}


def _description(name: str, tensor: Tensor | None) -> Hashable:
    return name, tensor if tensor is None else (tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad)
