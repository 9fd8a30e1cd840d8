"""The functions of which a forward may be made because they have a bound, and conditions on their nodes."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from fastlip import nn as lip

SUMS = {operator.add, operator.sub, operator.iadd, operator.isub, torch.add, torch.sub, "add", "sub"}
PRODUCTS = {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "multiply"}
QUOTIENTS = {operator.truediv, operator.itruediv, torch.div, torch.true_divide, "div", "true_divide"}
FACTORS = PRODUCTS | QUOTIENTS
NEGATIONS = {operator.neg, torch.neg, "neg"}
JOINS = {torch.cat, torch.concat, torch.concatenate, torch.stack}
MOVES = {
    *(operator.getitem, torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze),
    *(torch.chunk, torch.split, torch.unbind, torch.narrow, torch.select, torch.movedim, torch.flip, torch.roll),
    *(torch.clone, F.pad, F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, torch.swapaxes, torch.unflatten),
    *("flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "chunk", "split", "unbind"),
    *("narrow", "select", "movedim", "flip", "roll", "clone", "contiguous", "unflatten", "expand", "repeat"),
    *("detach", "swapaxes", "view_as", "reshape_as"),
}
_AS_MODULES: dict[Any, type[nn.Module]] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), nn.ReLU),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), nn.Tanh),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), nn.Sigmoid),
    **dict.fromkeys((torch.abs, "abs", operator.abs), lip.Abs),
    F.leaky_relu: nn.LeakyReLU,
    F.elu: nn.ELU,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.softplus: nn.Softplus,
    F.relu6: nn.ReLU6,
    F.hardtanh: nn.Hardtanh,
    F.hardswish: nn.Hardswish,
    F.hardsigmoid: nn.Hardsigmoid,
    F.mish: nn.Mish,
    F.logsigmoid: nn.LogSigmoid,
    F.avg_pool1d: nn.AvgPool1d,
    F.max_pool1d: nn.MaxPool1d,
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.avg_pool2d: nn.AvgPool2d,
    F.max_pool2d: nn.MaxPool2d,
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.avg_pool3d: nn.AvgPool3d,
    F.max_pool3d: nn.MaxPool3d,
    F.adaptive_avg_pool3d: nn.AdaptiveAvgPool3d,
    F.adaptive_max_pool2d: nn.AdaptiveMaxPool2d,
}
_CONVOLUTIONS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    torch.conv1d: (nn.Conv1d, ("weight", "bias", "stride", "padding", "dilation", "groups")),
    torch.conv2d: (nn.Conv2d, ("weight", "bias", "stride", "padding", "dilation", "groups")),
    torch.conv3d: (nn.Conv3d, ("weight", "bias", "stride", "padding", "dilation", "groups")),
    torch.conv_transpose2d: (
        nn.ConvTranspose2d,
        ("weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    ),
}
_QUERIES = {"size", "dim", "numel", "ndimension", "is_floating_point"}
# Tensors of one value, in the shape of another.
CREATIONS = {torch.zeros_like, torch.ones_like, torch.full_like, "new_zeros", "new_ones", "new_full"}


class UnknownError(TypeError):
    """A module or a function that has no bound; the message says which."""


def require_known(node: fx.Node, live: set[fx.Node]) -> None:
    """Raises UnknownError unless the function has a rule for these arguments."""
    sources, target = [used for used in arguments(node) if used in live], node.target
    first = is_in(next(iter(node.args), None), live)
    known = (
        (target in SUMS and len(node.args) == 2 and not node.kwargs)
        or (target in FACTORS and len(sources) == 1 and _scales(node, live))
        or (target in NEGATIONS)
        or (target in JOINS)
        or (target in MOVES and len(sources) == 1)
        or (target in _AS_MODULES and len(sources) == 1 and first and _same_order(node))
        or ((target is F.linear or target in _CONVOLUTIONS) and len(sources) == 1 and first)
    )
    if not known:
        raise UnknownError(f"no rule for {text(node)} of {len(sources)} tensors")


def require_fixed(node: fx.Node, sized: set[fx.Node]) -> None:
    """Raises UnknownError if the function computes with the number of samples; moving entries by it is allowed."""
    if node.target in MOVES:
        return
    for used in arguments(node):
        if used in sized and not _has_fixed_values(used, sized):
            raise UnknownError(f"{text(node)} depends on the number of samples")


def _has_fixed_values(node: fx.Node, sized: set[fx.Node]) -> bool:
    """Whether the number of samples decides on the shape alone."""
    fill = node.kwargs.get("fill_value", node.args[-1])
    filled = node.target in (torch.full_like, "new_full")
    return node.target in CREATIONS and not (filled and is_in(fill, sized))


def _scales(node: fx.Node, live: set[fx.Node]) -> bool:
    """A value times or by a constant; not a constant divided by a value."""
    if len(node.args) != 2 or node.kwargs:
        return False
    return node.target in PRODUCTS or is_in(node.args[0], live)


def _same_order(node: fx.Node) -> bool:
    """Whether the function's positional arguments are its module's: those of max_pool2d differ after dilation."""
    return node.target is not F.max_pool2d or len(node.args) <= 5


def module_form(node: fx.Node, values: dict[fx.Node, Any]) -> nn.Module:
    """The module that does what a function's call does, with the weight it was given."""
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


def spread(source: Tensor, output: Tensor) -> float:
    """The norm of the broadcasting of one sample of the source to one of the output."""
    return math.sqrt(output[0].numel() / max(source[0].numel(), 1))


def depending_on(x: fx.Node, graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose value depends on that of x; what asks for its shape alone does not."""
    live = {x}
    for node in graph.nodes:
        if any(used in live for used in node.all_input_nodes) and not _is_query(node, live):
            live.add(node)
    return live


def _is_query(node: fx.Node, live: set[fx.Node]) -> bool:
    if node.target in CREATIONS:
        return not any(used in live for used in arguments(node)[1:])
    if node.op == "call_method":
        return node.target in _QUERIES
    return node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")


def arguments(node: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments, each as often as it occurs."""
    found: list[fx.Node] = []
    map_arg((node.args, node.kwargs), lambda used: found.append(used) or used)
    return found


def is_in(argument: Any, nodes: set[fx.Node]) -> bool:
    """Whether an argument is one of these nodes."""
    return isinstance(argument, fx.Node) and argument in nodes


def text(node: fx.Node) -> str:
    """The name of what a node calls, for a message."""
    return getattr(node.target, "__name__", str(node.target))


def join(name: str, child: str) -> str:
    """The qualified name of a module's child."""
    return f"{name}.{child}" if name and child else name or child
