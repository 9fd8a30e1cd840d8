"""The modules that a model applies one after the other, followed with a batch of samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastlip import nn as lip
from fastlip.certification.bounds import understands
from fastlip.certification.evaluation import compiled_from
from fastlip.certification.graphs import Branch, UnknownError, graph_of, known, parts_of
from fastlip.exporting.plain import thaw
from fastlip.nn._calls import hooks_of, is_replaced
from fastlip.nn._conv import LipschitzConv2d
from fastlip.nn.chain import Chain
from fastlip.nn.pooling import L2NormPool2d, ScaledAvgPool2d

Link = tuple[str, nn.Module]

# Modules that take the samples for channels where samples have no channels: how many dimensions a sample has.
_RANKS: dict[type[nn.Module], int] = {
    **dict.fromkeys((nn.Conv1d, nn.ConvTranspose1d, nn.MaxPool1d, nn.AvgPool1d), 2),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d), 2),
    **dict.fromkeys((nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d, LipschitzConv2d), 3),
    **dict.fromkeys((nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, ScaledAvgPool2d, L2NormPool2d), 3),
    **dict.fromkeys((lip.AOCConvTranspose2d, lip.PixelUnshuffle), 3),
    **dict.fromkeys((nn.Conv3d, nn.ConvTranspose3d, nn.MaxPool3d, nn.AvgPool3d), 4),
    **dict.fromkeys((nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d), 4),
}


def unfold(model: nn.Module, x: Tensor) -> list[Link]:
    """The modules that the model applies one after the other, with their names; TypeError names those unknown.

    What branches is one link, a :class:`Branch`. x is a batch: the model is run on it, part by part.
    """
    reasons: list[str] = []
    links = _unfold("", model, x, reasons)
    unknown = [f"{name or 'model'} ({type(module).__name__})" for name, module in _unknown(links)]
    if unknown:
        detail = f" ({'; '.join(dict.fromkeys(reasons))})" if reasons else ""
        raise TypeError(
            f"the audit does not understand {', '.join(unknown)}{detail}: give the module a method "
            "lipschitz_bound(input_shape), register a rule with fastlip.certification.auditing, or remove its hooks"
        )
    return links


def innermost(model: nn.Module) -> nn.Module:
    """The model inside wrappers that compute the same: compiled, or for data parallelism."""
    while (inner := _unwrap(model)) is not None:
        model = inner
    return model


def run(name: str, module: nn.Module, x: Tensor) -> Any:
    """The module's output for x, which stays as it is; ValueError names the module that fails."""
    return apply(name, module, x.clone())


def apply(name: str, module: nn.Module, x: Tensor) -> Any:
    """The module's output for x, which it may change in place; ValueError names the module that fails."""
    try:
        return module(x)
    except RuntimeError as error:
        kind, shape = type(module).__name__, tuple(x.shape[1:])
        reason = str(error).strip().split("\n", 1)[0]
        raise ValueError(f"layer {name!r} ({kind}): it fails on {len(x)} samples of {shape}: {reason}") from error


def _unknown(links: list[Link]) -> Iterator[Link]:
    for name, module in links:
        if isinstance(module, Branch):
            for inner in module.links.values():
                yield from _unknown(inner)
        elif not _is_understood(module):
            yield name, module


def _is_understood(module: nn.Module) -> bool:
    return not _is_touched(module) and understands(module)


def _is_touched(module: nn.Module) -> bool:
    return bool(hooks_of(module)) or is_replaced(module)


def _unfold(name: str, module: nn.Module, x: Tensor, reasons: list[str]) -> list[Link]:
    wrapped = _unwrap(module)
    if wrapped is not None and not hooks_of(module):
        return _unfold(name, wrapped, x, reasons)
    if _is_touched(module):
        return [(name, module)]
    if isinstance(module, fx.GraphModule):
        module = thaw(module) or module
    if _is_understood(module):
        _check_rank(name, module, tuple(x.shape[1:]))
        return [(name, module)]
    if is_sequence(module):
        return _unfold_sequence(name, module, x, reasons)
    return _unfold_graph(name, module, x, reasons)


def _unfold_sequence(name: str, module: nn.Module, x: Any, reasons: list[str]) -> list[Link]:
    links: list[Link] = []
    children = list(module._modules.items())  # named_children() leaves out what stands here twice
    for index, (child_name, child) in enumerate(children):
        full_name = f"{name}.{child_name}" if name else child_name
        if not isinstance(child, nn.Module) or not isinstance(x, Tensor):
            raise ValueError(f"layer {full_name!r}: there is no module, or no tensor for it")
        links += _unfold(full_name, child, x, reasons)
        if index + 1 < len(children):
            x = run(full_name, child, x)
    return links


def _unfold_graph(name: str, module: nn.Module, x: Tensor, reasons: list[str]) -> list[Link]:
    links: list[Link] = []
    try:
        traced = graph_of(module, x.clone())
        for part in parts_of(name, module, traced):
            if isinstance(part.module, Branch):
                for node, child_name, child in part.module.children_called():
                    value = known(traced.values[node.all_input_nodes[0]])
                    part.module.links[node] = _unfold(child_name, child, value, reasons)
                links.append((part.name, part.module))
            else:
                links += _unfold(part.name, part.module, known(traced.values[part.source]), reasons)
    except UnknownError as error:
        if str(error):
            reasons.append(f"{name or 'model'}: {error}")
        return [(name, module)]
    return links


def is_sequence(module: nn.Module) -> bool:
    """Whether the module applies its children one after the other, and does nothing else."""
    kind = type(module)
    if not issubclass(kind, nn.Sequential) or kind.__iter__ is not nn.Sequential.__iter__:
        return False
    return kind.forward in (nn.Sequential.forward, Chain.forward)


def _unwrap(module: nn.Module) -> nn.Module | None:
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return module.module
    return compiled_from(module)


def _check_rank(name: str, module: nn.Module, shape: tuple[int, ...]) -> None:
    rank = next((_RANKS[base] for base in type(module).__mro__ if base in _RANKS), len(shape))
    if len(shape) != rank:
        raise ValueError(
            f"layer {name!r} ({type(module).__name__}): got samples of {shape}, expected {rank} dimensions, channels "
            "first: it would take the samples of a batch for channels"
        )


def batch_like(model: nn.Module, n: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """n different samples where the model is, normally distributed, the same in every call."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((n, *shape), generator=generator, dtype=torch.float64)
    reference = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    return x.to(torch.get_default_dtype()) if reference is None else x.to(reference.device, reference.dtype)
