"""The rule for each node: modules here, functions in ``functions``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastlip.certification.bounds import bound_module
from fastlip.certification.graphs.functions import MOVES
from fastlip.certification.graphs.tracing import first_line
from fastlip.converting import layers
from fastlip.converting.functions import convert_function, name_of
from fastlip.converting.modules import ACTIVATIONS, convert_activation, convert_norm, convert_pool
from fastlip.converting.norms import CHANNEL_NORMS, is_layer_norm, normalised_dims
from fastlip.converting.rewriting import WEIGHTED, Rewriting
from fastlip.converting.tracing import is_dropout
from fastlip.nn.weighting import InputWeights

_BOUND_FAILURES = (TypeError, ValueError, RuntimeError)
_ATTENTION = (
    *(nn.MultiheadAttention, nn.Transformer, nn.TransformerEncoder, nn.TransformerEncoderLayer),
    *(nn.TransformerDecoder, nn.TransformerDecoderLayer),
)
# Kim, Papamakarios, Mnih, *The Lipschitz Constant of Self-Attention*, ICML 2021.
_NO_ATTENTION = (
    "dot-product attention has no Lipschitz constant: mix the tokens by torch.nn.Linear along them, as MLP-Mixer does"
)


def convert_node(work: Rewriting, node: fx.Node) -> None:
    """Rewrites one node of the original graph."""
    if node not in work.live or node.op in ("placeholder", "output"):
        if node.op == "placeholder":
            work.channel[node] = 1 - work.values[node].dim()
        return
    work.channel[node] = _channel(work, node)
    value = work.values[node]
    if node.op == "call_module" and isinstance(work.module_of(node), _ATTENTION):
        work.fail(node, type(work.module_of(node)).__name__, _NO_ATTENTION)
        return
    if not isinstance(value, Tensor):
        kind = type(work.module_of(node)).__name__ if node.op == "call_module" else name_of(node)
        if isinstance(value, Exception):
            work.fail(node, kind, f"it fails: {first_line(value)}")
        elif node.target not in MOVES:
            work.fail(node, kind, "it returns no single tensor")
        return
    if node.op == "call_module":
        _convert_module(work, node)
    elif node.op in ("call_function", "call_method"):
        convert_function(work, node)


def _channel(work: Rewriting, node: fx.Node) -> int:
    """The dimension of the channels of a node's value, from the end: the last one after a dense layer."""
    value = work.values[node]
    dims = value.dim() if isinstance(value, Tensor) else 0
    sources = work.sources(node)
    inherited = work.channel.get(sources[0], -1) if sources else -1
    if node.op == "call_module":
        module = work.module_of(node)
        if isinstance(module, nn.Linear):
            return -1
        if is_layer_norm(module) and len(sources) == 1:
            normalised = normalised_dims(module, work.values[sources[0]], inherited)
            return normalised[0] if len(normalised) == 1 else inherited
        if isinstance(module, WEIGHTED):
            return 1 - dims
    order = _permutation(node, dims)
    if order and sources:
        return order.index(inherited % dims) - dims
    same = bool(sources) and work.values[sources[0]].dim() == dims
    return inherited if same else 1 - dims if dims > 1 else -1


def _permutation(node: fx.Node, dims: int) -> list[int]:
    """The order of dimensions that a permute or transpose makes; empty for other nodes."""
    if not dims:
        return []
    given: Any = node.args[1:]
    if node.target in (torch.permute, "permute"):
        order: Any = (
            given[0] if given and isinstance(given[0], (tuple, list)) else given or node.kwargs.get("dims", ())
        )
        return [dim % dims for dim in order] if all(isinstance(dim, int) for dim in order) else []
    if node.target in (torch.transpose, "transpose", torch.swapaxes, "swapaxes") and len(given) == 2:
        order = list(range(dims))
        one, other = (int(dim) % dims for dim in given)
        order[one], order[other] = order[other], order[one]
        return order
    return []


def _convert_module(work: Rewriting, node: fx.Node) -> None:
    path, module = str(node.target), work.module_of(node)
    kind = type(module).__name__
    if path in work.whole:
        _keep_or_fail(work, node, module, f"its forward cannot be traced: {work.whole[path]}")
    elif len(work.sources(node)) != 1 or len(node.all_input_nodes) != 1:
        work.fail(node, kind, "it is called on several tensors")
    elif hasattr(module, "lipschitz_bound"):
        _keep_or_fail(work, node, module, "")
    elif isinstance(module, WEIGHTED):
        _convert_layer(work, node, module)
    elif is_dropout(module):
        work.note(node, kind, "removed")
        work.drop(node)
    elif isinstance(module, CHANNEL_NORMS) or is_layer_norm(module):
        convert_norm(work, node, module)
    elif isinstance(module, ACTIVATIONS):
        convert_activation(work, node, kind)
    elif isinstance(module, InputWeights):
        work.note(node, kind, kind, "kept: as the first layer it sets the norm of the inputs")
    else:
        _keep_or_fail(work, node, module, "")


def _convert_layer(work: Rewriting, node: fx.Node, module: Any) -> None:
    """A convolution or dense layer; what is called twice is converted once."""
    if str(node.target) in work.replaced:
        _wrap_row(work, node, module)
        return
    kind, (source,) = type(module).__name__, work.sources(node)
    x, y = work.values[source], work.values[node]
    if isinstance(module, nn.ConvTranspose1d):
        x, y = x.unsqueeze(-2), y.unsqueeze(-2)
    try:
        if isinstance(module, nn.Linear):
            made = layers.dense(module, work.method, work.start, work.head_kind if node is work.head else None)
        elif isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
            made = layers.transposed(module, x, y)
        else:
            made = layers.convolution(module, work.method, work.start, x, y)
    except layers.RefusedError as error:
        work.fail(node, kind, str(error))
        return
    work.note(node, kind, type(made.module).__name__, made.note)
    work.add(str(node.target), made.module)
    _wrap_row(work, node, module)


def _wrap_row(work: Rewriting, node: fx.Node, module: Any) -> None:
    """Makes a sequence an image of one row around a converted transposed convolution."""
    if not isinstance(module, nn.ConvTranspose1d):
        return
    row = work.call(node, torch.unsqueeze, work.sources(node)[0], -2)
    node.args = (row,)
    users = list(node.users)
    with work.graph.inserting_after(node):
        made = work.graph.call_function(torch.squeeze, (node, -2))
    work.values[made], work.channel[made] = work.values[node], work.channel[node]
    work.live.add(made)
    for user in users:
        user.replace_input_with(node, made)


def _keep_or_fail(work: Rewriting, node: fx.Node, module: nn.Module, why: str) -> None:
    """Keeps what is 1-Lipschitz, divides what has a fixed bound by it, and reports the rest."""
    kind, (source,) = type(module).__name__, work.sources(node)[:1]
    shapes = tuple(work.values[source].shape[1:]), tuple(work.values[node].shape[1:])
    bounds_itself = hasattr(module, "lipschitz_bound")
    if type(module).__module__.startswith("torch.nn.") and next(module.parameters(), None) is not None:
        work.fail(node, kind, "there is no 1-Lipschitz layer for it")
        return
    try:
        bound = bound_module(module, *shapes).value
    except _BOUND_FAILURES as error:
        work.fail(node, kind, why or str(error).split("\n", 1)[0])
        return
    if bounds_itself and bound > 1 + 1e-5:
        work.fail(node, kind, f"its Lipschitz bound is {bound:.4g}")
    elif not bounds_itself and not math.isclose(bound, 1.0, rel_tol=1e-9):
        convert_pool(work, node, module, bound)
