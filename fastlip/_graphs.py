"""Modules that branch, for the audit: their forward as ``torch.fx`` traces it, cut where a single value is left.

Children are not traced but called, so that each is audited by itself. Between two cuts lies a :class:`Branch`, whose
Lipschitz bound follows its graph: a sum adds the bounds of its terms, a concatenation takes the root of their
squares, a constant factor multiplies, and what only moves entries is counted entry by entry.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.fx.proxy import TraceError

from fastlip import nn as lip

# What tracing code of others raises: it may do anything with a proxy.
_UNTRACEABLE = (TraceError, TypeError, ValueError, RuntimeError, AttributeError, LookupError)
_SUMS = {operator.add, operator.sub, torch.add, torch.sub, "add", "sub"}
_FACTORS = {operator.mul, operator.truediv, torch.mul, torch.div, torch.true_divide, "mul", "div", "true_divide"}
_NEGATIONS = {operator.neg, torch.neg, "neg"}
_JOINS = {torch.cat, torch.concat, torch.concatenate, torch.stack}
_QUERIES = {"size", "dim", "numel", "ndimension"}
_MOVES = {
    *(operator.getitem, torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze),
    *(torch.chunk, torch.split, torch.unbind, torch.narrow, torch.select, torch.movedim, torch.flip, torch.roll),
    *(torch.clone, F.pad, F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, torch.swapaxes, torch.unflatten),
    *("flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "chunk", "split", "unbind"),
    *(
        "narrow",
        "select",
        "movedim",
        "flip",
        "roll",
        "clone",
        "contiguous",
        "unflatten",
        "expand",
        "repeat",
        "detach",
    ),
    *("swapaxes", "view_as", "reshape_as"),
}
_AS_MODULES: dict[Any, type[nn.Module]] = {
    **dict.fromkeys((F.relu, torch.relu, "relu"), nn.ReLU),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), nn.Tanh),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), nn.Sigmoid),
    **dict.fromkeys((torch.abs, "abs", operator.abs), lip.Abs),
    F.leaky_relu: nn.LeakyReLU,
    F.elu: nn.ELU,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.softplus: nn.Softplus,
    F.avg_pool2d: nn.AvgPool2d,
    F.max_pool2d: nn.MaxPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
}
_CONVOLUTIONS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    torch.conv1d: (nn.Conv1d, ("weight", "bias", "stride", "padding", "dilation", "groups")),
    torch.conv2d: (nn.Conv2d, ("weight", "bias", "stride", "padding", "dilation", "groups")),
    torch.conv_transpose2d: (
        nn.ConvTranspose2d,
        ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    ),
}
_OFFSET = 0.3  # labels of entries are whole numbers and this: paddings' constants are something else


class UnknownError(TypeError):
    """A module or a function that has no bound; the message says which."""


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
    live = _depending_on(x, graph)
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
        return Part(_join(name, str(last.target)), module.get_submodule(str(last.target)))
    return Part(_join(name, last.name), Branch(_join(name, ""), module, source, nodes))


def _join(name: str, child: str) -> str:
    return f"{name}.{child}" if name and child else name or child


def _depending_on(x: fx.Node, graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose value depends on that of x; what asks for its shape alone does not."""
    live = {x}
    for node in graph.nodes:
        if any(used in live for used in node.all_input_nodes) and not _is_query(node):
            live.add(node)
    return live


