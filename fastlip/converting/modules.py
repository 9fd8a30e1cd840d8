"""Activations, norms and pools: what takes their place, also where a function computes them."""

from __future__ import annotations

import math
from typing import Any

from torch import fx, nn

from fastlip import nn as lip
from fastlip.certification.bounds.pools import AVERAGE_POOLS, MAX_POOLS
from fastlip.converting.norms import CHANNEL_NORMS, centre_channels, centre_samples, normalised_dims
from fastlip.converting.rewriting import Rewriting

# Those that shrink gradients or have a constant above 1. Tanh, sigmoid, softmax and their like stay.
ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardswish, nn.Softplus),
)


def convert_activation(work: Rewriting, node: fx.Node, kind: str) -> None:
    """MaxMin over the channels."""
    dims, dim = work.values[node].dim(), work.channel[node]
    channels = work.values[node].shape[dim]
    work.note(node, kind, "MaxMin", f"the last of {channels} channels passes" if channels % 2 else "")
    work.put(node, lip.MaxMin(dim=1 if dim == 1 - dims else dim))


def convert_norm(work: Rewriting, node: fx.Node, module: Any) -> None:
    """Centering by the batch for norms per channel, by the sample for layer norms."""
    value, kind = work.values[node], type(module).__name__
    if isinstance(module, CHANNEL_NORMS):
        made, note = centre_channels(value.shape[1], value), "subtracts each channel's mean"
    else:
        dims = normalised_dims(module, work.values[work.sources(node)[0]], work.channel[node])
        made, note = centre_samples(value.shape[1], dims), "subtracts each sample's own mean"
    work.note(node, kind, type(made).__name__, note)
    work.put(node, made)


def convert_pool(work: Rewriting, node: fx.Node, module: Any, bound: float) -> None:
    """Scaled to norm 1 if it is linear; made disjoint, or divided by its bound if it exceeds 1."""
    kind = type(module).__name__
    if bound == 1:
        return
    if isinstance(module, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)) and (scaled := _scaled(work, node, module)):
        work.note(node, kind, type(scaled).__name__)
        work.put(node, scaled)
    elif isinstance(module, MAX_POOLS) and (disjoint := _disjoint(work, node, module)):
        work.note(node, kind, kind, f"disjoint windows of {disjoint.kernel_size} instead of {module.kernel_size}")
        work.put(node, disjoint)
    elif bound > 1 or isinstance(module, AVERAGE_POOLS):
        factor = 1 / bound
        work.note(node, kind, kind, f"times {factor:.6g}")
        work.scale(node, factor)


def _scaled(work: Rewriting, node: fx.Node, module: Any) -> nn.Module | None:
    if module.kernel_size != module.stride or getattr(module, "divisor_override", None):
        return None
    if isinstance(module, nn.AvgPool1d):
        return _fitting(work, node, lip.ScaledAvgPool1d(module.kernel_size))
    kind: Any = lip.ScaledAvgPool3d if isinstance(module, nn.AvgPool3d) else lip.ScaledAvgPool2d
    return _fitting(work, node, kind(module.kernel_size))


def _disjoint(work: Rewriting, node: fx.Node, module: Any) -> Any:
    """The pool whose windows are as large as its stride, if it gives the same shape; None otherwise."""
    stride = getattr(module, "stride", None)
    steps = (stride,) if isinstance(stride, int) else stride or (1,)
    if math.prod(steps) == 1:
        return None
    for ceil_mode in (False, True):
        found = _fitting(work, node, type(module)(stride, stride, ceil_mode=ceil_mode))
        if found:
            return found
    return None


def _fitting(work: Rewriting, node: fx.Node, module: nn.Module) -> nn.Module | None:
    """The module if it gives the node's shape."""
    try:
        found = module(work.values[work.sources(node)[0]])
    except (ValueError, RuntimeError):
        return None
    return module if found.shape == work.values[node].shape else None
