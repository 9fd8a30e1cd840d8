"""The audit: an upper bound of each layer's Lipschitz constant as it will run, and their product."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastlip._bounds import Bound, bound_module, lipschitz_bound, understands
from fastlip._evaluation import check_finite, evaluating
from fastlip._graphs import Branch, UnknownError, graph_of, parts_of
from fastlip._plain import thaw
from fastlip.nn.chain import Chain

__all__ = ["Audit", "Bound", "LayerBound", "audit", "lipschitz_bound"]

_BATCH = 2  # of the input that finds the shapes: a module that mixes samples shows
# Hooks that only recompute the weight which the audit reads.
_KNOWN_HOOKS = ("WeightNorm", "SpectralNorm")


@dataclass(frozen=True)
class LayerBound:
    """One layer of an audit: shapes have no batch dimension; ``how`` says what the bound comes from.

    ``exact``: the bound is the layer's constant up to rounding; ``seconds``: what finding it took; ``parts``: the
    modules inside a layer that branches.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    bound: float
    how: str
    roundings: float | None = field(default=None, repr=False)
    constant: float = field(default=0.0, repr=False)
    exact: bool = False
    seconds: float = field(default=0.0, repr=False, compare=False)
    parts: tuple[LayerBound, ...] = ()

    def to_dict(self, *, cost: bool = True) -> dict[str, Any]:
        """Plain values, ready for JSON; cost: with the seconds, which differ from run to run."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if cost or item.name != "seconds"}
        shapes = {name: list(values[name]) for name in ("input_shape", "output_shape")}
        return {**values, **shapes, "parts": [part.to_dict(cost=cost) for part in self.parts]}


@dataclass(frozen=True)
class Audit:
    """Upper bounds of the Lipschitz constants of a model (``bound``) and of its ``layers``, in order."""

    bound: float
    layers: list[LayerBound]
    input_shape: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """What the audit of all layers took."""
        return sum(layer.seconds for layer in self.layers)

    def to_dict(self, *, cost: bool = True) -> dict[str, Any]:
        """Plain values, ready for JSON; cost: with the seconds, which differ from run to run."""
        return {
            "bound": self.bound,
            "input_shape": list(self.input_shape),
            "layers": [layer.to_dict(cost=cost) for layer in self.layers],
            **({"seconds": self.seconds} if cost else {}),
        }

    def __str__(self) -> str:
        head = ("layer", "type", "input", "bound", "tight", "seconds", "how")
        rows = [row for layer in self.layers for row in _table_rows(layer)]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)
        ]
        lines.append(f"product of {len(self.layers)} layers: Lipschitz constant at most {self.bound:.9g}")
        return "\n".join(line.rstrip() for line in lines)


def _table_rows(layer: LayerBound, indent: str = "") -> Iterator[tuple[str, ...]]:
    size = "x".join(map(str, layer.input_shape))
    tight, seconds = "exact" if layer.exact else "bound", f"{layer.seconds:.3f}"
    yield indent + layer.name, layer.kind, size, f"{layer.bound:.9g}", tight, seconds, layer.how
    for part in layer.parts:
        yield from _table_rows(part, indent + "  ")


def audit(model: nn.Module, input_shape: tuple[int, ...]) -> Audit:
    r"""Bounds the Lipschitz constant of a model in eval mode, from the weights that it will use.

    .. math:: L \le \prod_l L_l

    Each layer's bound holds for the L2 norm, at the layer's input size, with its padding, stride and
    truncation, and with the effective weight in the dtype in which it runs: call it under ``torch.autocast`` to
    audit a model that will run so. It bounds the exact function of those weights; rounding in the forward is
    the certificate's business. Convolutions and dense layers: singular values in float64
    (``fastlip.ops.spectral_norm``). Layers of fastlip: their ``lipschitz_bound(input_shape)``. Pools,
    activations and normalisation in eval mode: their exact constants.

    The model is a layer, nested ``torch.nn.Sequential`` (also compiled, or wrapped for data parallelism), or any
    module whose forward ``torch.fx`` can trace. A module is understood if it has a method
    ``lipschitz_bound(input_shape) -> float``, if a rule for its type is registered with
    ``fastlip.auditing.lipschitz_bound.register``, or if its forward only calls such modules, adds, concatenates,
    multiplies by constants, moves entries, pools and activates: a sum adds bounds, a concatenation takes the root
    of the sum of their squares. So are parametrized layers (``torch.nn.utils.parametrize``); a subclass of
    ``torch.nn.Conv2d`` with a forward of its own is bounded by what that forward does. Everything else is named in
    an error, never ignored.

    The model is left as it was: its mode, buffers and caches. One batch of zeros is run through it to find shapes.

    Args:
        model: on any device.
        input_shape: of one sample, such as (3, 32, 32).

    Returns:
        An :class:`Audit`: ``bound``, ``layers`` with cost and tightness; ``str()`` of it is a table, ``to_dict()``
        plain values.

    Raises:
        TypeError: modules that are not understood, all named.
        ValueError: NaN or Inf in a parameter or buffer, naming the layer; a module that mixes samples.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    _check_shape(input_shape)
    check_finite(model)
    with evaluating(model), torch.no_grad():
        x = torch.zeros(_BATCH, *input_shape, **_placement(model))
        rows = []
        for name, module in chain(model):
            row, x = _bound_link(name, module, x)
            rows.append(row)
    bound = math.prod(row.bound for row in rows) * (1 + len(rows) * torch.finfo(torch.float64).eps)
    return Audit(bound, rows, tuple(input_shape))