def _is_query(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _QUERIES
    return node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")


class Branch(nn.Module):
    """Nodes of another module's graph, from one value to one value.

    ``links``: for each node that calls a module, the named modules that it applies one after the other.
    """

    name: str
    owner: nn.Module
    source: fx.Node
    nodes: list[fx.Node]
    live: set[fx.Node]
    links: dict[fx.Node, list[tuple[str, nn.Module]]]

    def __init__(self, name: str, owner: nn.Module, source: fx.Node, nodes: list[fx.Node]):
        super().__init__()
        depending = _depending_on(source, source.graph)
        live = {source, *(node for node in nodes if node in depending)}
        # Not registered: the modules and parameters belong to the owner.
        self.__dict__.update(name=name, owner=owner, source=source, nodes=nodes, live=live, links={})
        for node in nodes:
            if node in live and node.op != "call_module":
                _require_known(node, live)

    def children_called(self) -> Iterator[tuple[fx.Node, str, nn.Module]]:
        """Each call of a module: its node, its name and the module."""
        for node in self.nodes:
            if node.op == "call_module" and node in self.live:
                target = str(node.target)
                if len(node.args) != 1 or node.kwargs or not _is_in(node.args[0], self.live):
                    raise UnknownError(f"{target} is not called on one tensor")
                yield node, _join(self.name, target), self.owner.get_submodule(target)

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
        own: Callable[[Tensor, Tensor, Any], Any] | None = None,
    ) -> tuple[Any, Any]:
        """The last node's value, and with it what grows as Lipschitz bounds do: a bound, or each sample's error.

        ``call(node, value, size)`` calls the modules of ``links[node]``; ``bound(module, input_shape,
        output_shape)`` is the ``Bound`` of a function's module form; ``own(x, y, found)`` is what a function with
        this Bound adds, in square.
        """
        values: dict[fx.Node, Any] = {self.source: x}
        sizes: dict[fx.Node, Any] = {self.source: size}
        for node in self.nodes:
            if node.op == "call_module" and node in self.live:
                source = node.all_input_nodes[0]
                values[node], sizes[node] = call(node, values[source], sizes[source])
                continue
            values[node] = self.evaluate(node, values)
            if node in self.live:
                sources = [used for used in _arguments(node) if used in self.live]
                grow, found = self.combine(node, sources, values, bound)
                sizes[node] = grow(*(sizes[used] for used in sources))
                if own is not None and found is not None:
                    sizes[node] = (sizes[node] ** 2 + own(values[sources[0]], values[node], found) ** 2) ** 0.5
        return values[self.nodes[-1]], sizes[self.nodes[-1]]

    def evaluate(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """The value of a node for those of its arguments."""
        args, kwargs = map_arg((node.args, node.kwargs), lambda used: values[used])
        if node.op == "call_module":
            return self.owner.get_submodule(str(node.target))(*args, **kwargs)
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.owner)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]

    def combine(
        self, node: fx.Node, sources: list[fx.Node], values: dict[fx.Node, Any], bound: Callable[..., Any]
    ) -> tuple[Callable[..., Any], Any]:
        """How the sizes of a node's live inputs make its own, and the Bound with its rounding (None: it has none)."""
        target, output = node.target, values[node]
        if target in _MOVES:
            copies = math.sqrt(self._copies(node, sources, values))
            return lambda size: copies * size, None
        if target in _JOINS:
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            if dim in (0, -output.dim()):
                raise UnknownError(f"{_text(node)} joins samples")
            return lambda *sizes: sum(size * size for size in sizes) ** 0.5, None
        shapes = tuple(values[sources[0]].shape[1:]), tuple(output.shape[1:])
        if target in _SUMS or target in _NEGATIONS or target in _FACTORS:
            if any(values[used].dim() != output.dim() for used in sources):
                raise UnknownError(f"{_text(node)} broadcasts samples")
            spreads = [_spread(values[used], output) for used in sources]
            constant = self._constant_factor(node, values) if target in _FACTORS else 1.0
            identity = bound(nn.Identity(), *shapes)
            return (
                lambda *sizes: constant * sum(size * spread for size, spread in zip(sizes, spreads, strict=True)),
                identity,
            )
        found = bound(_module_form(node, values), *shapes)
        return lambda size: size * found.value, found

    def _constant_factor(self, node: fx.Node, values: dict[fx.Node, Any]) -> float:
        (factor,) = (argument for argument in node.args if not _is_in(argument, self.live))
        factor = values[factor] if isinstance(factor, fx.Node) else factor
        factor = torch.as_tensor(factor, dtype=torch.float64).abs()
        if node.target not in (operator.mul, torch.mul, "mul"):
            factor = factor.reciprocal()
        return factor.amax().item()

    def _copies(self, node: fx.Node, sources: list[fx.Node], values: dict[fx.Node, Any]) -> int:
        """How often an entry of the source occurs in the output, found by labels; none may leave its sample."""
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
                raise UnknownError(f"{_text(node)} moves entries between samples")
            whole = piece - _OFFSET
            is_label = (whole.round() - whole).abs() < 1e-6
            labels = whole[is_label].round().long()
            sample = torch.arange(len(piece)).view(-1, *[1] * (piece.dim() - 1)).expand(piece.shape)[is_label]
            if not torch.equal(samples[labels], sample):
                raise UnknownError(f"{_text(node)} moves entries between samples")
            found += labels.bincount(minlength=count)
        return int(found.amax()) if count else 0


