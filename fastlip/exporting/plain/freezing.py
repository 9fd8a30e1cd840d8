"""Modules as graphs of torch's functions, signed with what they are, and back."""

from __future__ import annotations

import ast
import operator
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_arg

from fastlip.exporting.plain import entries, sandwich, shifts, spectral, weighted
from fastlip.exporting.plain._module import Plain

KINDS: dict[str, type[Plain]] = {
    name: kind
    for module in (entries, sandwich, shifts, weighted, spectral)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, Plain) and "forward" in vars(kind)
}


def freeze(plain: Plain) -> fx.GraphModule:
    """The module as a graph of torch's functions, with its tensors: no class of fastlip is needed to load it."""
    tracer = fx.Tracer()
    tracer.proxy_buffer_attributes = True
    graph = tracer.trace(plain)
    for node in graph.nodes:
        node.type = None  # annotations are text here, which does not pickle
    _sign(graph, plain)
    return fx.GraphModule(plain, graph, type(plain).__name__).eval()


def _sign(graph: fx.Graph, plain: Plain) -> None:
    """Writes what the graph is into a check that always holds: copies and pickles of a graph keep nothing else."""
    (x,) = (node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(x):
        rank = graph.call_method("dim", (x,))
    with graph.inserting_after(rank):
        positive = graph.call_function(operator.gt, (rank, 0))
    with graph.inserting_after(positive):
        graph.call_function(torch._assert, (positive, f"{type(plain).__name__}{plain.config!r}"))


def _read_signature(graph: fx.Graph) -> tuple[type[Plain], dict[str, Any]] | None:
    for node in graph.nodes:
        if node.target is torch._assert and isinstance(node.args[1], str):
            kind, brace, config = node.args[1].partition("{")
            return (KINDS[kind], ast.literal_eval(brace + config)) if kind in KINDS else None
    return None


def frozen_kind(module: object) -> type[Plain] | None:
    """The class of the module that was frozen; None for any other module."""
    signature = _read_signature(module.graph) if isinstance(module, fx.GraphModule) else None
    return None if signature is None else signature[0]


def thaw(module: fx.GraphModule) -> Plain | None:
    """The module that was frozen, with the tensors that it has now; None if its graph or tables were changed."""
    signature = _read_signature(module.graph)
    if signature is None or "forward" in vars(module):
        return None
    kind, config = signature
    plain = kind({name: getattr(module, name, None) for name in kind.TENSORS}, **config)
    tables = dict(plain.named_buffers())
    for name, buffer in module.named_buffers():
        if name not in tables or not torch.equal(tables[name].to(buffer), buffer):
            return None
    if _steps(freeze(plain)) != _steps(module):
        return None
    device = next((tensor.device for tensor in module.state_dict().values()), None)
    return plain.to(device).eval()


def _steps(module: fx.GraphModule) -> list[tuple[str, Any, str]]:
    """The graph, the same before and after pickling: attributes are named where they are used."""
    names: dict[fx.Node, str] = {}
    steps = []
    for node in module.graph.nodes:
        if node.op == "get_attr":
            names[node] = f"self.{node.target}"
            continue
        names[node] = f"%{len(steps)}"
        arguments = map_arg((node.args, node.kwargs), lambda used: _Name(names[used]))
        steps.append((node.op, node.target, repr(arguments)))
    return steps


class _Name(str):
    __slots__ = ()
    __repr__ = str.__str__
