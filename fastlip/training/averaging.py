"""The moving average of a network's weights, which is evaluated and certified in place of the trained network."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Average(nn.Module):
    """A copy of a model whose parameters and buffers follow those of the model.

        a <- a + (1 - d_n) (p - a), d_n = min(d, (1 + n) / (10 + n)), d_0 = 0,

    in step n + 1, so that the first steps, far from the end, are soon forgotten. Unlike
    ``torch.optim.swa_utils.AveragedModel``, it counts the steps on the host: a GPU is neither asked nor told.

    Args:
        model: the network that is trained.
        decay: d, from 0 to 1 (exclusive).
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.module = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.count = 0

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Moves towards the model's present values; tensors of integers are copied."""
        decay = min(self.decay, (1 + self.count) / (10 + self.count)) if self.count else 0.0
        averages: list[Tensor] = []
        values: list[Tensor] = []
        for average, value in zip(tensors_of(self.module), tensors_of(model), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value.detach())
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, 1 - decay)
        self.count += 1


def tensors_of(model: nn.Module) -> Iterator[Tensor]:
    """The parameters and buffers of a model."""
    yield from model.parameters()
    yield from model.buffers()


def averaged(model: nn.Module, decay: float) -> Average | None:
    """The average of a model's weights; None for a decay of 0.

    Args:
        model: the network that is trained.
        decay: see :class:`Average`.
    """
    return Average(model, decay) if decay else None
