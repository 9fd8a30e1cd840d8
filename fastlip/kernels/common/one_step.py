"""Functions whose gradients, of any order, have the precision of the functions themselves.

The precision of products is a setting of the process. Autograd multiplies under the one that holds when the backward
runs, outside of any context around the forward. Where that one is lower, a function becomes one step of autograd's
graph, whose backward runs in full precision.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.gate import is_recorded, is_transformed
from fastlip.kernels.common.precision import full_precision, stays_ieee, widens, wider

_SINGLE = {torch.float64: torch.float32, torch.complex128: torch.complex64}
_FIXED = 2  # arguments before the tensors
Function = Callable[..., tuple[Tensor, ...]]


def in_full_precision(function: Callable[..., Tensor], *tensors: Any) -> Tensor:
    """function(*tensors) in IEEE float32 or better, and its gradients too. Any tensor but the first may be None.

    A program that is being compiled cannot change settings, and torch.func multiplies outside of any context: both
    compute in float64 where products are lowered.
    """
    device = tensors[0].device
    wide = widens(device) if torch.compiler.is_compiling() else is_wide(device)
    if wide and tensors[0].dtype in _SINGLE.values():
        result = function(*(None if tensor is None else wider(tensor) for tensor in tensors))
        return result.to(_SINGLE[result.dtype])
    if not is_needed(device):
        with full_precision(device):
            return function(*tensors)
    present = [tensor is not None for tensor in tensors]

    def of_present(*given: Tensor) -> tuple[Tensor, ...]:
        rest = iter(given)
        return (function(*(next(rest) if there else None for there in present)),)

    return in_one_step(of_present, [tensor for tensor in tensors if tensor is not None])[0]


def is_needed(device: torch.device) -> bool:
    """Whether autograd would multiply in lower precision in a graph that is made now, which can have such a step."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or stays_ieee(device):
        return False
    return not (is_recorded() or is_transformed())


def is_wide(device: torch.device) -> bool:
    """Whether torch.func or forward-mode AD may differentiate in lower precision what is computed now.

    An ``autograd.Function`` has no rules for them: weights are computed in float64 instead.
    """
    if WIDE.active:
        return True
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or not is_transformed():
        return False
    return not stays_ieee(device)


@contextmanager
def in_float64() -> Iterator[None]:
    """A context in which layers compute their weights in float64, for :func:`is_wide`."""
    before, WIDE.active = WIDE.active, True
    try:
        yield
    finally:
        WIDE.active = before


class _Wide(threading.local):
    """Whether this thread computes weights in float64 now."""

    active = False


WIDE = _Wide()


def in_one_step(
    function: Function, tensors: Sequence[Tensor], kept: tuple[Tensor, ...] | None = None
) -> tuple[Tensor, ...]:
    """function(*tensors), with its gradients.

    With outputs that are ``kept`` the function runs in the backward, and only there: what needs no gradients does not
    pay for it. Without, it runs now, and its graph waits for the backward.
    """
    return _Step.apply(function, kept, *tensors)


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Function, kept: tuple[Tensor, ...] | None, *tensors: Tensor
    ) -> tuple[Tensor | None, ...]:
        ctx.function = function
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.graph = None
        if kept is not None:
            return kept
        ctx.graph = outputs, _ = _computed(function, tensors)
        return tuple(None if output is None else output.detach() for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors  # which refuses tensors that were changed meanwhile
        needed = ctx.needs_input_grad[_FIXED:]
        device = tensors[0].device
        if torch.is_grad_enabled() and not stays_ieee(device):  # these gradients will be differentiated themselves
            given = [gradient for gradient in gradients if gradient is not None]
            found = in_one_step(_gradient_of(ctx.function, needed, gradients), [*tensors, *given])
        else:
            with full_precision(device):
                outputs, sources = ctx.graph or _computed(ctx.function, tensors)
                found = _gradients(outputs, sources, needed, gradients)
        rest = iter(found)
        return *[None] * _FIXED, *(next(rest) if need else None for need in needed)


def _computed(function: Function, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """The outputs with their graph, and where it begins: at views, as one tensor may have been made of another."""
    with torch.enable_grad(), full_precision(tensors[0].device):
        sources = [tensor.view_as(tensor) for tensor in tensors]
        return function(*sources), sources


def _gradients(
    outputs: Sequence[Tensor], sources: Sequence[Tensor], needed: Sequence[bool], gradients: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Those of the sources that are needed. A second backward finds the graph again."""
    wanted = [source for source, need in zip(sources, needed, strict=True) if need]
    pairs = [(y, g) for y, g in zip(outputs, gradients, strict=True) if g is not None and y.requires_grad]
    if not pairs:
        return (None,) * len(wanted)  # pyright: ignore[reportReturnType]
    options: dict[str, Any] = {"retain_graph": True, "create_graph": torch.is_grad_enabled(), "allow_unused": True}
    differentiated, given = zip(*pairs, strict=True)
    return torch.autograd.grad(differentiated, wanted, given, **options)


def _gradient_of(function: Function, needed: Sequence[bool], like: Sequence[Tensor | None]) -> Function:
    """The needed gradients of a function, as a function of its tensors and of the gradients that are given."""
    present = [gradient is not None for gradient in like]

    def gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
        tensors, rest = inputs[: len(needed)], iter(inputs[len(needed) :])
        gradients = [next(rest) if there else None for there in present]
        return _gradients(*_computed(function, tensors), needed, gradients)

    return gradient
