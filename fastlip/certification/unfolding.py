"""The modules that a model applies one after the other, followed with a batch of samples."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from fastlip import nn as lip
from fastlip.certification.bounds import BoundRule, rule_of
from fastlip.certification.graphs import Branch, UnknownError, graph_of, known, parts_of
from fastlip.exporting.plain import thaw
from fastlip.inspection.running import failure, is_sequence, run, unwrap
from fastlip.nn._calls import hooks_of, is_touched
from fastlip.nn._forms import keys_of
from fastlip.nn.applications import (
    ExponentialConvolution,
    FrequencyConvolution,
    KernelConvolution,
    ResidualConvolution,
    TransposedConvolution,
)
from fastlip.nn.pooling import L2NormPool2d, ScaledAvgPool2d
from fastlip.nn.sequences import OneRow
from fastlip.nn.volumes import Volumes


class Link(NamedTuple):
    """One of the modules that a model applies one after the other.

    Attributes:
        name: its name in the model.
        module: the module.
        rule: the rule for its bound; None for what branches.
        output: its output for the batch with which the model was unfolded, None if this is not known.
    """

    name: str
    module: nn.Module
    rule: BoundRule | None = None
    output: Any = None


# The number of dimensions of a sample, for modules that would take samples without channels for channels.
_RANKS: dict[type, int] = {
    OneRow: 2,
    **dict.fromkeys((Volumes, lip.PixelUnshuffle3d, lip.PixelShuffle3d), 4),
    **dict.fromkeys((lip.ScaledAvgPool3d, lip.L2NormPool3d, lip.AdaptiveL2NormPool3d), 4),
    **dict.fromkeys((lip.ScaledAvgPool1d, lip.L2NormPool1d, lip.AdaptiveL2NormPool1d), 2),
    **dict.fromkeys((lip.PixelUnshuffle1d, lip.PixelShuffle1d), 2),
    **dict.fromkeys((nn.Conv1d, nn.ConvTranspose1d, nn.MaxPool1d, nn.AvgPool1d), 2),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d), 2),
    **dict.fromkeys((nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d), 3),
    **dict.fromkeys((KernelConvolution, FrequencyConvolution, ResidualConvolution, ExponentialConvolution), 3),
    **dict.fromkeys((nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d, ScaledAvgPool2d, L2NormPool2d), 3),
    **dict.fromkeys((TransposedConvolution, lip.PixelUnshuffle), 3),
    **dict.fromkeys((lip.AdaptiveL2NormPool2d, lip.PositionBias, lip.SpatialShift), 3),
    **dict.fromkeys((nn.Conv3d, nn.ConvTranspose3d, nn.MaxPool3d, nn.AvgPool3d), 4),
    **dict.fromkeys((nn.AdaptiveMaxPool3d, nn.AdaptiveAvgPool3d), 4),
}


def unfold(model: nn.Module, x: Tensor) -> list[Link]:
    """The modules that the model applies one after the other; TypeError names those that are not understood.

    A part that branches is one link, a :class:`Branch`. x is a batch: the model is run on it, part by part.
    """
    unfolding = _Unfolding()
    links = unfolding.links_of("", model, x)
    if unfolding.unknown:
        reasons = "; ".join(dict.fromkeys(unfolding.reasons))
        raise TypeError(
            f"the audit does not understand {', '.join(unfolding.unknown)}{f' ({reasons})' if reasons else ''}: give "
            "the module a method lipschitz_bound(input_shape), register a rule with "
            "fastlip.certification.lipschitz_bound, or remove its hooks"
        )
    return links


def understood(model: nn.Module, x: Tensor) -> tuple[list[Link], list[str]]:
    """The modules as :func:`unfold` finds them, and the names of those that are not understood, without a rule."""
    unfolding = _Unfolding()
    return unfolding.links_of("", model, x), unfolding.unknown


def modules_of(links: Sequence[Link]) -> list[nn.Module]:
    """The modules of links, and those that their branches call."""
    found: list[nn.Module] = []
    for link in links:
        if isinstance(link.module, Branch):
            for inner in link.module.links.values():
                found += modules_of(inner)
        else:
            found.append(link.module)
    return found


class _Unfolding:
    """One unfolding: the modules that nothing is known of, and why graphs did not help."""

    def __init__(self) -> None:
        self.unknown: list[str] = []
        self.reasons: list[str] = []

    def links_of(self, name: str, module: nn.Module, x: Tensor) -> list[Link]:
        """The links of one module for its input x."""
        touched = is_touched(module)
        rule = None if touched else rule_of(module)
        if rule is not None:
            rank = _rank_of(type(module), type(getattr(module, "_application", None)))
            if rank is not None and x.dim() - 1 != rank:
                raise ValueError(
                    f"layer {name!r} ({type(module).__name__}): got samples of {tuple(x.shape[1:])}, expected {rank} "
                    "dimensions, channels first: it would take the samples of a batch for channels"
                )
            try:  # as run, without a call
                return [Link(name, module, rule, module(x.clone()))]
            except RuntimeError as error:
                raise failure(name, module, x, error) from error
        if not touched and is_sequence(module):
            return self._sequence(name, module, x)
        wrapped = unwrap(module)
        if wrapped is not None and not hooks_of(module):
            return self.links_of(name, wrapped, x)
        if touched:
            return self._give_up(name, module)
        if isinstance(module, fx.GraphModule) and (thawed := thaw(module)):
            return self.links_of(name, thawed, x)
        return self._graph(name, module, x)

    def _give_up(self, name: str, module: nn.Module) -> list[Link]:
        self.unknown.append(f"{name or 'model'} ({type(module).__name__})")
        return [Link(name, module)]

    def _sequence(self, name: str, module: nn.Module, x: Any) -> list[Link]:
        links: list[Link] = []
        children = list(module._modules.items())  # named_children() leaves out what stands here twice
        for index, (child_name, child) in enumerate(children):
            full_name = f"{name}.{child_name}" if name else child_name
            if not isinstance(child, nn.Module) or not isinstance(x, Tensor):
                raise ValueError(f"layer {full_name!r}: there is no module, or no tensor for it")
            found = self.links_of(full_name, child, x)
            links += found
            if index + 1 < len(children):
                known = found[-1].output if found else None
                x = run(full_name, child, x) if known is None else known
        return links

    def _graph(self, name: str, module: nn.Module, x: Tensor) -> list[Link]:
        links: list[Link] = []
        before = len(self.unknown)
        try:
            traced = graph_of(module, x.clone())
            for part in parts_of(name, module, traced):
                if isinstance(part.module, Branch):
                    for node, child_name, child in part.module.children_called():
                        value = known(traced.values[node.all_input_nodes[0]])
                        part.module.links[node] = self._inside(child_name, child, value)
                    links.append(Link(part.name, part.module))
                else:
                    links += self._inside(part.name, part.module, known(traced.values[part.source]))
        except UnknownError as error:
            if str(error):
                self.reasons.append(f"{name or 'model'}: {error}")
            del self.unknown[before:]
            return self._give_up(name, module)
        return links

    def _inside(self, name: str, module: nn.Module, x: Tensor) -> list[Link]:
        """The links of a module that a graph calls; later steps of the graph may have changed x in place."""
        return [Link(link.name, link.module, link.rule) for link in self.links_of(name, module, x)]


@cache
def _rank_of(kind: type, application: type) -> int | None:
    """The number of dimensions that a sample must have for modules of a class with an application; None: any."""
    return next(
        (_RANKS[base] for base in (*keys_of(kind, application), *application.__mro__) if base in _RANKS), None
    )
