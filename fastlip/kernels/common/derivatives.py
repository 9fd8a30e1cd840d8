"""The backward of an operator: which of two runs, and gradients of a reference by autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.gate import refusal

_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled


def guarded(
    name: str,
    op_name: str,
    backward: Callable[..., Any] | None,
    plain: Callable[..., Any] | None,
    twice: bool,
) -> Callable[..., Any]:
    """The backward that the kernels implement, or the plain one where the gradients are no tensors for kernels.

    The plain one is made of torch's own operations, and also runs where the gradient is itself to be differentiated,
    unless the kernels' backward can be (twice).
    """

    def choose(ctx: Any, *gradients: Any) -> Any:
        if backward is None:
            raise RuntimeError(f"{name} has no derivative")
        if gradients[0] is None:  # nothing is differentiated that depends on the public output
            return tuple([None] * len(need) if isinstance(need, list) else None for need in ctx.needs_input_grad)
        if _is_compiling():
            return backward(ctx, *gradients)
        reason = refusal(gradients[:1])  # of the public output: what else a kernel returns may be on the host
        if plain is not None and (reason or (not twice and _is_grad_enabled())):
            return plain(ctx, *gradients)
        if reason:
            raise RuntimeError(f"gradients of fastlip.ops.{op_name}: {reason}: use backend='reference'")
        return backward(ctx, *gradients)

    return choose


def differentiated(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], needed: Sequence[bool], gradient: Tensor
) -> list[Tensor | None]:
    """The gradients of those inputs of a function that need one, by autograd: differentiable, and of any kind.

    The inputs are taken as independent of each other, whatever they were made of.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [None if x is None else (x if x.requires_grad else x.requires_grad_()) for x in _aliases(inputs)]
        output = function(*leaves)
        wanted = [leaf for leaf, need in zip(leaves, needed, strict=True) if need and leaf is not None]
        found = iter(torch.autograd.grad(output, wanted, gradient, create_graph=again, allow_unused=True))
    return [next(found) if need and leaf is not None else None for leaf, need in zip(leaves, needed, strict=True)]


def _aliases(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if tensor is None else tensor.view_as(tensor) for tensor in tensors]
