"""Training steps as CUDA graphs: hundreds of launches by one call of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from fastlip.kernels.common import capture
from fastlip.training.distributed import World
from fastlip.training.recipe import Recipe

Step = Callable[[Tensor, Tensor, int, int], Tensor]

WARM_UPS = 3  # steps that run as usual: they compile kernels, and make tables and the optimiser's state
# Their learning rate may be a number on the device. Those of others, and all that surrounds them, run as usual.
_CAPTURED = (SGD, Adam, AdamW)


def require_graphs(recipe: Recipe, device: torch.device, world: World) -> None:
    """Raises ValueError if steps on this device, by these processes, cannot be captured."""
    if not recipe.cuda_graph:
        return
    if device.type != "cuda":
        raise ValueError(f"cuda_graph=True: needs a CUDA device, got {device}")
    if world.size > 1:
        raise ValueError(f"cuda_graph=True: needs a single process, got {world.size}")


def is_captured(optimizer: Optimizer) -> bool:
    """Whether a graph of a step contains the update of this optimiser; otherwise the update follows the graph."""
    return type(optimizer) in _CAPTURED


class CapturedSteps:
    """Takes steps: the first ones as usual, further ones by a graph of the step.

    The graph has the gradients, and the update if :func:`is_captured`. Learning rates are read from the optimiser's
    groups before each step. Everything else that a step reads must be in memory that stays: parameters, buffers, the
    state of the optimiser.

    Args:
        gradients: computes the gradients of a batch x (b, c, h, w) with labels y, of which this process has ``mine``
            and all processes ``total`` images; returns the figures of the step.
        optimizer: changes the parameters by their gradients.
        batch_size: number of images of the steps that are captured; a smaller last batch runs as usual.
    """

    def __init__(self, gradients: Step, optimizer: Optimizer, batch_size: int):
        self.gradients = gradients
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.taken = 0
        self._graph: _Graph | None = None

    def __call__(self, x: Tensor, y: Tensor, mine: int, total: int) -> Tensor:
        """Takes a step and returns its figures."""
        if total != self.batch_size:
            return self._as_usual(x, y, mine, total)
        if self.taken < WARM_UPS:
            self.taken += 1
            with capture.on_side_stream():
                return self._as_usual(x, y, mine, total)
        if self._graph is None:
            self._graph = _Graph(self.gradients, self.optimizer, x, y, mine, total)
        return self._graph.launch(x, y)

    def _as_usual(self, x: Tensor, y: Tensor, mine: int, total: int) -> Tensor:
        self.optimizer.zero_grad()
        figures = self.gradients(x, y, mine, total)
        self.optimizer.step()
        return figures


class _Graph:
    """A captured step of batches of one shape, on memory of its own."""

    def __init__(self, gradients: Step, optimizer: Optimizer, x: Tensor, y: Tensor, mine: int, total: int):
        self.optimizer = optimizer
        self.x, self.y = x.clone(), y.clone()
        groups = optimizer.param_groups
        self.rates = [torch.zeros((), dtype=torch.float32, device=x.device) for _ in groups]
        optimizer.zero_grad()  # so that gradients are in the graph's memory

        def step() -> Tensor:
            figures = gradients(self.x, self.y, mine, total)
            if is_captured(optimizer):
                with self._rates_on_device():
                    optimizer.step()
            return figures

        self.replay, self.figures = capture.captured(step)
        self.gradients = [(parameter, parameter.grad) for group in groups for parameter in group["params"]]

    def launch(self, x: Tensor, y: Tensor) -> Tensor:
        self.x.copy_(x)
        self.y.copy_(y)
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self.replay()
        # A step in between that ran as usual has put others in their place.
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        if not is_captured(self.optimizer):
            self.optimizer.step()
        return self.figures.clone()

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        groups = self.optimizer.param_groups
        kept = [group["lr"] for group in groups]
        try:
            for group, rate in zip(groups, self.rates, strict=True):
                group["lr"] = rate
            yield
        finally:
            for group, rate in zip(groups, kept, strict=True):
                group["lr"] = rate
