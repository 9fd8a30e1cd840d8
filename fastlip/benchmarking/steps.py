"""The steps of a network that are timed, and the gradients in which networks must agree."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip.benchmarking import whole_step
from fastlip.benchmarking.networks import network_of

_LEARNING_RATE = 1e-6  # so that nothing diverges while it is timed


def loss_of(network: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """The loss that training steps minimise."""
    return lambda: F.cross_entropy(4 * network(x), y)


def gradients_of(name: str, method: str, model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor | None]:
    """The gradients of the model's parameters as the contestant computes them, in float64."""
    network = network_of(name, method, model).double()
    start = copy.deepcopy(network.state_dict())
    loss = whole_step.compiled(name, loss_of(network, x, y))

    def step() -> None:
        network.zero_grad()
        loss().backward()

    step = whole_step.captured(name, step)
    network.load_state_dict(start)  # the steps before the capture changed buffers
    step()
    return [parameter.grad for parameter in network.parameters()]


def training_step(name: str, network: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """One training step of the contestant, including the optimiser's update."""
    optimizer = torch.optim.SGD(network.parameters(), lr=_LEARNING_RATE)
    loss = whole_step.compiled(name, loss)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return whole_step.captured(name, step)


def evaluation_step(name: str, network: nn.Module, x: Tensor) -> Callable[[], None]:
    """A forward pass of the contestant's network on x, without gradients."""
    forward = whole_step.compiled(name, network)

    def step() -> None:
        with torch.no_grad():
            forward(x)

    return whole_step.captured(name, step)
