"""The moving average of a network's weights, which is evaluated and certified in place of the trained network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float) -> AveragedModel | None:
    """A copy of the model whose parameters and buffers follow it; None for a decay of 0.

        a <- a + (1 - d_n) (p - a), d_n = min(d, (1 + n) / (10 + n)),

    after step n + 1, so that the first steps, far from the end, are soon forgotten.

    Args:
        model: the network that is trained.
        decay: d, from 0 to 1 (exclusive).
    """
    if not decay:
        return None
    average = AveragedModel(model, multi_avg_fn=_moved_by(decay), use_buffers=True)
    average.requires_grad_(False)
    return average


def _moved_by(decay: float) -> Callable[[Any, Any, Any], None]:
    @torch.no_grad()
    def move(averages: list[Tensor], values: list[Tensor], count: Tensor) -> None:
        weight = 1 - ((1 + count) / (10 + count)).clamp_max(decay)
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, weight.to(average.dtype))
            else:
                average.copy_(value)

    return move
