"""A module's forward as a graph, and the graph in parts."""

from __future__ import annotations

import operator
from dataclasses import dataclass

from torch import fx, nn
from torch.fx.proxy import TraceError

from fastlip._graphs.branch import Branch
from fastlip._graphs.functions import UnknownError, depending_on, join

# What tracing code of others raises: it may do anything with a proxy.
_UNTRACEABLE = (TraceError, TypeError, ValueError, RuntimeError, AttributeError, LookupError)


class _Children(fx.Tracer):
    """Traces one module; every module that it calls is left whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Always."""
        return True


def graph_of(module: nn.Module) -> fx.Graph | None:
    """The module's forward as a graph of one input; None if it cannot be traced."""
    if isinstance(module, fx.GraphModule):
        graph = module.graph
    elif type(module).__module__.startswith("torch.nn.") or "forward" in vars(module):
        return None
    else:
        try:
            graph = _Children().trace(module)
        except _UNTRACEABLE:
            return None
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    return graph if len(inputs) == 1 else None


@dataclass(frozen=True)
class Part:
    """A stretch of a graph between two cuts: one child module, or a branch."""

    name: str
    module: nn.Module


def parts_of(name: str, module: nn.Module, graph: fx.Graph) -> list[Part]:
    """The graph, cut wherever a single value is what all later nodes need. UnknownError names what has no bound."""
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
            parts.append(_part(name, module, source, nodes, node))
            source, nodes = node, []
            if node is result:
                return parts
    if result is x:
        return parts
    raise UnknownError("it returns no single tensor")


def _part(name: str, module: nn.Module, source: fx.Node, nodes: list[fx.Node], last: fx.Node) -> Part:
    if len(nodes) == 1 and last.op == "call_module" and last.args == (source,) and not last.kwargs:
        return Part(join(name, str(last.target)), module.get_submodule(str(last.target)))
    return Part(join(name, last.name), Branch(join(name, ""), module, source, nodes))