def _arguments(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments, each as often as it occurs."""
    found: list[fx.Node] = []
    map_arg((node.args, node.kwargs), lambda used: found.append(used) or used)
    return found


def _text(node: fx.Node) -> str:
    return getattr(node.target, "__name__", str(node.target))


def _spread(source: Tensor, output: Tensor) -> float:
    """The norm of the broadcasting of one sample of the source to one of the output."""
    return math.sqrt(output[0].numel() / max(source[0].numel(), 1))


def _require_known(node: fx.Node, live: set[fx.Node]) -> None:
    """UnknownError unless the function has a rule for these arguments."""
    sources, target = [used for used in _arguments(node) if used in live], node.target
    inplace, first = bool(node.kwargs.get("inplace")), _is_in(next(iter(node.args), None), live)
    known = (
        (target in _SUMS and len(node.args) == 2 and not node.kwargs)
        or (
            target in _FACTORS
            and len(sources) == 1
            and len(node.args) == 2
            and not node.kwargs
            and _scales(node, live)
        )
        or (target in _NEGATIONS)
        or (target in _JOINS)
        or (target in _MOVES and len(sources) == 1)
        or (target in _AS_MODULES and len(sources) == 1 and first and not inplace and _same_order(node))
        or ((target is F.linear or target in _CONVOLUTIONS) and len(sources) == 1 and first)
    )
    if not known:
        raise UnknownError(f"no rule for {_text(node)} of {len(sources)} tensors")


def _is_in(argument: Any, nodes: set[fx.Node]) -> bool:
    return isinstance(argument, fx.Node) and argument in nodes


def _scales(node: fx.Node, live: set[fx.Node]) -> bool:
    """A value times or by a constant; not a constant divided by a value."""
    if len(node.args) != 2 or node.kwargs:
        return False
    return node.target in (operator.mul, torch.mul, "mul") or _is_in(node.args[0], live)


def _same_order(node: fx.Node) -> bool:
    """Whether the function's positional arguments are its module's: those of max_pool2d part after dilation."""
    return node.target is not F.max_pool2d or len(node.args) <= 5


def _module_form(node: fx.Node, values: dict[fx.Node, Any]) -> nn.Module:
    given: Any = map_arg((node.args[1:], dict(node.kwargs)), lambda used: values[used])
    args, kwargs = given[0], {name: value for name, value in given[1].items() if name != "inplace"}
    if node.target is F.linear:
        return _holding(nn.Linear(1, 1, device="meta"), args[0] if args else kwargs["weight"])
    if node.target not in _CONVOLUTIONS:
        return _AS_MODULES[node.target](*args, **kwargs)
    kind, names = _CONVOLUTIONS[node.target]
    options = {**dict(zip(names, args, strict=False)), **kwargs}
    weight, groups = options.pop("weight"), options.get("groups", 1)
    options.pop("bias", None)
    rows, columns = weight.shape[0], weight.shape[1] * groups
    if kind is nn.ConvTranspose2d:
        rows, columns = columns, rows
    return _holding(kind(columns, rows, tuple(weight.shape[2:]), **options, bias=False, device="meta"), weight)


def _holding(module: Any, weight: Tensor) -> nn.Module:
    module.weight = nn.Parameter(weight.detach(), requires_grad=False)
    return module
