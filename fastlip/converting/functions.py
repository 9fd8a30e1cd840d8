"""Conversion of functions and tensor methods."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from fastlip.certification.bounds import bound_module
from fastlip.certification.bounds.resampling import interpolation
from fastlip.certification.graphs.functions import FACTORS, JOINS, MOVES, QUOTIENTS, SUMS, module_form
from fastlip.converting.modules import convert_activation, convert_pool
from fastlip.converting.norms import centre_channels, centre_samples
from fastlip.converting.rewriting import Rewriting

_ACTIVATIONS = {
    *(F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_", F.gelu, F.silu, F.mish, F.elu, F.leaky_relu),
    *(F.relu6, F.hardswish, F.softplus, F.selu, F.celu, F.prelu, torch.selu, torch.prelu, torch.celu),
}
_DROPOUTS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, torch.dropout}
_POOLS = {
    *(F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.max_pool1d, F.max_pool2d),
    *(F.adaptive_max_pool2d, F.avg_pool3d, F.adaptive_avg_pool3d, F.max_pool3d),
}
_DIFFERENCES = {operator.sub, operator.isub, torch.sub, "sub"}
_CHANGES_NOTHING = {
    *(torch.tanh, F.tanh, "tanh", torch.sigmoid, F.sigmoid, "sigmoid", torch.abs, "abs", operator.abs),
    *(operator.neg, torch.neg, "neg", F.hardtanh, F.hardsigmoid),
    *(torch.clamp, "clamp", torch.clip, "clip", "to", "type", "float", "double", "type_as"),
}


def convert_function(work: Rewriting, node: fx.Node) -> None:
    """Rewrites a call of a function or method whose value is a tensor."""
    target, name = node.target, name_of(node)
    if target in _ACTIVATIONS:
        convert_activation(work, node, name)
    elif target in _DROPOUTS:
        work.note(node, name, "removed")
        work.drop(node)
    elif target in SUMS:
        _convert_sum(work, node)
    elif target in FACTORS:
        _convert_factor(work, node)
    elif target in JOINS:
        _convert_join(work, node)
    elif target in (torch.mean, "mean", torch.sum, "sum"):
        _convert_mean(work, node)
    elif target in _POOLS:
        _convert_pool(work, node)
    elif target in (F.interpolate, F.upsample):
        _convert_interpolation(work, node)
    elif target in (F.softmax, torch.softmax, "softmax"):
        dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs["dim"]
        work.put(node, nn.Softmax(dim))
    elif target in (F.batch_norm, F.group_norm, F.instance_norm):
        value = work.values[node]
        made = centre_channels(value.shape[1], value)
        work.note(node, name, type(made).__name__, "subtracts each channel's mean")
        work.put(node, made)
    elif target is F.layer_norm:
        shape: Any = node.args[1] if len(node.args) > 1 else node.kwargs["normalized_shape"]
        made = centre_samples(work.values[node].shape[1], tuple(range(-len(shape), 0)))
        work.note(node, name, type(made).__name__, "subtracts each sample's own mean")
        work.put(node, made)
    elif target not in MOVES and target not in _CHANGES_NOTHING:
        work.fail_for_good(node, name, "there is no 1-Lipschitz form of this function")


def name_of(node: fx.Node) -> str:
    """The report's name for the function that a node calls."""
    return str(getattr(node.target, "__name__", node.target))


def _convert_sum(work: Rewriting, node: fx.Node) -> None:
    """s f + (1 - s) g for two values, s the sigmoid of a parameter; the sum with a constant stays."""
    terms: list[Any] = [term for term in node.args if isinstance(term, fx.Node) and term in work.live]
    if len(terms) < 2:
        return
    if node.kwargs or any(work.values[term].shape != work.values[node].shape for term in terms):
        work.fail(node, name_of(node), "its terms differ in shape, or have a factor")
        return
    value, path = work.values[node], f"{work.path_of(node)}_share"
    work.add(path, nn.Parameter(torch.zeros(1, device=value.device, dtype=value.dtype)))
    with work.graph.inserting_before(node):
        logit = work.graph.get_attr(path)
    share = work.call(node, torch.sigmoid, logit)
    rest = work.call(node, operator.sub, 1.0, share)
    first = work.call(node, operator.mul, terms[0], share)
    second = work.call(node, operator.mul, terms[1], rest)
    made = work.call(node, operator.sub if node.target in _DIFFERENCES else operator.add, first, second)
    work.note(node, name_of(node), "convex mix", "s f + (1 - s) g, s learnt")
    work.live.update((first, second))
    work.move(node, made)


