"""A module's forward as a graph, and the graph in parts."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch import fx, nn

from fastlip.certification.graphs.branch import Branch
from fastlip.certification.graphs.functions import UnknownError, depending_on, join
from fastlip.certification.graphs.tracing import Traced


@dataclass(frozen=True)
class Part:
    """A part of a graph between two cuts: one child module, or a branch, and the node that it starts from."""

    name: str
    module: nn.Module
    source: fx.Node


def parts_of(name: str, module: nn.Module, traced: Traced) -> list[Part]:
    """The graph, cut wherever a single value is what all later nodes need. UnknownError names what has no bound."""
    graph = traced.graph
    (x,) = (node for node in graph.nodes if node.op == "placeholder")
    (output,) = (node for node in graph.nodes if node.op == "output")
    result = output.args[0]
    if not isinstance(result, fx.Node):
        raise UnknownError("it returns no single tensor")
    live = depending_on(x, graph)
    position = {node: index for index, node in enumerate(graph.nodes)}
    parts: list[Part] = []
    source, nodes = x, []
    for node in graph.nodes:
        if node in (x, output):
            continue
        used_later = (any(position[user] > position[node] for user in other.users) for other in (source, *nodes))
        nodes.append(node)
        # What is indexed may be several tensors.
        indexed = any(user.target is operator.getitem for user in node.users)
        if node in live and not indexed and not any(used_later):
            parts.append(_part(name, module, traced, source, nodes))
            source, nodes = node, []
            if node is result:
                return parts
    if result is x:
        return parts
    raise UnknownError("it returns no single tensor")


def _part(name: str, module: nn.Module, traced: Traced, source: fx.Node, nodes: list[fx.Node]) -> Part:
    last = nodes[-1]
    if len(nodes) == 1 and last.op == "call_module" and last.args == (source,) and not last.kwargs:
        return Part(join(name, str(last.target)), module.get_submodule(str(last.target)), source)
    return Part(join(name, last.name), Branch(join(name, ""), module, source, nodes, traced.constants), source)
