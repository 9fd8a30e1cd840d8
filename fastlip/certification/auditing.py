"""The audit: an upper bound of each layer's Lipschitz constant as it will run, and their product."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from fastlip.certification.bounds import Bound, bound_module, lipschitz_bound
from fastlip.certification.graphs import Branch, UnknownError
from fastlip.certification.input_norms import L2, InputNorm, NormName, check_norm, norm_of_links
from fastlip.certification.unfolding import Link, unfold
from fastlip.inspection.evaluation import check_finite, check_shape, evaluating
from fastlip.inspection.running import batch_like, innermost, run
from fastlip.inspection.sameness import allowance, autocast_dtype, check_alone, check_samples, check_whole, norms
from fastlip.inspection.traces import no_trace
from fastlip.kernels.common.precision import ieee

__all__ = ["Audit", "Bound", "LayerBound", "audit", "examine", "lipschitz_bound"]

_BATCH = 2  # samples that are followed through the model
_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class LayerBound:
    """One layer of an audit.

    Attributes:
        name: its name in the model.
        kind: its class.
        input_shape: the shape of a sample, without the batch.
        output_shape: that of its output.
        bound: an upper bound of the layer's Lipschitz constant.
        how: what the bound comes from.
        roundings: see :class:`Bound`.
        constant: see :class:`Bound`.
        exact: whether the bound is the layer's constant up to rounding.
        seconds: how long it took to find.
        parts: the modules inside a layer that branches.

    Example:
        >>> layer = fastlip.audit(torch.nn.Sequential(torch.nn.ReLU()), (3, 8, 8)).layers[0]
        >>> layer.name, layer.kind, layer.bound, layer.how
        ('0', 'ReLU', 1.0, '1 by construction')
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
        """The audit as plain values, ready for JSON.

        Args:
            cost: whether the seconds are in it, which differ from run to run.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self) if cost or item.name != "seconds"}
        shapes = {name: list(values[name]) for name in ("input_shape", "output_shape")}
        return {**values, **shapes, "parts": [part.to_dict(cost=cost) for part in self.parts]}


@dataclass(frozen=True)
class Audit:
    """The result of :func:`fastlip.audit`: ``str()`` of it is a table, ``to_dict()`` plain values.

    Attributes:
        bound: an upper bound of the model's Lipschitz constant, the product of those of its layers: the L2 norm of a
            change of the outputs is at most this times the ``norm`` of the change of the inputs.
        layers: those of its layers, a :class:`LayerBound` each, in order.
        input_shape: the shape of a sample, without the batch.
        norm: the :class:`fastlip.certification.InputNorm` of the inputs: L2, or weighted by a first layer
            :class:`fastlip.nn.InputWeights`.

    Example:
        >>> report = fastlip.audit(torch.nn.Sequential(lip.CayleyLinear(4, 4), lip.MaxMin()), (4,))
        >>> [layer.kind for layer in report.layers], round(report.bound, 4)
        (['CayleyLinear', 'MaxMin'], 1.0)
    """

    bound: float
    layers: list[LayerBound]
    input_shape: tuple[int, ...]
    norm: InputNorm = L2

    @property
    def l2_bound(self) -> float:
        """An upper bound for the L2 norm of the inputs, whatever ``norm`` is: ``bound`` times the largest weight."""
        return self.bound if self.norm.weights is None else self.bound * self.norm.largest * (1 + _EPS)

    @property
    def seconds(self) -> float:
        """The seconds that the audit of all layers took."""
        return sum(layer.seconds for layer in self.layers)

    def to_dict(self, *, cost: bool = True) -> dict[str, Any]:
        """The audit as plain values, ready for JSON.

        Args:
            cost: whether the seconds are in it, which differ from run to run.
        """
        return {
            "bound": self.bound,
            **self.norm.to_dict(),
            **({} if self.norm.weights is None else {"l2_bound": self.l2_bound}),
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
        if self.norm.weights is not None:
            lines[-1] += f" in the {self.norm}"
            lines.append(f"in the L2 norm of the inputs at most {self.l2_bound:.9g}")
        return "\n".join(line.rstrip() for line in lines)


def _table_rows(layer: LayerBound, indent: str = "") -> Iterator[tuple[str, ...]]:
    size = "x".join(map(str, layer.input_shape))
    tight, seconds = "exact" if layer.exact else "bound", f"{layer.seconds:.3f}"
    yield indent + layer.name, layer.kind, size, f"{layer.bound:.9g}", tight, seconds, layer.how
    for part in layer.parts:
        yield from _table_rows(part, indent + "  ")


def audit(model: nn.Module, input_shape: tuple[int, ...], *, norm: NormName = "auto") -> Audit:
    r"""Returns a bound of the Lipschitz constant of a model in eval mode, from the weights that it will use.

    .. math:: L \le \prod_l L_l

    Each layer's bound holds for the L2 norm, at the layer's input size, with its padding, stride and truncation, and
    with the effective weight in the dtype in which it runs: call it under ``torch.autocast`` to audit a model that
    will run so. It bounds the exact function of those weights; the certificate bounds rounding in the forward.
    Convolutions and dense layers are bounded by singular values in float64 (``fastlip.ops.spectral_norm``), layers of
    fastlip by their ``lipschitz_bound(input_shape)``, pools, activations and normalisation in eval mode by their
    exact constants.

    If the first layer is :class:`fastlip.nn.InputWeights`, it sets the norm of the inputs, and has the bound 1 there:
    the constant is that in the weighted norm, and ``norm`` of the result names it. ``l2_bound`` is that in the L2
    norm.

    The model is a layer, nested ``torch.nn.Sequential`` (also compiled, or wrapped for data parallelism), or any
    module whose forward ``torch.fx`` can trace. A module is understood if it has a method
    ``lipschitz_bound(input_shape) -> float``, if a rule for its type is registered with
    ``fastlip.certification.lipschitz_bound.register``, or if its forward only calls such modules, adds, concatenates,
    multiplies by constants, moves entries, pools and activates: a sum adds bounds, a concatenation takes the root
    of the sum of their squares. So are parametrized layers (``torch.nn.utils.parametrize``); a subclass of
    ``torch.nn.Conv2d`` with a forward of its own is bounded by what that forward does. Everything else is named in
    an error, never ignored.

    What is bounded is what runs. Random samples are followed through the model, and every layer must be a fixed
    function of each sample alone: evaluated again, in batches of 2 and 5, next to other samples, it gives the same
    outputs. So do the layers, one after the other, and the model, also for one sample alone. A module that stands at
    several places counts at each. Weights are computed from the parameters, whatever was kept. The model is left as
    it was: its mode, attributes and buffers, and so are the random generators.

    Args:
        model: any module, on any device.
        input_shape: the shape of one sample, such as (3, 32, 32).
        norm: that of the inputs: ``"auto"`` (default) is the weighted one of a first layer ``InputWeights``, else L2;
            ``"l2"`` is L2 for every model, with such a layer as a diagonal matrix.

    Returns:
        An :class:`Audit`: ``bound``, and ``layers`` with cost and tightness.

    Raises:
        TypeError: modules that are not understood, all named.
        ValueError: NaN or Inf in a parameter or buffer, naming the layer; a module that mixes samples, depends on
            their number or is no fixed function; layers that together are not the model; samples without the
            dimensions that a layer needs; another norm.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(3 * torch.eye(4))
        >>> round(fastlip.audit(model, (4,)).bound, 6)
        3.0
    """
    # Outputs are compared up to roundings of their dtype, whatever products the user's settings allow (bfloat16).
    with ieee(torch.device("cpu")):
        return examine(model, input_shape, norm)[0]


class Examined(NamedTuple):
    """An audit, the modules that it bounds, in the order of its layers, and their outputs for the two samples."""

    audit: Audit
    links: list[Link]
    outputs: Tensor


def examine(model: nn.Module, input_shape: tuple[int, ...], norm: NormName = "auto") -> tuple[Audit, list[Link]]:
    """The audit, and the modules that it bounds, in the order of its layers."""
    found = examine_with(None, model, input_shape, norm)
    return found.audit, found.links


def examine_with(
    first: Tensor | None, model: nn.Module, input_shape: tuple[int, ...], norm: NormName = "auto"
) -> Examined:
    """The audit, and the outputs of the layers for its two samples.

    The samples are random. Certificates give an image, ``first`` (1, *input_shape), in place of the first one: they
    compare its outputs with those in a batch, and the model's own for the batch, so that here the model is evaluated
    on the other sample only.
    """
    check_norm(norm)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    check_shape(input_shape)
    check_finite(model)
    with evaluating(model), no_trace(model), torch.inference_mode(False), torch.no_grad():
        x = batch_like(model, _BATCH, tuple(input_shape))
        if first is not None:
            x = torch.cat((first, x[1:].to(first)))
        autocast = autocast_dtype(x.device)
        links = unfold(model, x)
        rows, y, allowed = [], x, torch.zeros(_BATCH, dtype=torch.float64, device=x.device)
        after = norms(x)
        for link in links:
            inputs, before = y, after
            row, y = _bound_link(link, inputs if link.output is not None else inputs.clone())
            # As rounding_of does, with each norm computed once.
            after = torch.linalg.vector_norm(y.reshape(len(y), -1), dim=1, dtype=torch.float64)
            own = allowance(inputs.dtype, y.dtype, autocast, x.is_cuda) * (row.bound * before + after)
            check_samples(link.name, link.module, inputs, y, own)
            allowed = row.bound * allowed + own
            rows.append(row)
        inner = innermost(model)
        if first is None:
            check_whole(inner, x, y, allowed)
        check_alone(inner, [(link.name, link.module) for link in links], x, y, allowed)
        found, place = norm_of_links(links, x)
    if norm == "l2":
        found = InputNorm(tuple(input_shape))
    elif place is not None:  # an isometry in the norm that it sets
        rows[place] = replace(rows[place], bound=1.0, how="sets the norm of the inputs")
    bound = math.prod([row.bound for row in rows]) * (1 + len(rows) * _EPS)
    return Examined(Audit(bound, rows, tuple(input_shape), found), links, y)


def _bound_link(link: Link, x: Tensor) -> tuple[LayerBound, Tensor]:
    """The bound of a link for the inputs x, which it may change in place, and its output."""
    name, module, kind = link.name, link.module, type(link.module).__name__
    started = time.perf_counter()
    if isinstance(module, Branch):
        row, y = _bound_branch(name, module, x)
        return replace(row, seconds=time.perf_counter() - started), y
    y = run(name, module, x, in_place=True) if link.output is None else link.output
    started = time.perf_counter()
    if not isinstance(y, Tensor) or y.shape[:1] != x.shape[:1]:
        raise _no_batch(name, kind)
    found = bound_module(module, tuple(x.shape[1:]), tuple(y.shape[1:]), link.rule)
    if not math.isfinite(found.value):
        raise ValueError(f"layer {name!r} ({kind}): its Lipschitz bound is {found.value}")
    row = LayerBound(name, kind, tuple(x.shape[1:]), tuple(y.shape[1:]), *found)
    return replace(row, seconds=time.perf_counter() - started), y


def _bound_branch(name: str, branch: Branch, x: Tensor) -> tuple[LayerBound, Tensor]:
    parts: list[LayerBound] = []

    def call(node: fx.Node, value: Any, bound: float) -> tuple[Any, float]:
        for link in branch.links[node]:
            row, value = _bound_link(link, value)
            parts.append(row)
            bound *= row.bound
        return value, bound

    try:
        y, bound = branch.propagate(x, 1.0, call, bound_module)
    except UnknownError as error:
        raise TypeError(f"the audit does not understand {name}: {error}") from None
    if not isinstance(y, Tensor) or y.shape[:1] != x.shape[:1]:
        raise _no_batch(name, "branch")
    steps, shapes = len(branch.nodes), (tuple(x.shape[1:]), tuple(y.shape[1:]))
    bound *= 1 + 8 * steps * _EPS
    return LayerBound(name, "branch", *shapes, bound, f"graph of {steps} steps", 0.0, parts=tuple(parts)), y


def _no_batch(name: str, kind: str) -> ValueError:
    return ValueError(f"layer {name!r} ({kind}): its output is no tensor of as many samples as its input")