def _convert_factor(work: Rewriting, node: fx.Node) -> None:
    """A constant of at most 1 stays; learnt and larger factors are removed."""
    sources, name = work.sources(node), name_of(node)
    constants = [argument for argument in node.args if argument not in sources]
    if len(constants) != 1 or len(node.args) != 2 or work.values[sources[0]].shape != work.values[node].shape:
        work.fail_for_good(node, name, "a product of values has no Lipschitz constant")
        return
    (factor,) = constants
    if node.kwargs:
        work.fail(node, name, f"it has further arguments: {', '.join(node.kwargs)}")
        return
    if node.target in QUOTIENTS and node.args[1] is sources[0]:
        work.fail_for_good(node, name, "a quotient by a value has no Lipschitz constant")
        return
    learnt = isinstance(factor, fx.Node) and _learnt(work, factor)
    found = torch.as_tensor(work.values[factor] if isinstance(factor, fx.Node) else factor, dtype=torch.float64)
    size = found.abs().amin().reciprocal() if node.target in QUOTIENTS else found.abs().amax()
    if learnt or size > 1:
        work.note(node, name, "removed", "a learnt factor" if learnt else f"a factor of {size.item():.4g}")
        work.drop(node)


def _learnt(work: Rewriting, node: fx.Node) -> bool:
    """Whether a value is a parameter, or computed from one."""
    return isinstance(work.values.get(node), nn.Parameter) or any(
        _learnt(work, used) for used in node.all_input_nodes
    )


def _convert_join(work: Rewriting, node: fx.Node) -> None:
    """Divided by the root of the number of values."""
    count = sum(_count(part, work) for part in (node.args or tuple(node.kwargs.values()))[:1])
    if count > 1:
        work.note(node, name_of(node), name_of(node), f"{count} values: divided by sqrt({count})")
        work.scale(node, 1 / math.sqrt(count))


def _count(parts: Any, work: Rewriting) -> int:
    """How many of the values that are joined depend on the input, each as often as it occurs."""
    return sum(1 for part in parts if isinstance(part, fx.Node) and part in work.live)


def _convert_mean(work: Rewriting, node: fx.Node) -> None:
    """Scaled to norm 1: a mean of n entries by sqrt(n), a sum by 1 / sqrt(n)."""
    x, y = work.values[work.sources(node)[0]], work.values[node]
    if y.dim() == 0 or len(y) != len(x):
        work.fail(node, name_of(node), "it mixes samples")
        return
    window = x.numel() / max(y.numel(), 1)
    factor = math.sqrt(window) if node.target in (torch.mean, "mean") else 1 / math.sqrt(window)
    if factor != 1:
        work.note(node, name_of(node), name_of(node), f"times {factor:.6g}")
        work.scale(node, factor)


def _convert_pool(work: Rewriting, node: fx.Node) -> None:
    """As the module of the same arguments."""
    values = {used: work.values[used] for used in node.all_input_nodes}
    module = module_form(node, values)
    source = work.sources(node)[0]
    bound = bound_module(module, tuple(work.values[source].shape[1:]), tuple(work.values[node].shape[1:])).value
    convert_pool(work, node, module, bound)


def _convert_interpolation(work: Rewriting, node: fx.Node) -> None:
    """Divided by its norm where that exceeds 1."""
    names = "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias"
    given: dict[str, Any] = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    found = {name: _known(work, value) for name, value in given.items() if name in names and value is not None}
    x: Tensor = work.values[work.sources(node)[0]]
    bound = interpolation(tuple(x.shape[1:]), found).value
    if bound > 1:
        work.note(node, name_of(node), name_of(node), f"times {1 / bound:.6g}")
        work.scale(node, 1 / bound)


def _known(work: Rewriting, value: Any) -> Any:
    return map_arg(value, lambda used: work.values[used])