def _check_shape(input_shape: Any) -> None:
    if not isinstance(input_shape, (tuple, list)) or not all(isinstance(side, int) for side in input_shape):
        raise TypeError(f"input_shape={input_shape!r}: expected a tuple of ints, such as (3, 32, 32)")
    if any(side < 1 for side in input_shape):
        raise ValueError(f"input_shape={input_shape!r}: expected sides of at least 1")


def chain(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that the model applies one after the other, with their names; TypeError names those unknown.

    What branches is one link, a :class:`fastlip._graphs.Branch`.
    """
    reasons: list[str] = []
    links = list(_unfold("", model, reasons))
    unknown = [f"{name or 'model'} ({type(module).__name__})" for name, module in _unknown(links)]
    if unknown:
        detail = f" ({'; '.join(reasons)})" if reasons else ""
        raise TypeError(
            f"the audit does not understand {', '.join(unknown)}{detail}: give the module a method "
            "lipschitz_bound(input_shape), register a rule with fastlip.auditing, or remove its hooks"
        )
    return links


def _unknown(links: list[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    for name, module in links:
        if isinstance(module, Branch):
            for inner in module.links.values():
                yield from _unknown(inner)
        elif not _is_understood(module):
            yield name, module


def _is_understood(module: nn.Module) -> bool:
    return not _hooks(module) and understands(module)


def _unfold(name: str, module: nn.Module, reasons: list[str]) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, fx.GraphModule) and not _hooks(module):
        module = thaw(module) or module
    wrapped = _unwrap(module)
    if wrapped is not None:
        yield from _unfold(name, wrapped, reasons)
    elif _hooks(module) or _is_understood(module):
        yield name, module
    elif _is_sequence(module):
        for child_name, child in module.named_children():
            yield from _unfold(f"{name}.{child_name}" if name else child_name, child, reasons)
    else:
        yield from _unfold_graph(name, module, reasons)


def _unfold_graph(name: str, module: nn.Module, reasons: list[str]) -> Iterator[tuple[str, nn.Module]]:
    graph = graph_of(module)
    if graph is None:
        yield name, module
        return
    try:
        for part in parts_of(name, module, graph):
            if isinstance(part.module, Branch):
                for node, child_name, child in part.module.children_called():
                    part.module.links[node] = list(_unfold(child_name, child, reasons))
                yield part.name, part.module
            else:
                yield from _unfold(part.name, part.module, reasons)
    except UnknownError as error:
        reasons.append(f"{name or 'model'}: {error}")
        yield name, module


def _is_sequence(module: nn.Module) -> bool:
    return "forward" not in vars(module) and type(module).forward in (nn.Sequential.forward, Chain.forward)


def _unwrap(module: nn.Module) -> nn.Module | None:
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return module.module
    return getattr(module, "_orig_mod", None)  # torch.compile


def _hooks(module: nn.Module) -> list[Any]:
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return [hook for hook in hooks if type(hook).__name__ not in _KNOWN_HOOKS]


def _bound_link(name: str, module: nn.Module, x: Tensor) -> tuple[LayerBound, Tensor]:
    """The bound of a link of the chain, and its output."""
    started = time.perf_counter()
    if isinstance(module, Branch):
        row, y = _bound_branch(name, module, x)
    else:
        y = module(x)
        started = time.perf_counter()
        row = _bound_layer(name, module, x, y)
    return replace(row, seconds=time.perf_counter() - started), y


def _bound_branch(name: str, branch: Branch, x: Tensor) -> tuple[LayerBound, Tensor]:
    parts: list[LayerBound] = []

    def call(node: fx.Node, value: Any, bound: float) -> tuple[Any, float]:
        inplace = False
        for child_name, child in branch.links[node]:
            inplace = inplace or getattr(child, "inplace", False)
            row, value = _bound_link(child_name, child, value)
            parts.append(row)
            bound *= row.bound
        if inplace and len(node.all_input_nodes[0].users) > 1:
            raise TypeError(f"the audit does not understand {name}: {node.target} changes in place what others use")
        return value, bound

    try:
        y, bound = branch.propagate(x, 1.0, call, bound_module)
    except UnknownError as error:
        raise TypeError(f"the audit does not understand {name}: {error}") from None
    _check_output(name, "branch", x, y)
    steps = len(branch.nodes)
    bound *= 1 + 8 * steps * torch.finfo(torch.float64).eps
    return LayerBound(name, "branch", *_shapes(x, y), bound, f"graph of {steps} steps", 0.0, parts=tuple(parts)), y


def _check_output(name: str, kind: str, x: Tensor, y: Any) -> None:
    if not isinstance(y, Tensor) or y.shape[:1] != x.shape[:1]:
        raise ValueError(f"layer {name!r} ({kind}): its output is no tensor of as many samples as its input")


def _shapes(x: Tensor, y: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(x.shape[1:]), tuple(y.shape[1:])


def _bound_layer(name: str, module: nn.Module, x: Tensor, y: Any) -> LayerBound:
    kind = type(module).__name__
    _check_output(name, kind, x, y)
    shapes = _shapes(x, y)
    found = bound_module(module, *shapes)
    if not math.isfinite(found.value):
        raise ValueError(f"layer {name!r} ({kind}): its Lipschitz bound is {found.value}")
    return LayerBound(name, kind, *shapes, *found)


def _placement(model: nn.Module) -> dict[str, Any]:
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return {"dtype": parameter.dtype, "device": parameter.device}
    return {}
