"""Effective weights computed once in a step: by this process, or by several processes that divide the layers."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastlip.nn.base import LipschitzLayer
from fastlip.training.distributed import World

_Context = tuple[Hashable, ...]


@dataclass
class _LayerWeights:
    """A layer's effective weights: the process that computes them, their shapes (``like``), the tensors of a step."""

    layer: LipschitzLayer
    context: _Context
    like: list[Tensor]
    owner: int = 0
    computed: tuple[Tensor, ...] = ()
    handed: tuple[Tensor, ...] = ()

    @property
    def cost(self) -> int:
        """A cost in multiply-adds of matrix products: the weights' entries times the parameters' largest side."""
        side = max(max(parameter.shape, default=1) for parameter in self.layer.parameters())
        return side * sum(weight.numel() for weight in self.like)


class SharedWeights:
    """The effective weights of every layer, which are computed once in a step, as are their adjoints.

    In a step the layers receive copies that collect gradients over all parts of the step. Then the gradients pass
    through the adjoint of the parametrization. With several processes each layer belongs to one of them, which
    computes its weights and sends them, and sums the gradients of all processes. The gradients of the parameters are
    summed over all processes. The result is exact up to rounding, as every parametrization is a function of the
    parameters alone.

    Args:
        model: the network that is trained; it is not changed.
        x: images like those of training, which show for which inputs the layers need weights.
        world: the processes, all with the same parameters.
    """

    def __init__(self, model: nn.Module, x: Tensor, world: World):
        self.model = model
        self.world = world
        self.device = x.device
        self.entries = {(id(entry.layer), entry.context): entry for entry in _asked_for(model, x)}
        load = [0] * world.size
        # The costliest layer left goes to the process with the least load. All processes and runs find the same.
        for entry in sorted(self.entries.values(), key=lambda entry: -entry.cost):
            entry.owner = min(range(world.size), key=load.__getitem__)
            load[entry.owner] += entry.cost

    @contextmanager
    def lent(self) -> Iterator[None]:
        """In this context the layers take the weights that :meth:`hand_out` hands out."""
        for entry in self.entries.values():
            entry.layer._supplied = self._supplied
        try:
            yield
        finally:
            for entry in self.entries.values():
                entry.layer._supplied = None
                entry.computed = entry.handed = ()

    def hand_out(self) -> None:
        """Computes and sends the weights of this process's layers, and receives the others."""
        for entry in self._own():
            entry.computed = entry.layer._effective(*entry.context)
        work = []
        for entry in self.entries.values():
            if entry.owner == self.world.rank:
                entry.handed = tuple(weight.detach().contiguous() for weight in entry.computed)
            else:
                entry.handed = tuple(torch.empty_like(weight, device=self.device) for weight in entry.like)
            for tensor in (*entry.handed, *entry.layer.buffers()):
                work += self._start(dist.broadcast, tensor, entry.owner)
        _wait(work)
        for entry in self.entries.values():
            for weight, like in zip(entry.handed, entry.like, strict=True):
                weight.requires_grad_(like.requires_grad)

    def collect(self) -> None:
        """Applies the adjoints of this process's layers to the gradients, and sums those of the parameters."""
        work = []
        for entry in self.entries.values():
            for weight in _differentiable(entry.handed):
                weight.grad = _gradient(weight)
                work += self._start(dist.reduce, weight.grad, entry.owner)
        _wait(work)
        computed = [weight for entry in self._own() for weight in _differentiable(entry.computed)]
        gradients = [weight.grad for entry in self._own() for weight in _differentiable(entry.handed)]
        torch.autograd.backward(computed, gradients)
        if self.world.size > 1:
            parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            flat = torch.cat([_gradient(parameter).flatten() for parameter in parameters])
            dist.all_reduce(flat)
            sums = flat.split([parameter.numel() for parameter in parameters])
            for parameter, total in zip(parameters, sums, strict=True):
                parameter.grad = _gradient(parameter).copy_(total.view_as(parameter))

    def _own(self) -> list[_LayerWeights]:
        return [entry for entry in self.entries.values() if entry.owner == self.world.rank]

    def _supplied(self, layer: LipschitzLayer, context: _Context) -> tuple[Tensor, ...] | None:
        entry = self.entries.get((id(layer), context))
        return entry.handed or None if entry else None

    def _start(self, send: Any, tensor: Tensor, owner: int) -> list[Any]:
        """Begins to send a tensor in place; a single process sends nothing."""
        if self.world.size == 1:
            return []
        return [send(torch.view_as_real(tensor) if tensor.is_complex() else tensor, owner, async_op=True)]


def _asked_for(model: nn.Module, x: Tensor) -> Sequence[_LayerWeights]:
    """The weights that the layers request in a forward pass of training, in its order."""
    layers = [layer for layer in model.modules() if isinstance(layer, LipschitzLayer)]
    asked: dict[tuple[LipschitzLayer, _Context], None] = {}

    def note(layer: LipschitzLayer, context: _Context) -> None:
        asked[layer, context] = None

    with buffers_kept(model):
        for layer in layers:
            layer._supplied = note
        model.train()(x)
        for layer in layers:
            layer._supplied = None
        return [_LayerWeights(*one, [_like(weight) for weight in one[0]._effective(*one[1])]) for one in asked]


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """At the end of this context the model's buffers have their former values."""
    buffers = [buffer.clone() for buffer in model.buffers()]
    yield
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)


def _like(weight: Tensor) -> Tensor:
    empty = torch.empty_like(weight, device="meta", memory_format=torch.contiguous_format)
    return empty.requires_grad_(weight.requires_grad)


def _differentiable(weights: Sequence[Tensor]) -> list[Tensor]:
    return [weight for weight in weights if weight.requires_grad]


def _gradient(tensor: Tensor) -> Tensor:
    """The tensor's gradient; zeros if it has none."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def _wait(work: list[Any]) -> None:
    for one in work:
        one.wait()
