"""Effective weights computed once in a step: by this process, or each layer's by one of several, which share them."""

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
class _Share:
    """A layer's effective weights: who computes them, how they look (``like``), and within a step they themselves."""

    layer: LipschitzLayer
    context: _Context
    like: list[Tensor]
    owner: int = 0
    computed: tuple[Tensor, ...] = ()
    handed: tuple[Tensor, ...] = ()

    @property
    def cost(self) -> int:
        """As products of matrices cost: the weights' entries times the largest side of the parameters."""
        side = max(max(parameter.shape, default=1) for parameter in self.layer.parameters())
        return side * sum(weight.numel() for weight in self.like)


class SharedWeights:
    """Every layer's effective weights, computed once in a step, and their adjoints once.

    In a step the layers get copies that collect gradients, over all parts of the step. Then the gradients go through
    the adjoint of the parametrization. With several processes each layer belongs to one: that computes its weights
    and sends them; the gradients of all processes are summed there; and the gradients of the parameters are summed
    over all. That is exact but for rounding, as every parametrization is a function of the parameters alone.

    Args:
        model: what trains; this changes nothing of it.
        x: images like those that it trains on, which say what the layers ask for.
        world: the processes, all with the same parameters.
    """

    def __init__(self, model: nn.Module, x: Tensor, world: World):
        self.model = model
        self.world = world
        self.device = x.device
        self.shares = {(id(share.layer), share.context): share for share in _asked_for(model, x)}
        load = [0] * world.size
        # The costliest that is left goes to the process that has least: the same in every process, and in every run.
        for share in sorted(self.shares.values(), key=lambda share: -share.cost):
            share.owner = min(range(world.size), key=load.__getitem__)
            load[share.owner] += share.cost

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Within it the layers take what :meth:`hand_out` hands out."""
        for share in self.shares.values():
            share.layer.supplied = self._supplied
        try:
            yield
        finally:
            for share in self.shares.values():
                share.layer.supplied = None
                share.computed = share.handed = ()

    def hand_out(self) -> None:
        """Computes this process's share, sends it, and receives the others'."""
        for share in self._own():
            share.computed = share.layer.effective(*share.context)
        work = []
        for share in self.shares.values():
            if share.owner == self.world.rank:
                share.handed = tuple(weight.detach().contiguous() for weight in share.computed)
            else:
                share.handed = tuple(torch.empty_like(weight, device=self.device) for weight in share.like)
            for tensor in (*share.handed, *share.layer.buffers()):
                work += self._start(dist.broadcast, tensor, share.owner)
        _wait(work)
        for share in self.shares.values():
            for weight, like in zip(share.handed, share.like, strict=True):
                weight.requires_grad_(like.requires_grad)

    def collect(self) -> None:
        """Takes the gradients through the adjoints of this process's share, and sums those of the parameters."""
        work = []
        for share in self.shares.values():
            for weight in _differentiable(share.handed):
                weight.grad = _gradient(weight)
                work += self._start(dist.reduce, weight.grad, share.owner)
        _wait(work)
        computed = [weight for share in self._own() for weight in _differentiable(share.computed)]
        gradients = [weight.grad for share in self._own() for weight in _differentiable(share.handed)]
        torch.autograd.backward(computed, gradients)
        if self.world.size > 1:
            parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            flat = torch.cat([_gradient(parameter).flatten() for parameter in parameters])
            dist.all_reduce(flat)
            sums = flat.split([parameter.numel() for parameter in parameters])
            for parameter, total in zip(parameters, sums, strict=True):
                parameter.grad = _gradient(parameter).copy_(total.view_as(parameter))

    def _own(self) -> list[_Share]:
        return [share for share in self.shares.values() if share.owner == self.world.rank]

    def _supplied(self, layer: LipschitzLayer, context: _Context) -> tuple[Tensor, ...] | None:
        share = self.shares.get((id(layer), context))
        return share.handed or None if share else None

    def _start(self, send: Any, tensor: Tensor, owner: int) -> list[Any]:
        """Begins to send a tensor in place; nothing with one process."""
        if self.world.size == 1:
            return []
        return [send(torch.view_as_real(tensor) if tensor.is_complex() else tensor, owner, async_op=True)]


def _asked_for(model: nn.Module, x: Tensor) -> Sequence[_Share]:
    """What the layers ask for in a forward pass of training, in its order."""
    layers = [layer for layer in model.modules() if isinstance(layer, LipschitzLayer)]
    asked: dict[tuple[LipschitzLayer, _Context], None] = {}

    def note(layer: LipschitzLayer, context: _Context) -> None:
        asked[layer, context] = None

    with buffers_kept(model):
        for layer in layers:
            layer.supplied = note
        model.train()(x)
        for layer in layers:
            layer.supplied = None
        return [_Share(*one, [_like(weight) for weight in one[0].effective(*one[1])]) for one in asked]


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """At its end the model's buffers are as they were."""
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
    """Its gradient, zeros where there is none."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def _wait(work: list[Any]) -> None:
    for one in work:
        one.wait()
