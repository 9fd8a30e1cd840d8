"""Kept weights whose parametrization is differentiated only where a gradient of a parameter is asked for."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastlip.nn._base import LipschitzLayer


def postponed(
    layer: LipschitzLayer, context: tuple[Hashable, ...], kept: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The weights ``kept``, with the gradient of ``layer.parametrize(*context)`` for the layer's parameters.

    The parametrization runs again in the backward, and only there: what differentiates for the images alone, as
    attacks do, does not pay for it.
    """
    values = {name: getattr(layer, name) for name in layer.tensor_names()}
    twin = layer._replicate_for_data_parallel()  # the layer as it is now, whatever happens to it before the backward
    twin._buffers = {}
    twin.__dict__.update(dict.fromkeys(values))
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return _Postponed.apply(twin, list(tensors), context, tuple(kept), *tensors.values())


class _Postponed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, twin: Any, names: list[str], context: tuple[Hashable, ...], kept: tuple[Tensor, ...], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.twin, ctx.names, ctx.context = twin, names, context
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return tuple(weight.detach() for weight in kept)  # aliases: what is kept has no history

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors  # which refuses tensors that were changed meanwhile
        ctx.twin.__dict__.update(zip(ctx.names, tensors, strict=True))
        with torch.enable_grad():
            weights = ctx.twin._compute(ctx.context)
        pairs = [(w, g) for w, g in zip(weights, gradients, strict=True) if g is not None and w.requires_grad]
        wanted = [tensor for tensor, needed in zip(tensors, ctx.needs_input_grad[4:], strict=True) if needed]
        found = iter(
            torch.autograd.grad(
                [weight for weight, _ in pairs],
                wanted,
                [gradient for _, gradient in pairs],
                create_graph=torch.is_grad_enabled(),
                allow_unused=True,
            )
            if pairs
            else [None] * len(wanted)
        )
        return *[None] * 4, *(next(found) if needed else None for needed in ctx.needs_input_grad[4:])
