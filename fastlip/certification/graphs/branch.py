"""A part of a graph from one value to one value, and how a Lipschitz bound grows along it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from fastlip.certification.graphs.functions import (
    FACTORS,
    JOINS,
    MOVES,
    NEGATIONS,
    QUOTIENTS,
    SUMS,
    UnknownError,
    arguments,
    depending_on,
    is_in,
    join,
    module_form,
    require_fixed,
    require_known,
    spread,
    text,
)
from fastlip.certification.graphs.growth import Growth, times
from fastlip.certification.graphs.rules import RULES, Call
from fastlip.certification.graphs.watching import Watch

_OFFSET = 0.3  # labels of entries are whole numbers and this: paddings' constants are something else


class Follower(Protocol):
    """Properties of the values of a branch."""

    def entered(self, branch: Branch, x: Tensor) -> None:
        """Takes note of the value of the source."""
        ...

    def evaluated(self, branch: Branch, node: fx.Node, value: Any) -> None:
        """Takes note of the value of a node."""
        ...

    def grow(self, growth: Growth, before: list[Any]) -> Any:
        """The size of a function's output, without its own, from those of its inputs."""
        ...

    def node(self, found: Any, x: Tensor, y: Tensor, growth: Growth, before: Any, size: Any) -> Any:
        """The size with the own one of a function of this Bound; x and ``before`` are those of its first input."""
        ...


