"""Conversion of a model to a 1-Lipschitz one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastlip.certification import Audit, audit
from fastlip.certification.graphs.tracing import first_line
from fastlip.certification.input_norms import MeasuredNorm, NormName
from fastlip.converting.layers import Head, Weights
from fastlip.converting.report import Conversion
from fastlip.converting.rewriting import Rewriting
from fastlip.converting.rules import convert_node
from fastlip.converting.tracing import follow, is_leaf
from fastlip.inspection.copying import copied
from fastlip.inspection.evaluation import check_finite, compiled_from, evaluating
from fastlip.kernels.common.checks import boolean
from fastlip.models.literals import MethodName
from fastlip.models.registry import method_of
from fastlip.nn.arguments import one_of

_SAMPLES = 2  # of the example that are followed through the model
_ALLOWED = 1 + 1e-5


def convert(
    model: nn.Module,
    method: MethodName = "aol",
    *,
    example: Tensor,
    weights: Weights = "keep",
    head: Head = "orthogonal",
    quiet: bool = False,
) -> tuple[nn.Module, Conversion]:
    r"""Returns a 1-Lipschitz model of the same architecture, and a report of what became what.

    Args:
        model: any module that ``torch.fx`` can trace with one tensor; it stays as it is. A single
            layer becomes a sequence of one.
        method: the parametrization of convolutions and dense layers, one of ``fastlip.models.METHODS``; default
            ``"aol"``. Where it has no layer for a geometry, AOL takes its place, and the report says so.
        example: a batch of inputs (n, ...), of which shapes are taken. Pools are scaled for this size.
        weights: ``"keep"`` (default) takes weights over as initial values where the method allows (AOL, Cayley, LOT),
            and keeps those frozen whose ``requires_grad`` is False. Layers of AOL that would shrink them so far that
            less than 5 % of a random input reached the output start with fresh weights. ``"fresh"`` starts with those
            of the layers, which suits a model that is trained from the beginning.
        head: the last dense layer: ``"orthogonal"`` (default) has orthonormal rows, ``"unit_rows"`` has rows of norm
            1 (each score is 1-Lipschitz, all together are not), ``"method"`` is the method's dense layer.
        quiet: whether the report is not printed; default False.

    The new model has the same inputs, output shape and names of submodules, and is a ``torch.fx.GraphModule``:

    - convolutions (one- and two-dimensional) and dense layers: layers of the method; transposed convolutions:
      ``AOCConvTranspose2d``;
    - activations without a counterpart of gradient norm 1: ``MaxMin``;
    - batch, group and instance norm: subtraction of each channel's mean; layer norm: of the sample's own mean;
    - average pools and means: scaled to norm 1; max pools that overlap: disjoint windows where these give the same
      shape, else divided by the root of the overlap;
    - sums f + g: s f + (1 - s) g with a learnt s, 1/2 at first; concatenations of k: divided by sqrt(k);
    - dropout, stochastic depth and learnt factors are removed.

    Returns:
        The model, and a :class:`Conversion`. What could not be converted stays as it is, is listed under
        ``failures`` with its path and type, and makes ``complete`` False: such a model has no certificate.

    Raises:
        TypeError: the model is no module or a TorchScript program; its forward cannot be traced, or takes several
            tensors; the example is no tensor.
        ValueError: an unknown option, an empty example or one on which the model does not run; NaN or Inf in the
            model, or parameters without values (lazy modules, the meta device).

    Example:
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.MaxPool2d(2)
        ... )
        >>> converted, report = fastlip.convert(net, example=torch.rand(2, 3, 8, 8))
        0  Conv2d      -> AOLConv2d       weights kept
        1  BatchNorm2d -> BatchCentering  subtracts each channel's mean
        2  ReLU        -> MaxMin
        Lipschitz bound: 1.47302 before, 0.709394 after
        >>> converted(torch.rand(5, 3, 8, 8)).shape
        torch.Size([5, 8, 4, 4])
    """
    chosen = method_of(method)
    one_of("weights", weights, ("keep", "fresh"))
    one_of("head", head, ("orthogonal", "unit_rows", "method"))
    boolean("quiet", quiet)
    _check(model, example)
    root, x = _uncompiled(copied(model)), example.detach()[:_SAMPLES]
    if is_leaf(root):
        root = nn.Sequential(root)
    if len(x) < _SAMPLES:
        x = x.repeat(_SAMPLES, *[1] * (x.dim() - 1))
    with evaluating(root), torch.no_grad():
        _check_that_it_runs(root, x)
        flow = follow(root, x.clone())
        rewriting = Rewriting(root, flow, chosen, weights, head)
        for node in list(flow.graph.nodes):
            convert_node(rewriting, node)
    converted = _module_of(root, flow.graph, type(compiled_from(model) or model).__name__)
    converted.train(model.training)
    report = _report(model, converted, rewriting, tuple(x.shape[1:]))
    if not quiet:
        print(report)
    return converted, report


def _uncompiled(model: nn.Module) -> nn.Module:
    """The model with the modules that ``torch.compile`` wrapped in the place of its wrappers."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if inner := compiled_from(child):
                setattr(module, name, inner)
    return compiled_from(model) or model


def _check_that_it_runs(model: nn.Module, x: Tensor) -> None:
    """ValueError for an example of another shape or dtype than the model takes, TypeError for several inputs."""
    try:
        model(x.clone())
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"example: the model does not run on a batch of shape {tuple(x.shape)} and dtype {x.dtype}; expected a "
            f"batch (n, ...) of its inputs: {first_line(error)}"
        ) from error


def _module_of(root: nn.Module, graph: fx.Graph, name: str) -> nn.Module:
    """The graph as a module, with the modules and parameters that it uses alone."""
    untraced = fx.Graph()  # without the tracer, which a saved model could not make again
    untraced.output(untraced.graph_copy(graph, {}))
    whole = fx.GraphModule(root, untraced, name)
    whole.graph.eliminate_dead_code()
    return fx.GraphModule(whole, whole.graph, name)


def _check(model: Any, example: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model: got a TorchScript program, expected the torch.nn.Module that it was made from")
    if not isinstance(example, Tensor):
        raise TypeError(f"example: got {type(example).__name__}, expected a tensor, a batch of the model's inputs")
    if example.dim() < 2 or not example.numel():
        raise ValueError(f"example: got shape {tuple(example.shape)}, expected a batch (n, ...)")
    check_finite(model)


def _report(model: nn.Module, converted: nn.Module, rewriting: Rewriting, shape: tuple[int, ...]) -> Conversion:
    after, reason = _audited(converted, shape)
    name: MeasuredNorm = "l2" if after is None else after.norm.name
    before, _ = _audited(model, shape, "auto" if name != "l2" else "l2")
    if after is not None and after.bound > _ALLOWED:
        high = [f"{layer.name} ({layer.kind}) {layer.bound:.4g}" for layer in after.layers if layer.bound > _ALLOWED]
        reason = f"bounds above 1: {', '.join(high)}"
    bounds = [found.bound if found is not None else None for found in (before, after)]
    return Conversion(tuple(rewriting.steps), tuple(rewriting.failures), bounds[0], bounds[1], reason, name)


def _audited(model: nn.Module, shape: tuple[int, ...], norm: NormName = "auto") -> tuple[Audit | None, str]:
    """The audit, or None and the reason."""
    try:
        found = audit(model, shape, norm=norm)
    except (TypeError, ValueError) as error:
        return None, str(error)
    return (found, "") if math.isfinite(found.bound) else (None, "its bound is not finite")
