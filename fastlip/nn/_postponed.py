"""A parametrization's gradient as one step of the backward: only where it is asked for, and in full precision."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastlip.kernels.common.precision import full_precision

if TYPE_CHECKING:
    from fastlip.nn.base import LipschitzLayer

_FIXED = 4  # arguments before the layer's tensors


def in_one_step(
    layer: LipschitzLayer, context: tuple[Hashable, ...], kept: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """The effective weights, with the gradient of ``layer._parametrize(*context)`` for the layer's parameters.

    With weights that are ``kept`` the parametrization runs in the backward, and only there: what differentiates for
    the images alone, as attacks do, does not pay for it. Without, it runs now, and its graph waits for the backward.
    """
    values = {name: getattr(layer, name) for name in layer._registered()}
    twin = layer._replicate_for_data_parallel()  # the layer as it is now, whatever happens to it before the backward
    twin._buffers = {}
    twin.__dict__.update(dict.fromkeys(values))
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    kept = kept if kept is None else tuple(weight.detach() for weight in kept)
    return _Parametrization.apply(twin, list(tensors), context, kept, *tensors.values())


class _Parametrization(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        twin: Any,
        names: list[str],
        context: tuple[Hashable, ...],
        kept: tuple[Tensor, ...] | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.twin, ctx.names, ctx.context = twin, names, context
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.graph = None
        if kept is not None:
            return kept
        ctx.graph = weights, _ = _computed(ctx, tensors)
        return tuple(weight.detach() for weight in weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors  # which refuses tensors that were changed meanwhile
        needed = ctx.needs_input_grad[_FIXED:]
        with full_precision(tensors[0].device):
            weights, sources = ctx.graph or _computed(ctx, tensors)
            wanted = [source for source, need in zip(sources, needed, strict=True) if need]
            pairs = [(w, g) for w, g in zip(weights, gradients, strict=True) if g is not None and w.requires_grad]
            found = iter(_gradients(pairs, wanted))
        return *[None] * _FIXED, *(next(found) if need else None for need in needed)


def _computed(ctx: Any, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """The weights with their graph, and where it begins: at views, as one tensor may have been made of another."""
    with torch.enable_grad():
        sources = [tensor.view_as(tensor) for tensor in tensors]
        ctx.twin.__dict__.update(zip(ctx.names, sources, strict=True))
        weights = ctx.twin._compute(ctx.context)
    ctx.twin.__dict__.update(dict.fromkeys(ctx.names))
    return weights, sources


def _gradients(pairs: list[tuple[Tensor, Tensor]], wanted: list[Tensor]) -> Sequence[Tensor | None]:
    """Those of the wanted tensors, from weights and their gradients. A second backward finds the graph again."""
    if not pairs:
        return [None] * len(wanted)
    outputs, gradients = zip(*pairs, strict=True)
    options = {"retain_graph": True, "create_graph": torch.is_grad_enabled(), "allow_unused": True}
    return torch.autograd.grad(outputs, wanted, gradients, **options)