class Branch(nn.Module):
    """Nodes of another module's graph, from one value to one value.

    ``links``: for each node that calls a module, the links of what it applies one after the other.
    """

    name: str
    owner: nn.Module
    source: fx.Node
    nodes: list[fx.Node]
    live: set[fx.Node]
    constants: dict[str, Any]
    links: dict[fx.Node, list[Any]]

    def __init__(self, name: str, owner: nn.Module, source: fx.Node, nodes: list[fx.Node], constants: dict[str, Any]):
        super().__init__()
        depending = depending_on(source, source.graph)
        live = {source, *(node for node in nodes if node in depending)}
        # Not registered: the modules and parameters belong to the owner.
        self.__dict__.update(
            name=name, owner=owner, source=source, nodes=nodes, live=live, constants=constants, links={}
        )
        sized: set[fx.Node] = set()  # made of the number of samples
        for node in nodes:
            if node not in live and any(used in live or used in sized for used in node.all_input_nodes):
                sized.add(node)
            elif node in live and node.op != "call_module":
                if node.target not in RULES:
                    require_known(node, live)
                require_fixed(node, sized)

    def children_called(self) -> Iterator[tuple[fx.Node, str, nn.Module]]:
        """Each call of a module: its node, its name and the module."""
        for node in self.nodes:
            if node.op == "call_module" and node in self.live:
                target = str(node.target)
                if len(node.args) != 1 or node.kwargs or not is_in(node.args[0], self.live):
                    raise UnknownError(f"{target} is not called on one tensor")
                yield node, join(self.name, target), self.owner.get_submodule(target)

    def forward(self, x: Tensor) -> Tensor:
        """The last node's value."""
        values: dict[fx.Node, Any] = {self.source: x}
        for node in self.nodes:
            values[node] = self.evaluate(node, values)
        return values[self.nodes[-1]]

    def propagate(
        self,
        x: Tensor,
        size: Any,
        call: Callable[[fx.Node, Any, Any], tuple[Any, Any]],
        bound: Callable[..., Any],
        follower: Follower | None = None,
    ) -> tuple[Any, Any]:
        """The last node's value and size; a size grows as Lipschitz bounds do: a bound, or each sample's error.

        Args:
            x: the value of the source.
            size: its size.
            call: ``call(node, value, size)`` calls the modules of ``links[node]`` and returns value and size.
            bound: ``bound(module, input_shape, output_shape)`` returns the Bound of a function's module form.
            follower: sees the values, and adds to the sizes; None adds nothing.
        """
        values: dict[fx.Node, Any] = {self.source: x}
        sizes: dict[fx.Node, Any] = {self.source: size}
        watch = Watch(self.source, self.nodes, values)
        if follower is not None:
            follower.entered(self, x)
        for node in self.nodes:
            calls = node.op == "call_module" and node in self.live
            if calls:
                source = node.all_input_nodes[0]
                values[node], sizes[node] = call(node, values[source], sizes[source])
            else:
                values[node] = self.evaluate(node, values)
            watch.see(node)
            if follower is not None:
                follower.evaluated(self, node, values[node])
            if node in self.live and not calls:
                sources = [used for used in arguments(node) if used in self.live]
                growth, found = self.combine(node, sources, values, bound)
                before = [sizes[used] for used in sources]
                if follower is None:
                    sizes[node] = growth(*before)
                    continue
                sizes[node] = follower.grow(growth, before)
                if found is not None:
                    sizes[node] = follower.node(
                        found, values[sources[0]], values[node], growth, before[0], sizes[node]
                    )
        return values[self.nodes[-1]], sizes[self.nodes[-1]]

    def evaluate(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """The value of a node for those of its arguments."""
        args, kwargs = map_arg((node.args, node.kwargs), lambda used: values[used])
        if node.op == "call_module":
            return self.owner.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "get_attr":
            if node.target in self.constants:
                return self.constants[str(node.target)]
            return operator.attrgetter(str(node.target))(self.owner)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]

    def combine(
        self, node: fx.Node, sources: list[fx.Node], values: dict[fx.Node, Any], bound: Callable[..., Any]
    ) -> tuple[Growth, Any]:
        """The growth from the sizes of a node's live inputs to its own, and the Bound with its rounding or None."""
        target, output = node.target, values[node]
        if target in MOVES:
            copies = math.sqrt(self._copies(node, sources, values))
            return times(copies), None
        if target in JOINS:
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            if dim in (0, -output.dim()):
                raise UnknownError(f"{text(node)} joins samples")
            return Growth("root", (1.0,) * len(sources)), None
        shapes = tuple(values[sources[0]].shape[1:]), tuple(output.shape[1:])
        if target in SUMS or target in NEGATIONS or target in FACTORS:
            if any(values[used].dim() != output.dim() for used in sources):
                raise UnknownError(f"{text(node)} broadcasts samples")
            spreads = [spread(values[used], output) for used in sources]
            constant = self._constant_factor(node, values) if target in FACTORS else 1.0
            identity = bound(nn.Identity(), *shapes)
            return Growth("sum", tuple([constant * copies for copies in spreads])), identity
        if target in RULES:
            return RULES[target](Call(node, sources, values, self.live, bound))
        found = bound(module_form(node, values), *shapes)
        return times(found.value), found

    def _constant_factor(self, node: fx.Node, values: dict[fx.Node, Any]) -> float:
        (factor,) = (argument for argument in node.args if not is_in(argument, self.live))
        factor = values[factor] if isinstance(factor, fx.Node) else factor
        factor = torch.as_tensor(factor, dtype=torch.float64).abs()
        if node.target in QUOTIENTS:
            factor = factor.reciprocal()
        return factor.amax().item()

    def _copies(self, node: fx.Node, sources: list[fx.Node], values: dict[fx.Node, Any]) -> int:
        """The most copies of one source entry in the output, found by labels; none may leave its sample."""
        pieces = values[sources[0]]
        joint = list(pieces) if isinstance(pieces, (tuple, list)) else [pieces]
        labelled, count = [], 0
        for piece in joint:
            labels = torch.arange(count, count + piece.numel(), dtype=torch.float64) + _OFFSET
            labelled.append(labels.view(piece.shape))
            count += piece.numel()
        own = tuple(labelled) if isinstance(pieces, (tuple, list)) else labelled[0]
        moved = self.evaluate(node, {**values, sources[0]: own})
        samples = torch.cat([torch.arange(len(piece)).repeat_interleave(piece[0].numel()) for piece in joint])
        found = torch.zeros(count, dtype=torch.long)
        for piece in moved if isinstance(moved, (tuple, list)) else (moved,):
            if piece.dim() == 0 or len(piece) != len(joint[0]):
                raise UnknownError(f"{text(node)} moves entries between samples")
            whole = piece - _OFFSET
            is_label = (whole.round() - whole).abs() < 1e-6
            labels = whole[is_label].round().long()
            sample = torch.arange(len(piece)).view(-1, *[1] * (piece.dim() - 1)).expand(piece.shape)[is_label]
            if not torch.equal(samples[labels], sample):
                raise UnknownError(f"{text(node)} moves entries between samples")
            found += labels.bincount(minlength=count)
        return int(found.amax()) if count else 0
