"""Functions whose bound does not follow from a module of the same name: means, clamps, choices, casts, dropout."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from fastlip.certification.bounds.resampling import interpolation
from fastlip.certification.graphs.functions import (
    CREATIONS,
    NEGATIONS,
    PRODUCTS,
    QUOTIENTS,
    UnknownError,
    is_in,
    spread,
    text,
)
from fastlip.certification.graphs.growth import Growth, times

Rule = tuple[Growth, Any]


class Call(NamedTuple):
    """A node with its live inputs (each as often as it occurs), the values, and the table of modules' bounds."""

    node: fx.Node
    sources: list[fx.Node]
    values: dict[fx.Node, Any]
    live: set[fx.Node]
    bound: Callable[..., Any]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument as the graph has it."""
        args = self.node.args
        return args[position] if position < len(args) else self.node.kwargs.get(name, default)

    def known(self, argument: Any) -> Any:
        """An argument's value."""
        return self.values[argument] if isinstance(argument, fx.Node) else argument

    def refuse(self, why: str) -> UnknownError:
        """The error that names the function."""
        return UnknownError(f"{text(self.node)} {why}")

    def one(self) -> fx.Node:
        """The only live input, which is the first argument."""
        if len(self.sources) != 1 or self.argument(0, "input") is not self.sources[0]:
            raise UnknownError(f"no rule for {text(self.node)} of {len(self.sources)} tensors")
        return self.sources[0]

    def spreads(self) -> list[float]:
        """The norm of the broadcasting of each live input."""
        output = self.values[self.node]
        if any(self.values[used].dim() != output.dim() for used in self.sources):
            raise self.refuse("broadcasts samples")
        return [spread(self.values[used], output) for used in self.sources]

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of one sample of the first live input, and of the output."""
        return tuple(self.values[self.sources[0]].shape[1:]), tuple(self.values[self.node].shape[1:])


def _average(call: Call) -> Rule:
    """A mean or a sum: the norm of a row of k equal entries."""
    x = call.values[call.one()]
    dims = call.known(call.argument(1, "dim"))
    dims = (dims,) if isinstance(dims, int) else dims
    if call.node.kwargs.get("dtype") is not None or len(call.node.args) > 3:
        raise call.refuse("changes the dtype")
    if not dims or 0 in {dim % x.dim() for dim in dims}:
        raise call.refuse("mixes samples")
    length = math.prod(x.shape[dim] for dim in dims)
    entry = 1.0 / length if call.node.target in (torch.mean, "mean") else 1.0
    row = nn.Linear(1, 1, bias=False, device="meta")
    row.weight = nn.Parameter(torch.full((1, length), entry, dtype=torch.float64), requires_grad=False)
    rows = x[0].numel() // max(length, 1)
    found = call.bound(row, (rows, length), (rows, 1))
    return times(found.value), found


def _clamp(call: Call) -> Rule:
    """Clamping by constants: entry by entry, 1-Lipschitz."""
    (copies,) = call.spreads() if call.one() else (1.0,)
    return times(copies), None


def _larger(call: Call) -> Rule:
    """The larger or smaller of two: |max(a, b) - max(c, d)| <= max(|a - c|, |b - d|)."""
    return Growth("root", tuple(call.spreads())), None


def _choice(call: Call) -> Rule:
    """where(mask, a, b): by a constant mask; or by the sign of one tensor, between multiples of it."""
    as_method = call.node.target == "where"
    mask, first, second = (call.argument(index, "") for index in ((1, 0, 2) if as_method else (0, 1, 2)))
    if not is_in(mask, call.live):
        return _larger(call)
    if not _meets_at_zero(call, mask, first, second):
        raise call.refuse("chooses by values, and may jump")
    # Continuous and linear in pieces: the larger slope.
    return Growth("largest", tuple([float(used is not mask) for used in call.sources])), None


def _meets_at_zero(call: Call, mask: fx.Node, first: Any, second: Any) -> bool:
    """Whether it is where(x > 0, a x, b x) for numbers a and b, which does not jump."""
    compares = {operator.gt, operator.ge, operator.lt, operator.le, torch.gt, torch.ge, torch.lt, torch.le}
    if mask.target not in compares | {"gt", "ge", "lt", "le"} or len(mask.args) != 2 or mask.args[1] != 0:
        return False
    x = mask.args[0]
    if not isinstance(x, fx.Node) or call.values[x].shape != call.values[call.node].shape:
        return False
    return all(_is_multiple(call, branch, x) for branch in (first, second))


def _is_multiple(call: Call, branch: Any, x: fx.Node) -> bool:
    """Whether the branch is c x for a number c."""
    if branch is x or not isinstance(branch, fx.Node):
        return branch is x or (isinstance(branch, (int, float)) and branch == 0)
    if branch.target in CREATIONS:
        return not call.values[branch].any()
    if branch.target in NEGATIONS:
        return branch.args[0] is x
    return branch.target in PRODUCTS | QUOTIENTS and all(
        argument is x or isinstance(argument, (int, float)) for argument in branch.args
    )


def _compare(call: Call) -> Rule:
    """A comparison by which ``where`` chooses; anything else that reads it has no rule."""
    chooses = (torch.where, "where")
    if any(user.target not in chooses or call.node not in _masks(user) for user in call.node.users):
        raise UnknownError(f"no rule for {text(call.node)}")
    return Growth("sum", (0.0,) * len(call.sources)), None


def _masks(node: fx.Node) -> tuple[Any, ...]:
    return (node.args[1],) if node.target == "where" else (node.args[0],)


def _interpolation(call: Call) -> Rule:
    """Interpolation, as its options say."""
    names = "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias"
    given = {name: call.known(call.argument(1 + index, name)) for index, name in enumerate(names)}
    call.one()
    found = interpolation(call.shapes()[0], {name: value for name, value in given.items() if value is not None})
    return times(found.value), found


def _fill(call: Call) -> Rule:
    """masked_fill by a constant mask and value."""
    call.one()
    return _clamp(call)


def _cast(call: Call) -> Rule:
    """A cast that changes nothing: other dtypes round."""
    first = call.argument(0, "self")
    if not is_in(first, call.live):
        raise call.refuse("has no bound")
    before, after = call.values[first], call.values[call.node]
    if before.dtype != after.dtype or before.device != after.device:
        raise call.refuse(f"changes {before.dtype} on {before.device} to {after.dtype} on {after.device}")
    return Growth("sum", (1.0, *[0.0] * (len(call.sources) - 1))), None


def _dropout(call: Call) -> Rule:
    """Dropout, switched off."""
    call.one()
    training = call.known(call.argument(2, "training", True))
    share = call.known(call.argument(1, "p", 0.5))
    if training and share:
        raise call.refuse("is random: training is not False")
    return times(1.0), None


_COMPARISONS = (operator.gt, operator.ge, operator.lt, operator.le, torch.gt, torch.ge, torch.lt, torch.le)
RULES: dict[Any, Callable[[Call], Rule]] = {
    **dict.fromkeys((torch.mean, "mean", torch.sum, "sum"), _average),
    **dict.fromkeys((torch.clamp, torch.clip, "clamp", "clip", torch.clamp_min, torch.clamp_max), _clamp),
    **dict.fromkeys(("clamp_min", "clamp_max"), _clamp),
    **dict.fromkeys((torch.maximum, torch.minimum, "maximum", "minimum"), _larger),
    **dict.fromkeys((torch.where, "where"), _choice),
    **dict.fromkeys((*_COMPARISONS, "gt", "ge", "lt", "le"), _compare),
    **dict.fromkeys((F.interpolate, F.upsample), _interpolation),
    **dict.fromkeys(("masked_fill", torch.masked_fill), _fill),
    **dict.fromkeys(("to", "type", "float", "double", "type_as"), _cast),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout), _dropout),
}
